"""The row about training many models: model-steps a second of the table runner, and of one model at a time."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from vi_flows.bench.measure import Measurement
from vi_flows.bench.rows import Unavailable
from vi_flows.data import ImageData
from vi_flows.training import Run, Trainer, VAETrainConfig
from vi_flows.training.stacked import StackedTrainer
from vi_flows.vae import VAEConfig

__all__ = ["runner_over_one_at_a_time"]

STACK, PROCESSES = 4, 2
CONFIG = VAETrainConfig(vae=VAEConfig(), batch_size=100, epochs=10**6, threads=1)


@dataclass(frozen=True)
class _Lap:
    """What one process did: model-steps, and its seconds of CPU time and on the clock."""

    steps: int
    cpu: float
    wall: float


def _synthetic_images(rows: int = 5000) -> ImageData:
    """Binary images of MNIST's shape; their values don't change what a step costs."""
    pixels = torch.randint(0, 2, (rows, 784), dtype=torch.uint8)
    none = pixels[:0]
    return ImageData("synthetic", (1, 28, 28), 2, pixels, none, none, "static", "", "random bits")


def _serve(connection: Connection, config: VAETrainConfig, models: int) -> None:
    """Train ``models`` stacked models, or one alone, for as many seconds as each message says; answer with a lap."""
    torch.set_num_threads(1)
    data = _synthetic_images()
    with tempfile.TemporaryDirectory() as folder:
        runs = [Run.create(Path(folder) / str(seed), replace(config, seed=seed)) for seed in range(models)]
        for run in runs:
            run.data = data
        trainer = Trainer(runs[0], progress=False) if models == 1 else StackedTrainer(runs, progress=False)
        trainer.start()
        connection.send("ready")
        while (seconds := connection.recv()) is not None:
            batches, steps = trainer.batches(), 0
            wall, cpu = time.perf_counter(), time.process_time()
            while time.perf_counter() - wall < seconds:
                batch = next(batches, None)
                if batch is None:
                    batches = trainer.batches()
                    batch = next(batches)
                trainer.take_step(batch)
                steps += models
            connection.send(_Lap(steps, time.process_time() - cpu, time.perf_counter() - wall))


@contextmanager
def _workers(config: VAETrainConfig, models: int, count: int) -> Iterator[list[Connection]]:
    """Processes that wait for laps."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(count)]
    processes = [context.Process(target=_serve, args=(there, config, models), daemon=True) for _, there in pairs]
    for process in processes:
        process.start()
    for _, there in pairs:
        there.close()  # so that a process that dies is an error here, and no wait for ever
    connections = [here for here, _ in pairs]
    try:
        for connection in connections:
            connection.recv()
        yield connections
        for connection in connections:
            connection.send(None)
    except (EOFError, BrokenPipeError) as error:
        raise Unavailable("a training process died") from error
    finally:
        for process in processes:
            process.join(10)
            process.terminate()


def _laps(connections: list[Connection], seconds: float) -> list[_Lap]:
    """The same lap of all of them, at the same time."""
    for connection in connections:
        connection.send(seconds)
    return [connection.recv() for connection in connections]


def _throughput(laps: list[_Lap]) -> tuple[float, float]:
    """Model-steps a second of CPU time, summed over the processes, and a second on the clock."""
    return sum(lap.steps / lap.cpu for lap in laps), sum(lap.steps / lap.wall for lap in laps)


def runner_over_one_at_a_time(
    rounds: int, config: VAETrainConfig = CONFIG, stack: int = STACK, processes: int = PROCESSES, seconds: float = 2.0
) -> tuple[Measurement, str]:
    """Goal 7: ``processes`` stacks of ``stack`` models each, side by side, beside one model alone; one thread each.

    The two take turns. CPU time counts each process at the rate that it would have with a core for itself, while the
    processes do share caches and memory; the note gives the ratio on the clock too, which other programs on the
    machine lower.

    Args:
        rounds: pairs of laps.
        config: of the models.
        stack: models a process.
        processes: side by side, at most one a core.
        seconds: of a lap.
    """
    processes = min(
        processes, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with _workers(config, 1, 1) as alone, _workers(config, stack, processes) as side_by_side:
        for connections in (alone, side_by_side):
            _laps(connections, 0.25 * seconds)
        pairs = [(_throughput(_laps(alone, seconds)), _throughput(_laps(side_by_side, seconds))) for _ in range(rounds)]
    on_the_clock = statistics.median(many[1] / one[1] for one, many in pairs)
    measured = Measurement.of([1 / one[0] for one, _ in pairs], [1 / many[0] for _, many in pairs])
    name = config.vae.architecture.upper()
    return measured, (
        f"{name}, batch {config.batch_size}: {processes} processes of {stack} stacked models; ms a model-step; "
        f"on the clock {on_the_clock:.2f}"
    )
