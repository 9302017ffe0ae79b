"""One run from its beginning, or from where it was stopped, to its record."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import traceback
from dataclasses import dataclass
from multiprocessing import parent_process
from types import FrameType

import torch

from vi_flows.records import Record
from vi_flows.settings import NonNegative, Positive, check_settings
from vi_flows.table.claim import Claim, HeldError
from vi_flows.table.plan import Job, Workplace
from vi_flows.training import Run, RunError, TrainingInterrupted
from vi_flows.training.captured import trainer_for
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.side_by_side import is_finished
from vi_flows.vae import AISSettings

__all__ = ["DONE", "FAILED", "HELD", "Machine", "open_run", "run_in_process", "work"]

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

    def __post_init__(self) -> None:
        check_settings(self)


def open_run(job: Job, workplace: Workplace, machine: Machine) -> Run:
    """The job's run, new or as it was left.

    Raises:
        RunError: it was begun with other settings, or on another kind of device, whose draws would go on differently.
    """
    folder = job.folder(workplace)
    planned = job.config(workplace, machine.device, machine.cuda_graph and machine.device.startswith("cuda"))
    if not (folder / "config.json").exists():
        return Run.create(folder, planned)
    run = Run.open(folder, workplace.data_root)
    for item in dataclasses.fields(planned):
        mine, asked = getattr(run.config, item.name), getattr(planned, item.name)
        if item.name not in planned.of_the_machine and mine != asked:
            raise RunError(f"{folder} was begun with {item.name}={mine!r}, and the row has {asked!r}")
    begun_on = run.config.device.partition(":")[0]
    if begun_on != machine.device.partition(":")[0] and not is_finished(run):
        raise RunError(f"{folder} was begun on {begun_on}: go on with --device {begun_on}, or delete the folder")
    return Run(folder, dataclasses.replace(run.config, device=machine.device, cuda_graph=planned.cuda_graph))


def work(job: Job, workplace: Workplace, machine: Machine) -> Record | None:
    """Train what is not trained, evaluate what has no record.

    Args:
        job: what.
        workplace: where.
        machine: by what.

    Returns:
        The record, or ``None`` if there was one already (and only its weights were missing).

    Raises:
        HeldError: another process works on the run.
        RunError: see :func:`open_run`.
    """
    with Claim(workplace.runs, job.name).held() as claim:
        claim.note("training", device=machine.device)
        run = open_run(job, workplace, machine)
        if not is_finished(run):
            with run.locked():
                trainer = trainer_for(run, progress=False)
                trainer.resume()
                trainer.fit()
        path, record = job.record(workplace), None
        if not path.exists():
            claim.note("evaluating", device=machine.device)
            ais = AISSettings(images=machine.ais_images) if machine.ais_images else None
            record, _ = evaluate_run(
                run,
                machine.num_samples,
                split=job.row.split,
                ais=ais,
                record=path,
                progress=False,
                paper_row=job.row.paper_row,
            )
        claim.note("done")
        return record


def run_in_process(job: Job, workplace: Workplace, machine: Machine) -> None:
    """The body of a job's own process; exits with one of the codes above.

    It stops, resumably, at SIGTERM and when its parent has died. A Ctrl-C in the terminal is the parent's to pass on.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    claim = Claim(workplace.runs, job.name)
    try:
        record = work(job, workplace, machine)
    except HeldError:
        raise SystemExit(HELD) from None
    except TrainingInterrupted as stopped:
        claim.note("stopped")
        raise SystemExit(128 + stopped.number) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGTERM) from None
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else repr(error)
        reason = first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"
        claim.note("failed", error=reason, traceback=traceback.format_exc())
        raise SystemExit(FAILED) from error
    if record is not None:
        figures = record.figures
        low, high = figures["interval"]
        print(f"{job.name}: NLL {figures['nll']:.3f} [{low:.3f}, {high:.3f}], ELBO {figures['elbo']:.3f}", flush=True)
    raise SystemExit(DONE)


def _stop(number: int, frame: FrameType | None) -> None:
    # Outside of training, where the trainer itself listens. Files are written in one step, so that any moment will do.
    raise TrainingInterrupted(number)


def _stop_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
