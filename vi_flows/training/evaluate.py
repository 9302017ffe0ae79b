"""Evaluation of a finished run: the importance-sampled NLL or the bits/dim, and its record."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from vi_flows.records import Clock, Record, provenance
from vi_flows.training.config import config_to_dict
from vi_flows.training.kept import KeptParts, code_of
from vi_flows.training.kinds import KINDS
from vi_flows.training.run import Run, RunError
from vi_flows.training.tasks.base import EvaluationSettings

__all__ = ["evaluate_run"]


def evaluate_run(
    run: Run,
    settings: EvaluationSettings | None = None,
    *,
    weights: Literal["auto", "best", "last"] = "auto",
    device: str | None = None,
    record: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    paper_row: str | None = None,
) -> tuple[Record, Path]:
    """Estimate ``−log p(x)`` of the test images (bits/dim for image flows) and write the record.

    The evaluation of a VAE that is stopped goes on when it is asked for again, to the same figures
    (:class:`~vi_flows.training.kept.KeptParts`).

    Args:
        run: a trained run.
        settings: of the evaluation of the run's kind (:data:`~vi_flows.training.kinds.KINDS`); default: the kind's.
        weights: ``auto`` takes the protocol's: chosen by validation (clean) or last (paper).
        device: where to evaluate; default: where the run was trained.
        record: file to write, or a folder for a file named by the run's key; default: the run's ``results`` folder.
        overwrite: replace an existing record.
        progress: show a bar.
        paper_row: the row of ``experiments/published.json`` whose number belongs beside the run's.

    Returns:
        The record and where it was written; the scores of the single images lie beside it.

    Raises:
        RunUnusableError: there are no such weights, the data are not those that they were trained on, or another
            process is evaluating for the same record.
        RunError: there are no such images.
        RecordExistsError: the record is there already.
        ValueError: the settings are another kind's.
    """
    kind = KINDS[run.config.kind]
    settings = kind.evaluation() if settings is None else settings
    if type(settings) is not kind.evaluation:
        raise ValueError(
            f"a run of kind {run.config.kind} is evaluated by {kind.evaluation.__name__}, got {settings!r}"
        )
    splits = run.data.split(run.config.protocol)
    rows = {"test": splits.test, "valid": splits.valid}[settings.split]
    if settings.limit is not None and settings.limit >= len(rows):
        settings = replace(settings, limit=None)  # all of them: the same evaluation, and the same record
    folder = run.folder / "results" if record is None else record
    path = folder if folder.suffix == ".json" else folder / ("-".join([run.key, *settings.words]) + ".json")
    Record.refuse_to_replace(path, overwrite)  # before the minutes of work, not after
    here = run.on(device)
    task, device = here.build_task(), here.config.device
    trained = run.load_weights(task, weights)
    run.check_data(trained)
    if len(rows) == 0:
        raise RunError(
            f"there are no {settings.split} images under the {run.config.protocol} protocol: --split test scores the "
            "others"
        )
    clock = Clock()
    recorded = {
        **config_to_dict(run.config),
        "data_root": None,
        "start_from": None,
        "evaluation": {**asdict(settings), "weights": trained["weights"]},
    }
    made_by = provenance(device)
    parts = KeptParts(path, {
        "settings": recorded, "weights": run.weights.sha256(weights), "data": run.data.sha256,
        "code": code_of(made_by), "device": made_by["device"],
    })  # fmt: skip
    with parts.alone():
        found = task.evaluate(rows, settings, progress, parts)
        named = {} if settings.limit is None else {"image": settings.places(len(rows)).float()}
        made = Record(
            kind=run.config.kind,
            key=run.key,
            label=run.config.label,
            paper_row=paper_row,
            settings=recorded,
            figures={**found.figures, "epoch_of_weights": trained["epoch"], "steps": trained["steps"]},
            scores={name: values.numpy() for name, values in (named | found.scores).items()},
            provenance=provenance(
                device,
                clock,
                data_sha256=run.data.sha256,
                trained_at_revision=run.trained_at,
                started_from=run.started_from,
                training_seconds=round(trained["seconds"], 1),
                training_cpu_seconds=trained.get("cpu_seconds"),
                **parts.cost_before,
            ),
        )
        made.write(path, overwrite)
        parts.remove()
    return made, path
