"""Where the runs of a folder stand, read from what they have written."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vi_flows.training.checkpoint import CheckpointError, load_state
from vi_flows.training.errors import in_shell
from vi_flows.training.log import metrics_in
from vi_flows.training.run import Run, RunUnusableError

__all__ = ["RunStatus", "find_runs", "status_of_run"]


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands.

    Attributes:
        folder: where it lives.
        kind: of the run, empty where it can't be read.
        label: of its model.
        dataset: it trains on.
        seed: of everything.
        state: ``running`` (a living process holds it), ``finished``, ``interrupted`` (``train --resume`` goes on with
            it), ``new`` (nothing trained yet) or ``damaged``.
        epoch: epochs that are finished.
        epochs: of the whole run.
        best: best validation loss, in the kind's unit; NaN where there is none.
        records: evaluations in its folder.
        age: seconds since something was written.
        problem: why it is damaged.
    """

    folder: Path
    kind: str = ""
    label: str = ""
    dataset: str = ""
    seed: int = 0
    state: Literal["running", "finished", "interrupted", "new", "damaged"] = "damaged"
    epoch: int = 0
    epochs: int = 0
    best: float = math.nan
    records: int = 0
    age: float = math.nan
    problem: str = ""


def find_runs(folder: Path) -> Iterator[Path]:
    """The folders with a run in them, in the order of their names; a run's own folders are not searched.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; name the one with the runs: what --out was given, or above it")
    for path, below, files in os.walk(folder):
        below[:] = [] if "config.json" in files else sorted(name for name in below if not name.startswith("."))
        if "config.json" in files:
            yield Path(path)


def status_of_run(folder: Path) -> RunStatus:
    """Where the run in a folder stands now."""
    age = time.time() - _last_written(folder)
    try:
        run = Run.open(folder)
    except RunUnusableError as error:
        return RunStatus(folder, age=age, problem=str(error))
    config, lines = run.config, metrics_in(folder / "metrics.jsonl")
    checkpoint = run.checkpoints.newest
    state: Literal["running", "finished", "interrupted", "new", "damaged"] = "interrupted" if lines else "new"
    problem = ""
    try:
        if checkpoint.exists():
            found = load_state(checkpoint)
            state = "finished" if found.get("finished") else "interrupted" if found.get("step") else state
    except CheckpointError as error:
        state, problem = "damaged", f"{error}; vi-flows train --resume {in_shell(folder)} says how to go on"
    if run.held:
        state, problem = "running", ""  # it may be writing what was looked at
    # Older runs without validation images have ``null`` there.
    losses = [loss for loss in (line.get("valid_loss") for line in lines) if loss is not None and math.isfinite(loss)]
    return RunStatus(
        folder, config.kind, config.label, config.dataset, config.seed, state,
        lines[-1].get("epoch", 0) if lines else 0, config.epochs, min(losses, default=math.nan),
        len(list((folder / "results").glob("*.json"))), age, problem,
    )  # fmt: skip


def _last_written(folder: Path) -> float:
    """When something in a folder was written, in seconds since the epoch; NaN where nothing is there any more."""
    times = []
    with suppress(FileNotFoundError):
        for path in [folder, *folder.iterdir()]:
            with suppress(FileNotFoundError):  # a part of a file that was finished meanwhile, or a link to nothing
                times.append(path.stat().st_mtime)
    return max(times, default=math.nan)
