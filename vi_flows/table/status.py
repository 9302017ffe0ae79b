"""How far the runs are, read from what they have written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from vi_flows.records import Record
from vi_flows.table.claim import is_held, last_note
from vi_flows.table.plan import Job, Workplace

__all__ = ["JobStatus", "status_of", "status_table"]


@dataclass(frozen=True)
class JobStatus:
    """Where a job stands.

    Attributes:
        name: the job's.
        state: ``done``, ``training``, ``evaluating``, ``stopped`` (it goes on where it was), ``failed``, ``waiting``
            (for the run it starts from) or ``new``.
        epoch: epochs that were finished.
        epochs: of the whole run.
        valid_loss: best validation loss so far, in nats; NaN where there is none.
        nll: of the record, in nats; NaN where there is none.
        seconds_left: of training at the present speed; NaN where nothing is known.
        error: why it failed.
    """

    name: str
    state: str
    epoch: int
    epochs: int
    valid_loss: float = math.nan
    nll: float = math.nan
    seconds_left: float = math.nan
    error: str = ""


def _lines(path: Path) -> list[dict[str, Any]]:
    """The epochs of a run; a line that is being written is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def _seconds_left(epochs: list[dict[str, Any]], total: int, part: int = 20) -> float:
    """What the last ``part`` epochs took, for each epoch that is left."""
    if not epochs:
        return math.nan
    last, before = epochs[-1], epochs[-1 - part] if len(epochs) > part else {"epoch": 0, "seconds": 0.0}
    speed = (last["seconds"] - before["seconds"]) / (last["epoch"] - before["epoch"])
    return (total - last["epoch"]) * speed


def status_of(job: Job, workplace: Workplace) -> JobStatus:
    """Where a job stands now.

    Args:
        job: which.
        workplace: where its run and its record are.
    """
    epochs = _lines(job.folder(workplace) / "metrics.jsonl")
    epoch = epochs[-1]["epoch"] if epochs else 0
    best = min((e["valid_loss"] for e in epochs if "valid_loss" in e), default=math.nan)
    record = job.record(workplace)
    if record.exists():
        differs = job.record_differs(workplace)
        if differs:
            return JobStatus(job.name, "failed", 0, job.epochs, error=f"{record} is of a run with {differs}")
        nll = Record.read(record).figures["nll"]
        return JobStatus(job.name, "done", job.epochs, job.epochs, best, nll, 0.0)
    note = last_note(workplace.runs, job.name)
    error = ""
    if is_held(workplace.runs, job.name):
        state = note["state"]
    elif note["state"] == "failed":
        state, error = "failed", note["error"]
    elif job.folder(workplace).exists():
        state = "stopped"
    else:
        ready = job.source is None or job.source.is_trained(workplace)
        state = "new" if ready else "waiting"
    return JobStatus(job.name, state, epoch, job.epochs, best, math.nan, _seconds_left(epochs, job.epochs), error)


def _duration(seconds: float) -> str:
    return "–" if math.isnan(seconds) else str(timedelta(seconds=round(seconds)))


def _nats(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def status_table(jobs: Iterable[Job], workplace: Workplace) -> str:
    """One line a job, and one that counts them.

    Args:
        jobs: which.
        workplace: where they are.
    """
    found = [status_of(job, workplace) for job in jobs]
    cells = [("run", "state", "epoch", "validation", "NLL", "time left")]
    cells += [
        (s.name, s.state, f"{s.epoch}/{s.epochs}", _nats(s.valid_loss), _nats(s.nll), _duration(s.seconds_left))
        for s in found
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines += [f"{s.name} failed: {s.error}" for s in found if s.error]
    states = [s.state for s in found]
    lines.append(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))))
    return "\n".join(lines)
