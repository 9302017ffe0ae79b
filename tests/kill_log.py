"""Kills processes at random moments and looks whether anything is lost: ``python tests/kill_log.py --kills 100``.

In training, in the middle of writing a checkpoint, in evaluation and in a process of the table runner. After every few
kills the work is left to end, and its weights and figures must be those of a run that nobody stopped, bit for bit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from vi_flows.records import Clock, Record, provenance, row_key
from vi_flows.table import Machine, Selection, Workplace
from vi_flows.table.work import run_in_process
from vi_flows.training import Run, Trainer, VAETrainConfig, checkpoint
from vi_flows.training.checkpoint import load_tensors
from vi_flows.training.evaluate import evaluate_run
from vi_flows.vae import VAEConfig

CONFIG = VAETrainConfig(
    vae=VAEConfig(latent_dims=(8,), hidden_dims=((64, 64),)), epochs=4, batch_size=25, threads=1,
    checkpoint_seconds=0.05, ema_decay=0.99,
)  # fmt: skip
MOMENTS = ("training", "checkpoint", "evaluation", "table")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vi_flows.table.work"])


def train(folder: Path) -> None:
    """Start or go on, to the end."""
    trainer = Trainer(Run.open_or_create(folder, CONFIG), progress=False)
    with trainer.run.locked():
        trainer.resume()
        trainer.fit()


def train_and_die_writing(folder: Path, write: int, share: float) -> None:
    """As :func:`train`, killed in the given write of a checkpoint, with that share of the file on the disk."""
    whole, count = checkpoint.save_file, itertools.count()

    def part(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        whole(tensors, path, metadata=metadata)
        if next(count) == write:
            os.truncate(path, int(share * path.stat().st_size))
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = part
    train(folder)


def evaluate(folder: Path) -> None:
    """Write the record of a finished run."""
    evaluate_run(Run.open(folder), 500, limit=150, overwrite=True, progress=False)


def table(folder: Path) -> None:
    """What the table's runner starts for one row."""
    jobs = Selection(rows=("digits-g1-plain-clean",), epochs=4).jobs()
    run_in_process(jobs, place_of(folder), Machine(num_samples=50))


def place_of(folder: Path) -> Workplace:
    """Where a table's runs and records are."""
    return Workplace(runs=folder / "runs", results=folder / "results")


def outcome(folder: Path) -> dict[str, Any]:
    """All weights, and the figures of all records, by file.

    Raises:
        CheckpointError: weights are damaged.
        RecordError: a record is.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        tensors, _ = load_tensors(path)
        found |= {f"{path.name}:{name}": tensor for name, tensor in tensors.items()}
    for path in sorted(folder.rglob("results/*.json")):
        record = Record.read(path)
        found |= {f"figures:{name}": torch.from_numpy(scores) for name, scores in record.scores.items()}
    return found


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names of what is not the same to the bit."""
    return [
        name
        for name in sorted(mine.keys() | theirs.keys())
        if name not in mine or name not in theirs or not torch.equal(mine[name], theirs[name])
    ]


def step_on_disk(folder: Path) -> int | None:
    """Of the checkpoint that the next process goes on from; it must be whole."""
    paths = sorted(folder.rglob("checkpoint.safetensors"))
    return load_tensors(paths[0])[1]["step"] if paths else None


JOBS: dict[str, Callable[[Path], None]] = {
    "training": train, "checkpoint": train, "evaluation": evaluate, "table": table,
}  # fmt: skip


def start(target: Callable[..., None], *words: Any) -> Any:
    """The process, begun."""
    process = CONTEXT.Process(target=target, args=words)
    process.start()
    return process


def finish(target: Callable[..., None], folder: Path) -> float:
    """Run to the end, unharmed; seconds that it took.

    Raises:
        AssertionError: it failed.
    """
    begun = time.monotonic()
    process = start(target, folder)
    process.join()
    assert process.exitcode == 0, f"{target.__name__} in {folder} ended with {process.exitcode}"
    return time.monotonic() - begun


