"""What a run that starts from another run's weights says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vi_flows.training.checkpoint import CheckpointError
from vi_flows.training.config import TrainConfig, first_difference
from vi_flows.training.errors import RunUnusableError, in_shell
from vi_flows.training.packed import is_there

if TYPE_CHECKING:
    from vi_flows.training.run import Run

__all__ = ["check_same_data", "describe_start"]


def describe_start(source: Run, run: Run) -> dict[str, Any]:
    """Where the weights of a run come from that starts from another run's: for its record, and its own source.

    Args:
        source: the other run.
        run: the one that starts from it.

    Raises:
        RunUnusableError: the source has no weights, or they are damaged.
        ValueError: it is of another model, data set or split, or its data were others under the same name, so that its
            weights don't fit or may have seen this run's validation images.
    """
    _check_fit(source, run.config)
    _, state = _read(source)
    check_same_data(source, state, run)
    return {
        "run": source.folder.name,
        "model": source.config.name,
        "dataset": source.config.dataset,
        "protocol": source.config.protocol,
        "seed": source.config.seed,
        "weights": source.weights.chosen,
        "epoch": state["epoch"],
        "steps": state["steps"],
        "seconds": round(state["seconds"], 1),
        "sha256": source.weights.sha256(),
        "revision": source.trained_at,
        "data_sha256": state.get("data_sha256"),
        "started_from": source.started_from,
    }


def check_same_data(source: Run, state: dict[str, Any], run: Run) -> None:
    """Refuse weights of other data than those of the run: they may have seen its validation images.

    Args:
        source: the run whose weights they are.
        state: that was saved with them; older ones don't say which data they saw.
        run: that starts from them.

    Raises:
        ValueError: they are of other data.
    """
    mine = run.data.sha256
    theirs = str(state.get("data_sha256", mine))
    if theirs != mine:
        raise ValueError(
            f"start_from: {source.folder} was trained on other data by the name of {source.config.dataset}, of sha256 "
            f"{theirs[:16]}…, where this one has {mine[:16]}…, and may have seen its validation images; put the old "
            "data back, or train from fresh weights"
        )


def _check_fit(source: Run, config: TrainConfig) -> None:
    if source.config.kind != config.kind:
        raise ValueError(
            f"start_from: {source.folder} is a run of kind {source.config.kind}, this one {config.kind}; "
            "weights go on in their own kind alone"
        )
    if source.config.dataset != config.dataset:
        raise ValueError(
            f"start_from: {source.folder} has dataset={source.config.dataset}, this one {config.dataset}; "
            "give this one the same"
        )
    if (source.config.protocol, config.protocol) == ("paper", "clean"):
        raise ValueError(
            f"start_from: {source.folder} was trained on the validation images too (protocol=paper), by which the "
            "clean protocol chooses weights; use --protocol paper"
        )
    found = first_difference(source.config.model_settings, config.model_settings)
    if found is not None:
        name, theirs, mine = found
        raise ValueError(f"start_from: {source.folder} has {name}={theirs}, this one {mine}; give this one the same")


def _read(source: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        tensors, state = source.weights.read()
        source.check_settings(state)
        return tensors, state
    except CheckpointError as error:
        there = is_there(source.weights.path())
        way = "start from another run" if there else f"vi-flows train --resume {in_shell(source.folder)} makes them"
        raise RunUnusableError(f"no usable weights in {source.folder}: {error}; {way}") from error
