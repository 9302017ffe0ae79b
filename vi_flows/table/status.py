"""How far the runs are, read from what they have written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tabulate import tabulate

from vi_flows.locks import is_locked
from vi_flows.records import Record
from vi_flows.table.claim import is_held, last_note
from vi_flows.table.job import Job, Workplace
from vi_flows.training.log import metrics_in

__all__ = ["JobStatus", "duration", "status_of", "status_table"]


@dataclass(frozen=True)
class JobStatus:
    """Where a job stands.

    Attributes:
        name: the job's.
        state: ``done``, ``training``, ``evaluating``, ``stopped`` (it goes on where it was), ``failed``, ``waiting``
            (for the run it starts from) or ``new``.
        progress: epochs that were finished, or what else counts (:attr:`Job.progress_name`); NaN where a record came
            without its run, which may have been stopped before its end.
        total: the progress at the end of training.
        valid_loss: best validation loss so far; NaN where there is none.
        score: of the record (:attr:`Job.score_name`); NaN where there is none.
        seconds_left: of training at the present speed; NaN where nothing is known.
        error: why it failed.
    """

    name: str
    state: str
    progress: float
    total: float
    valid_loss: float = math.nan
    score: float = math.nan
    seconds_left: float = math.nan
    error: str = ""


def _is_whole(line: dict[str, Any], name: str) -> bool:
    """Whether a line of metrics says how far it was when, and its loss is a number."""
    loss = line.get("valid_loss")  # null where an older run had no validation images
    figures = (line.get(name), line.get("seconds"), math.nan if loss is None else loss)
    return all(isinstance(figure, int | float) for figure in figures)


def _seconds_left(lines: list[dict[str, Any]], name: str, total: float, part: int = 20) -> float:
    """What the last ``part`` lines took, for all that is left."""
    points = [{name: 0, "seconds": 0.0}, *lines][-1 - part :]
    last, before = points[-1], points[0]
    if last[name] == before[name]:
        return math.nan
    return max(total - last[name], 0.0) * (last["seconds"] - before["seconds"]) / (last[name] - before[name])


def status_of(job: Job[Any], workplace: Workplace) -> JobStatus:
    """Where a job stands now.

    Args:
        job: which.
        workplace: where its run and its record are.
    """
    name = job.progress_name[0]
    lines = [line for line in metrics_in(job.folder(workplace) / "metrics.jsonl") if _is_whole(line, name)]
    progress = lines[-1][name] if lines else 0
    losses = (line.get("valid_loss") for line in lines)
    best = min((loss for loss in losses if loss is not None), default=math.nan)
    if job.has_record(workplace):
        record = job.record(workplace)
        differs = job.record_differs(workplace)
        if differs:
            return JobStatus(job.name, "failed", 0, job.total, error=f"{record} is of a run with {differs}")
        score = Record.read(record).figures[job.score_name[0]]
        return JobStatus(job.name, "done", progress if lines else math.nan, job.total, best, score, 0.0)
    note = last_note(workplace.runs, job.name)
    error = ""
    if is_held(workplace.runs, job.name):
        state = note["state"]
    elif note["state"] == "failed":
        state, error = "failed", note["error"]
    elif job.folder(workplace).exists():
        state = "training" if is_locked(job.folder(workplace)) else "stopped"  # by a command of its own
    else:
        ready = job.source is None or job.source.is_trained(workplace)
        state = "new" if ready else "waiting"
    left = _seconds_left(lines, name, job.total)
    return JobStatus(job.name, state, progress, job.total, best, math.nan, left, error)


def duration(seconds: float) -> str:
    """``0:12:30``, or a dash where it is not known."""
    return "–" if math.isnan(seconds) else str(timedelta(seconds=round(seconds)))


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def status_table(jobs: Sequence[Job[Any]], workplace: Workplace) -> str:
    """One line a job, and one that counts them.

    Args:
        jobs: which, of one kind.
        workplace: where they are.
    """
    found = [status_of(job, workplace) for job in jobs]
    progress, score = (jobs[0].progress_name[1], jobs[0].score_name[1]) if jobs else ("progress", "score")
    cells = [
        (
            s.name, s.state, f"{_number(s.progress, 0)}/{s.total:.0f}", _number(s.valid_loss, job.digits),
            _number(s.score, job.digits), duration(s.seconds_left),
        )
        for s, job in zip(found, jobs, strict=True)
    ]  # fmt: skip
    head = ("run", "state", progress, "validation", score, "time left")
    lines = [tabulate(cells, head, tablefmt="plain", disable_numparse=True)]
    lines += [f"{s.name} failed: {s.error}" for s in found if s.error]
    states = [s.state for s in found]
    lines.append(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))))
    return "\n".join(lines)
