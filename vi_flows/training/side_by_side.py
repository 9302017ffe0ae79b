"""Many runs on one machine: stacks of models that differ in their seeds, in processes side by side, one thread each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vi_flows.training.captured import trainer_for
from vi_flows.training.checkpoint import load_tensors
from vi_flows.training.run import Run
from vi_flows.training.stacked import StackedTrainer

__all__ = ["is_finished", "run_jobs", "stacks_of", "train_stack"]


def _saved_state(run: Run) -> dict[str, Any]:
    path = run.folder / "checkpoint.safetensors"
    return load_tensors(path)[1] if path.exists() else {"step": 0, "finished": False}


def is_finished(run: Run) -> bool:
    """Whether a run was trained to its end."""
    return _saved_state(run)["finished"]


def stacks_of(runs: Iterable[Run], size: int) -> list[list[Run]]:
    """The unfinished runs in stacks: equal settings but for the seed, and stopped at the same step.

    Args:
        runs: any.
        size: most runs of a stack.

    Raises:
        ValueError: ``size`` is less than 1.
    """
    if size < 1:
        raise ValueError(f"a stack holds at least 1 run, got {size}")
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        state = _saved_state(run)
        if not state["finished"]:
            # what can't be stacked is a group of its own
            key = (replace(run.config, seed=0), state["step"], None if run.config.stackable else run.folder)
            groups.setdefault(key, []).append(run)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


def train_stack(folders: Sequence[Path], data_root: Path | None = None, progress: bool = True) -> list[dict[str, Any]]:
    """Train runs to their ends, from where they were stopped: one by itself, several as a stack.

    Args:
        folders: of the runs, see :func:`stacks_of`.
        data_root: where the data are now, if not where they were.
        progress: show a bar.

    Returns:
        The final bookkeeping of each.
    """
    runs = [Run.open(folder, data_root) for folder in folders]
    trainer = trainer_for(runs[0], progress) if len(runs) == 1 else StackedTrainer(runs, progress)
    trainer.resume()
    trainer.fit()
    return [trainer.state] if len(runs) == 1 else [member.state for member in trainer.members]


def run_jobs(
    function: Callable[..., Any],
    jobs: Sequence[tuple],
    processes: int = 1,
    done: Callable[[tuple, Any], None] | None = None,
) -> None:
    """Call ``function(*job)`` for every job, ``processes`` at a time, each in a process of its own with one thread.

    With one process the jobs run here, one after the other, and with the threads there are. A job that fails doesn't
    stop the others; an interruption does.

    Args:
        function: importable by name, as are its arguments.
        jobs: arguments.
        processes: how many at a time.
        done: called here with each job and what it returned.

    Raises:
        ValueError: ``processes`` is less than 1.
        ExceptionGroup: some jobs failed.
    """
    if processes < 1:
        raise ValueError(f"there must be at least 1 process, got {processes}")
    errors: list[Exception] = []

    def collect(job: tuple, result: Callable[[], Any]) -> None:
        try:
            value = result()
        except Exception as error:
            error.add_note(f"in {function.__name__}{job}")
            errors.append(error)
        else:
            if done is not None:
                done(job, value)

    if processes == 1 or len(jobs) < 2:
        for job in jobs:
            collect(job, lambda job=job: function(*job))
    else:
        context = multiprocessing.get_context("spawn")  # a fork would inherit the state of OpenMP's threads
        workers = min(processes, len(jobs))
        pool = ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,))
        try:
            futures = {pool.submit(function, *job): job for job in jobs}
            for future in as_completed(futures):
                collect(futures[future], future.result)
        finally:
            pool.shutdown(cancel_futures=True)
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(jobs)} jobs failed", errors)
