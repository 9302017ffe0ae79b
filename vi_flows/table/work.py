"""Runs from their beginning, or from where they were stopped, to their records."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from vi_flows.records import Record
from vi_flows.settings import NonNegative, Positive, check_settings
from vi_flows.table.claim import Claim, HeldError, is_held
from vi_flows.table.plan import Job, Workplace
from vi_flows.training import Run, TrainingInterrupted
from vi_flows.training.captured import trainer_for
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.stacked import StackedTrainer, stacks_of
from vi_flows.training.tasks.vae import VAEEvaluationSettings
from vi_flows.vae import AISSettings

__all__ = ["DONE", "FAILED", "HELD", "Machine", "run_in_process", "work"]

DONE, FAILED, HELD = 0, 1, 3
"""Exit codes of a job's process; stopped ones have 128 plus the signal's number."""


@dataclass(frozen=True)
class Machine:
    """What computes."""

    device: str = "cpu"
    """Torch device; processes share a GPU."""
    cuda_graph: bool = True
    """Record training steps on a GPU and replay them."""
    num_samples: Positive = 5000
    """Importance samples a test image."""
    ais_images: NonNegative = 0
    """Anneal the first so many test images too (AIS, with the settings of `vi-flows evaluate --ais`); 0 for none."""

    stack: Positive = 1
    """Seeds of a row that one process trains as one stacked model; it can't be recorded on a GPU."""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def records_steps(self) -> bool:
        """Whether training steps are recorded and replayed."""
        return self.cuda_graph and self.stack == 1 and self.device.startswith("cuda")


def work(jobs: Sequence[Job], workplace: Workplace, machine: Machine) -> dict[str, Record]:
    """Train what is not trained, evaluate what has no record.

    Args:
        jobs: one, or several that differ in their seeds and are trained as one stacked model; those that another
            process holds are left to it.
        workplace: where.
        machine: by what.

    Returns:
        The new records by the jobs' names; a job whose record was there has none.

    Raises:
        HeldError: another process works on every one of them.
        RunError: see :meth:`~vi_flows.table.plan.Job.open`.
    """
    with ExitStack() as held:
        mine = [job for job in jobs if _claimed(job, workplace, held)]
        if not mine:
            raise HeldError(f"another process works on {', '.join(job.name for job in jobs)}")
        _note(mine, workplace, "training", device=machine.device)
        runs = {job.name: job.open(workplace, machine.device, machine.records_steps) for job in mine}
        for group in stacks_of(runs.values(), machine.stack):
            _train(group)
        records = {}
        for job in mine:
            path = job.record(workplace)
            if not path.exists():
                _note([job], workplace, "evaluating", device=machine.device)
                records[job.name] = _evaluate(job, runs[job.name], path, machine)
            _note([job], workplace, "done")
        return records


def _claimed(job: Job, workplace: Workplace, held: ExitStack) -> bool:
    try:
        held.enter_context(Claim(workplace.runs, job.name).held())
    except HeldError:
        return False
    return True


def _note(jobs: Iterable[Job], workplace: Workplace, state: str, **more: Any) -> None:
    for job in jobs:
        Claim(workplace.runs, job.name).note(state, **more)


def _train(runs: list[Run]) -> None:
    with ExitStack() as locks:
        for run in runs:
            locks.enter_context(run.locked())
        trainer = trainer_for(runs[0], progress=False) if len(runs) == 1 else StackedTrainer(runs, progress=False)
        trainer.resume()
        trainer.fit()


def _evaluate(job: Job, run: Run, path: Path, machine: Machine) -> Record:
    ais = AISSettings(images=machine.ais_images) if machine.ais_images else None
    settings = VAEEvaluationSettings(split=job.row.split, num_samples=machine.num_samples, ais=ais)
    record, _ = evaluate_run(run, settings, record=path, progress=False, paper_row=job.row.paper_row)
    return record


def run_in_process(jobs: Sequence[Job], workplace: Workplace, machine: Machine) -> None:
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
    for name, record in records.items():
        figures = record.figures
        low, high = figures["interval"]
        print(f"{name}: NLL {figures['nll']:.3f} [{low:.3f}, {high:.3f}], ELBO {figures['elbo']:.3f}", flush=True)
    raise SystemExit(DONE)


def _unfinished(jobs: Iterable[Job], workplace: Workplace) -> list[Job]:
    """The jobs without a record that no other process works on."""
    return [job for job in jobs if not job.record(workplace).exists() and not is_held(workplace.runs, job.name)]


def _stop(number: int, frame: FrameType | None) -> None:
    # Outside of training, where the trainer itself listens. Files are written in one step, so that any moment will do.
    raise TrainingInterrupted(number)


def _stop_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
