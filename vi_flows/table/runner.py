"""Works through a list of runs with several processes, beside other runners on the same list."""

from __future__ import annotations

import math
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from types import FrameType
from typing import Any

from vi_flows.table.claim import is_held, last_note
from vi_flows.table.job import Computer, Job, Workplace
from vi_flows.table.status import duration, status_of
from vi_flows.table.work import DONE, HELD, OUT_OF_TIME, run_in_process
from vi_flows.training import TrainingInterrupted

__all__ = ["Outcome", "Runner", "work_through"]

POLL_SECONDS = 5.0
PROJECTED_AT = 0.02  # of a training: its speed is known, and hardly any of it is over

# A fork of this process would inherit the state of OpenMP's threads, of autograd and of the GPU. The server has
# imported all that the runs need and used nothing of it, so that its forks begin at once.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["__main__", "vi_flows.table.server"])


class Outcome:
    """What became of the jobs.

    Attributes:
        done: names of the jobs that have a record, made now or before.
        failed: what was wrong, by name.
        held: names of the jobs that other processes work on, and of those that wait for them.
        left: names of the jobs that were stopped, or not begun, since the time was up.
    """

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failed: dict[str, str] = {}
        self.held: list[str] = []
        self.left: list[str] = []


class Runner:
    """Runs jobs in processes of their own, so that a crash of one ends no other.

    Jobs with a record are never repeated; jobs that another runner's process holds are left to it, and a job that
    starts from another one's weights waits for them. A job that fails is reported, and the others go on.

    Args:
        jobs: each after the one that it starts from.
        workplace: where runs and records are.
        machine: what computes.
        processes: jobs at a time.
        wall_seconds: time after which nothing more is begun.

    Raises:
        ValueError: ``processes`` is less than 1.
    """

    def __init__(
        self,
        jobs: Sequence[Job[Any]],
        workplace: Workplace,
        machine: Computer,
        processes: int = 1,
        wall_seconds: float = math.inf,
    ) -> None:
        if processes < 1:
            raise ValueError(f"there must be at least 1 process, got {processes}")
        self.pending = {job.name: job for job in jobs}
        self.workplace = workplace
        self.machine = machine
        self.processes = processes
        self._ends = time.monotonic() + wall_seconds
        self.outcome = Outcome()
        self._projected: set[str] = set()
        self._running: list[tuple[list[Job[Any]], ForkServerProcess]] = []
        self._stopped: int | None = None

    def run(self) -> Outcome:
        """Work until nothing is left that this runner can do.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM; every process has written its checkpoint.
        """
        # What the server starts ignores a Ctrl-C in the terminal, as it does, until it listens itself.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)
        with self._listening():
            while True:
                over = self._stopped is not None or time.monotonic() > self._ends
                if not over:
                    self._start_what_can_be()
                if not self._running and (over or not self._waits_for_others()):
                    break
                wait([process.sentinel for _, process in self._running], timeout=POLL_SECONDS)
                self._project()
                self._collect()
        if self._stopped is not None:
            raise TrainingInterrupted(self._stopped)
        (self.outcome.left if over else self.outcome.held).extend(self.pending)
        return self.outcome

    def _start_what_can_be(self) -> None:
        # A run whose record came without its weights is trained again if another one starts from them.
        wanted = {
            job.source.name for job in self.pending.values() if job.source is not None and not self._has_record(job)
        }
        for name, job in list(self.pending.items()):
            if name not in self.pending:  # begun with another seed
                continue
            differs = job.record_differs(self.workplace) if self._has_record(job) else ""
            if differs:
                del self.pending[name]
                self.outcome.failed[name] = f"{job.record(self.workplace)} is of a run with {differs}: move it away"
            elif self._has_record(job) and (name not in wanted or job.is_trained(self.workplace)):
                del self.pending[name]
                self.outcome.done.append(name)
            elif job.source is not None and job.source.name in self.outcome.failed:
                del self.pending[name]
                self.outcome.failed[name] = f"it starts from {job.source.name}, which failed"
            elif len(self._running) < self.processes and self._is_free(job):
                self._start([job, *self._others_of_its_stack(job)])

    def _others_of_its_stack(self, job: Job[Any]) -> list[Job[Any]]:
        """Jobs that can be trained with ``job``."""
        if job.stack_key is None:
            return []
        same = [
            other
            for other in self.pending.values()
            if other.stack_key == job.stack_key
            and other is not job
            and not self._has_record(other)
            and self._is_free(other)
        ]
        return same[: self.machine.stack - 1]

    def _has_record(self, job: Job[Any]) -> bool:
        return job.has_record(self.workplace)

    def _is_free(self, job: Job[Any]) -> bool:
        ready = job.source is None or job.source.is_trained(self.workplace)
        return ready and not is_held(self.workplace.runs, job.name)

    def _waits_for_others(self) -> bool:
        """Whether a job that is left starts from a run that another process is making."""
        return any(
            job.source is not None and is_held(self.workplace.runs, job.source.name) for job in self.pending.values()
        )

    def _start(self, jobs: list[Job[Any]]) -> None:
        process = _CONTEXT.Process(target=run_in_process, args=(jobs, self.workplace, self.machine))
        process.start()  # which the first time waits for the server's imports
        self._running.append((jobs, process))
        if self._stopped is not None:  # meanwhile
            process.terminate()
        for job in jobs:
            del self.pending[job.name]
            print(f"{job.name}: begun", flush=True)

    def _project(self) -> None:
        """Say of each run, once, how long its training will take."""
        for job in [job for jobs, _ in self._running for job in jobs if job.name not in self._projected]:
            status = status_of(job, self.workplace)
            if status.progress >= PROJECTED_AT * job.total and not math.isnan(status.seconds_left):
                self._projected.add(job.name)
                print(
                    f"{job.name}: {job.progress_name[1]} {status.progress:.0f} of {status.total:.0f}, about "
                    f"{duration(status.seconds_left)} of training left",
                    flush=True,
                )

    def _collect(self) -> None:
        for pair in [pair for pair in self._running if not pair[1].is_alive()]:
            self._running.remove(pair)
            jobs, process = pair
            for job in jobs:
                self._enter(job, process.exitcode)

    def _enter(self, job: Job[Any], code: int | None) -> None:
        name = job.name
        if self._has_record(job) and code == DONE:
            self.outcome.done.append(name)
        elif code in (DONE, HELD):  # another runner was quicker
            self.pending[name] = job
        elif code == OUT_OF_TIME:
            self.outcome.left.append(name)
            print(f"{name}: stopped, its time is up", flush=True)
        elif self._stopped is None or code not in (128 + signal.SIGTERM, -signal.SIGTERM):
            note = last_note(self.workplace.runs, name)
            reason = note["error"] if note["state"] == "failed" else _ending(code)
            self.outcome.failed[name] = reason
            print(f"{name}: failed: {reason}", flush=True)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Pass SIGINT and SIGTERM on to the processes, and wait for them."""

        def note(number: int, frame: FrameType | None) -> None:
            self._stopped = number
            for _, process in self._running:
                process.terminate()

        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            for _, process in self._running:
                process.terminate()


def work_through(
    jobs: Sequence[Job[Any]],
    workplace: Workplace,
    machine: Computer,
    processes: int = 1,
    wall_seconds: float = math.inf,
) -> int:
    """Run jobs and print what became of them; arguments as for :class:`Runner`.

    Returns:
        An exit code: 0; 1 where something failed or is left; 128 plus the signal's number where one stopped it.
    """
    there = sum(job.has_record(workplace) for job in jobs)
    if there:
        print(
            f"{there} of {len(jobs)} runs have a record already, which stays as it is, whatever samples or annealing "
            "are asked for now; move it away to evaluate anew"
        )
    try:
        outcome = Runner(jobs, workplace, machine, processes, wall_seconds).run()
    except TrainingInterrupted as stopped:
        print("stopped; every run has its checkpoint, the same command goes on", file=sys.stderr)
        return 128 + stopped.number
    print(f"{len(outcome.done)} of {len(jobs)} runs are done", end="")
    print(f"; other processes work on {len(outcome.held)}" if outcome.held else "", end="")
    print(f"; the same command goes on with {len(outcome.left)}" if outcome.left else "")
    for name, reason in outcome.failed.items():
        print(f"{name} failed: {reason}", file=sys.stderr)
    return 1 if outcome.failed or outcome.left else 0


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with code {code}"
