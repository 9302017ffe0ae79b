"""Runs from their beginning, or from where they were stopped, to their records."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from multiprocessing import parent_process
from types import FrameType
from typing import Any

import torch

from vi_flows.records import Record
from vi_flows.table.claim import Claim, HeldError, is_held
from vi_flows.table.job import Computer, Job, OutOfTimeError, Workplace
from vi_flows.training import TrainingInterrupted

__all__ = ["DONE", "FAILED", "HELD", "OUT_OF_TIME", "run_in_process", "work"]

DONE, FAILED, HELD, OUT_OF_TIME = 0, 1, 3, 4
"""Exit codes of a job's process; stopped ones have 128 plus the signal's number."""


def work(jobs: Sequence[Job[Any]], workplace: Workplace, machine: Computer) -> dict[str, Record]:
    """Train what is not trained, evaluate what has no record.

    Args:
        jobs: one, or several that are trained as one stacked model; those that another process holds are left to it.
        workplace: where.
        machine: by what.

    Returns:
        The new records by the jobs' names; a job whose record was there has none.

    Raises:
        HeldError: another process works on every one of them.
        OutOfTimeError, RunError: see :meth:`~vi_flows.table.job.Job.train`.
    """
    with ExitStack() as held:
        mine = [job for job in jobs if _claimed(job, workplace, held)]
        if not mine:
            raise HeldError(f"another process works on {', '.join(job.name for job in jobs)}")
        _note(mine, workplace, "training", device=machine.device)
        mine[0].train(mine[1:], workplace, machine)
        records = {}
        for job in mine:
            if not job.has_record(workplace):
                _note([job], workplace, "evaluating", device=machine.device)
                records[job.name] = job.evaluate(workplace, machine)
            _note([job], workplace, "done")
        return records


def _claimed(job: Job[Any], workplace: Workplace, held: ExitStack) -> bool:
    try:
        held.enter_context(Claim(workplace.runs, job.name).held())
    except HeldError:
        return False
    return True


def _note(jobs: Iterable[Job[Any]], workplace: Workplace, state: str, **more: Any) -> None:
    for job in jobs:
        Claim(workplace.runs, job.name).note(state, **more)


def run_in_process(jobs: Sequence[Job[Any]], workplace: Workplace, machine: Computer) -> None:
    """The body of the jobs' own process; exits with one of the codes above.

    It stops, resumably, at SIGTERM and when its parent has died. A Ctrl-C in the terminal is the parent's to pass on.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        records = work(jobs, workplace, machine)
    except HeldError:
        raise SystemExit(HELD) from None
    except OutOfTimeError:
        _note(_unfinished(jobs, workplace), workplace, "stopped")
        raise SystemExit(OUT_OF_TIME) from None
    except TrainingInterrupted as stopped:
        _note(_unfinished(jobs, workplace), workplace, "stopped")
        raise SystemExit(128 + stopped.number) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGTERM) from None
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else repr(error)
        reason = first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"
        _note(_unfinished(jobs, workplace), workplace, "failed", error=reason, traceback=traceback.format_exc())
        raise SystemExit(FAILED) from error
    for job in jobs:
        if job.name in records:
            print(f"{job.name}: {job.summary(records[job.name])}", flush=True)
    raise SystemExit(DONE)


def _unfinished(jobs: Iterable[Job[Any]], workplace: Workplace) -> list[Job[Any]]:
    """The jobs without a record that no other process works on."""
    return [job for job in jobs if not job.has_record(workplace) and not is_held(workplace.runs, job.name)]


def _stop(number: int, frame: FrameType | None) -> None:
    # Outside of training, where the trainer itself listens. Files are written in one step, so that any moment will do.
    raise TrainingInterrupted(number)


def _stop_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
