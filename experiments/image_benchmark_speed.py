"""How many training steps a CPU second holds, row by row; see ``image_benchmark.py``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from image_benchmark_rows import Benchmark
from tabulate import tabulate

from vi_flows.training import Run, Trainer

REFERENCE = "glow"
"""The row whose steps are taken as given where another's are counted."""


def steps_per_second(
    benchmark: Benchmark, rows: Sequence[str], seconds: float, rounds: int, data_root: Path | None
) -> dict[str, float]:
    """Training steps a CPU second of this machine, the most of ``rounds`` measures of ``seconds`` each.

    The rows take turns, and the best round counts: what else the machine does only ever makes it slower.
    """
    found = dict.fromkeys(rows, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {}
        for row in rows:
            config = replace(benchmark.config(row, 0, data_root), valid_images=1)
            trainers[row] = Trainer(Run.create(Path(folder) / row, config), progress=False)
            trainers[row].start()
            _pace(trainers[row], 0.0)  # the first step allocates
        for _ in range(rounds):
            for row, trainer in trainers.items():
                found[row] = max(found[row], _pace(trainer, seconds))
    return found


def _pace(trainer: Trainer, seconds: float) -> float:
    trainer.module.train()
    began, first = time.process_time(), trainer.state["step"]
    for batch in trainer.batches():
        trainer.take_step(batch)
        if time.process_time() - began >= seconds:
            break
    return (trainer.state["step"] - first) / (time.process_time() - began)


def speed_table(benchmark: Benchmark, found: dict[str, float]) -> str:
    """Steps a second, the table's steps, and their worth: equal for all rows where computation is equal.

    The last two columns say how many CPU seconds of this machine a row's steps take, and how many steps would take as
    long as those of :data:`REFERENCE`.
    """
    seconds = {row: benchmark.rows[row].steps / pace for row, pace in found.items()}
    reference = seconds.get(REFERENCE)
    lines = [
        (row, pace, benchmark.rows[row].steps, seconds[row], None if reference is None else pace * reference)
        for row, pace in found.items()
    ]
    head = ("row", "steps a CPU s", "steps of the table", "CPU s here", f"steps as long as {REFERENCE}'s")
    return tabulate(lines, head, floatfmt=(".0f", ".2f", ".0f", ".0f", ".0f"), missingval="–")