def kill_log(kills: int, seed: int, place: Path) -> list[dict[str, Any]]:
    """Kill so many processes; a row each, and in the last row before every end what the end was like.

    Raises:
        AssertionError: a process failed by itself.
        CheckpointError: a killed process left a damaged file under its own name.
    """
    draw, log = random.Random(seed), []
    finish(train, place / "trained")  # to be evaluated; it wakes the server too, so that the times below are right
    wanted: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    for number in itertools.count():
        if len(log) >= kills:
            return log
        moment = MOMENTS[number % len(MOMENTS)]
        job = JOBS[moment]
        folders = [place / f"{number}-{moment}", *([] if moment in wanted else [place / f"whole-{moment}"])]
        for folder in folders if moment == "evaluation" else []:
            shutil.copytree(place / "trained", folder)
        if moment not in wanted:
            seconds[moment] = finish(job, folders[1])
            wanted[moment] = outcome(folders[1])
        folder = folders[0]
        rows = []
        for _ in range(min(draw.randint(4, 10), kills - len(log))):
            if moment == "checkpoint":
                process = start(train_and_die_writing, folder, draw.randint(0, 3), draw.random())
                process.join()
            else:
                process = start(job, folder)
                process.join(draw.uniform(0, 0.9 * seconds[moment]))
                process.kill()
                process.join()
            if process.exitcode != -signal.SIGKILL:
                assert process.exitcode == 0
                break  # it was quicker
            half = sorted(path.name for path in folder.rglob("*.tmp"))
            rows.append(
                {"moment": moment, "round": number, "step": step_on_disk(folder), "left": half, "files": files(folder)}
            )
        finish(job, folder)
        left = sorted(path.name for path in folder.rglob("*.tmp"))
        other = differences(outcome(folder), wanted[moment])
        for row in rows:
            row |= {"equal": not other, "different": other[:3], "left_at_the_end": left}
        log += rows


def files(folder: Path) -> list[str]:
    """Names of all that is on the disk."""
    return sorted(path.name for path in [*folder.rglob("*.safetensors"), *folder.rglob("*.json")])


def to_record(log: list[dict[str, Any]], kills: int, seed: int, clock: Clock) -> Record:
    """The log and its sums."""
    settings = {"kills": kills, "seed": seed}
    figures = {
        "kills": len(log),
        "by_moment": dict(Counter(row["moment"] for row in log)),
        "rounds": len({row["round"] for row in log}),
        "kills_that_left_a_part_of_a_file": sum(bool(row["left"]) for row in log),
        "rounds_with_parts_at_the_end": len({row["round"] for row in log if row["left_at_the_end"]}),
        "rounds_that_ended_otherwise": len({row["round"] for row in log if not row["equal"]}),
        "log": log,
    }
    return Record(
        kind="kill-log", key=row_key("kill-log", settings), label=f"{len(log)} SIGKILLs on the digits",
        settings=settings, figures=figures, provenance=provenance(clock=clock),
    )  # fmt: skip


def main() -> int:
    """Kill, print the table, write the record; exit code 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="where to write the record, e.g. experiments/results/kill-log.json")
    options = parser.parse_args()
    clock = Clock()
    with tempfile.TemporaryDirectory() as place:
        log = kill_log(options.kills, options.seed, Path(place))
    record = to_record(log, options.kills, options.seed, clock)
    if options.record is not None:
        record.write(options.record, overwrite=True)
    head = ("moment", "round", "step on disk", "left half-written", "same end")
    rows = [
        (row["moment"], row["round"], row["step"], ", ".join(row["left"]), "yes" if row["equal"] else row["different"])
        for row in log
    ]
    print(tabulate(rows, head))
    print(json.dumps({name: value for name, value in record.figures.items() if name != "log"}, indent=2))
    figures = record.figures
    return int(figures["rounds_that_ended_otherwise"] > 0 or figures["rounds_with_parts_at_the_end"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
