"""Kills processes at random moments and looks whether anything is lost: ``python tests/kill_log.py --kills 100``.

In the training of a VAE and of a Glow after their first checkpoint, in a training that goes on from the checkpoint
before the last, which was damaged, in the middle of writing a checkpoint or a line of metrics, in evaluation, in a
process of the table runner, and the runner itself, whose process has to stop and to save by itself then. After every
few kills the work is left to end, and its weights and figures must be those of a run that nobody stopped, bit for bit.
"""

from __future__ import annotations

import argparse
import dataclasses
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

from vi_flows.distributions.image_config import image_config
from vi_flows.records import Clock, Record, provenance, row_key, to_json
from vi_flows.table import Machine, Selection, Workplace
from vi_flows.table.claim import is_held
from vi_flows.table.runner import Runner
from vi_flows.table.vae_job import VAEJob
from vi_flows.table.work import run_in_process
from vi_flows.training import ImageTrainConfig, Run, TrainConfig, Trainer, VAETrainConfig, checkpoint
from vi_flows.training import log as metrics_log  # its to_json is where a line of metrics is made
from vi_flows.training.checkpoint import CheckpointError, Checkpoints, load_tensors
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.vae import VAEEvaluationSettings, VAETask
from vi_flows.vae import VAEConfig

VAE = VAETrainConfig(
    vae=VAEConfig(latent_dims=(8,), hidden_dims=((64, 64),)), epochs=12, batch_size=25, threads=1,
    checkpoint_seconds=0.05, ema_decay=0.99,
)  # fmt: skip
GLOW = ImageTrainConfig(
    image=image_config("glow", num_levels=1, num_steps=2, width=8), epochs=2, batch_size=50, threads=1,
    checkpoint_seconds=0.05,
)  # fmt: skip
MOMENTS = ("training", "glow", "previous", "checkpoint", "metrics", "evaluation", "table", "runner")
ROW = "digits-g1-plain-clean"
PATIENCE = 300.0  # seconds until a process that doesn't begin, or doesn't stop with its parent, is an error
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vi_flows.table.work"])


def mark_of(folder: Path) -> Path:
    """The file, beside the folder, that a process makes when it is where it can be killed."""
    return folder.with_name(folder.name + ".going")


def announce(going: Path) -> None:
    """Say so when this process trains from a checkpoint on the disk, or evaluates."""
    fit, score = Trainer._fit, VAETask.evaluate

    def train_on(trainer: Trainer, until: int | None) -> dict[str, Any]:
        going.touch()
        return fit(trainer, until)

    def evaluate_on(task: VAETask, *words: Any) -> Any:
        going.touch()
        return score(task, *words)

    Trainer._fit, VAETask.evaluate = train_on, evaluate_on


def train_by(config: TrainConfig, folder: Path, going: Path) -> None:
    """Start or go on, to the end."""
    announce(going)
    trainer = Trainer(Run.open_or_create(folder, config), progress=False)
    with trainer.run.locked():
        trainer.resume()
        trainer.fit()


def train(folder: Path, going: Path) -> None:
    """A VAE, with an average of its weights."""
    train_by(VAE, folder, going)


def train_glow(folder: Path, going: Path) -> None:
    """A Glow, whose first step looks at the data."""
    train_by(GLOW, folder, going)


def train_from_previous(folder: Path, going: Path) -> None:
    """As :func:`train`, from the checkpoint before the last, which is damaged."""
    checkpoints = Checkpoints(folder)
    if checkpoints.previous.exists():
        damage(checkpoints.newest)
        checkpoints.go_back()
    train(folder, going)


def damage(path: Path) -> None:
    """Flip a bit in the middle.

    Raises:
        AssertionError: nobody would notice.
    """
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    try:
        load_tensors(path)
    except CheckpointError:
        return
    raise AssertionError(f"{path} is damaged, and is read without a word")


def train_and_die_writing(folder: Path, write: int, share: float) -> None:
    """As :func:`train`, killed in a write of a checkpoint after the first, with that share of the file on the disk."""
    whole, count = checkpoint.save_file, itertools.count(0 if (folder / "checkpoint.safetensors").exists() else -1)

    def part(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        whole(tensors, path, metadata=metadata)
        if next(count) == write:
            os.truncate(path, int(share * path.stat().st_size))
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = part
    train(folder, mark_of(folder))


def train_and_die_in_a_line(folder: Path, write: int, share: float) -> None:
    """As :func:`train`, killed when that share of a line of metrics is on the disk."""
    count = itertools.count()

    def part(entry: dict[str, Any]) -> str:
        line = to_json(entry)
        if next(count) == write:
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write((line + "\n")[: int(share * (len(line) + 2))])
            os.kill(os.getpid(), signal.SIGKILL)
        return line

    metrics_log.to_json = part
    train(folder, mark_of(folder))


def evaluate(folder: Path, going: Path) -> None:
    """Write the record of a finished run."""
    announce(going)
    evaluate_run(Run.open(folder), VAEEvaluationSettings(limit=150, num_samples=500), overwrite=True, progress=False)


def table(folder: Path, going: Path) -> None:
    """What the table's runner starts for one row, with more checkpoints than it would write."""
    announce(going)
    planned = VAEJob.config

    def often(job: VAEJob, *words: Any) -> VAETrainConfig:
        return dataclasses.replace(planned(job, *words), checkpoint_seconds=0.05)

    VAEJob.config = often
    run_in_process(jobs(), place_of(folder), Machine(num_samples=50))


def runner(folder: Path, going: Path) -> None:
    """The table's runner."""
    going.touch()
    outcome = Runner(jobs(), place_of(folder), Machine(num_samples=50)).run()
    assert not outcome.failed, outcome.failed


def jobs() -> list[VAEJob]:
    """Of the table."""
    return Selection(rows=(ROW,), epochs=4).jobs()


def place_of(folder: Path) -> Workplace:
    """Where a table's runs and records are."""
    return Workplace(runs=folder / "runs", results=folder / "results")


def outcome(folder: Path) -> dict[str, Any]:
    """All weights but those of the previous checkpoint, and the figures of all records, by file.

    Raises:
        CheckpointError: weights are damaged.
        RecordError: a record is.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        tensors, _ = load_tensors(path)
        if path.name == "previous.safetensors":  # of a step that depends on the clock
            continue
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


JOBS: dict[str, Callable[[Path, Path], None]] = {
    "training": train, "glow": train_glow, "previous": train_from_previous, "checkpoint": train, "metrics": train,
    "evaluation": evaluate, "table": table, "runner": runner,
}  # fmt: skip
"""What is left to end, by moment."""
DEATHS = {"checkpoint": train_and_die_writing, "metrics": train_and_die_in_a_line}
"""Processes that kill themselves where a kill from outside would hardly ever fall."""


def start(target: Callable[..., None], *words: Any) -> Any:
    """The process, begun."""
    process = CONTEXT.Process(target=target, args=words)
    process.start()
    return process


def finish(target: Callable[[Path, Path], None], folder: Path) -> float:
    """Run to the end, unharmed; seconds from where it could have been killed.

    Raises:
        AssertionError: it failed.
    """
    going = mark_of(folder)
    going.unlink(missing_ok=True)
    process = start(target, folder, going)
    wait_for(going.exists, process)
    begun = time.monotonic()
    process.join()
    assert process.exitcode == 0, f"{target.__name__} in {folder} ended with {process.exitcode}"
    return time.monotonic() - begun


def wait_for(ready: Callable[[], bool], process: Any = None) -> None:
    """Until it is, or the process has ended.

    Raises:
        AssertionError: it takes too long.
    """
    end = time.monotonic() + PATIENCE
    while not ready() and (process is None or process.is_alive()):
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.002)


def kill_at(moment: str, folder: Path, draw: random.Random, seconds: float) -> bool:
    """Start the work and kill it; ``False`` where it had ended before.

    Args:
        moment: which work.
        folder: of it.
        draw: the time.
        seconds: that the work takes without an interruption.
    """
    if moment in DEATHS:
        whole = draw.random() < 0.25  # complete, but without its name as yet
        process = start(DEATHS[moment], folder, draw.randint(0, 3), 1.0 if whole else draw.random())
    else:
        going = mark_of(folder)
        going.unlink(missing_ok=True)
        process = start(JOBS[moment], folder, going)
        wait_for(going.exists, process)
        if moment == "runner":  # its own process begins later
            wait_for(lambda: any(folder.rglob("checkpoint.safetensors")), process)
            wait_for(lambda: is_held(folder / "runs", jobs()[0].name), process)
        process.join(draw.uniform(0, 0.5 * seconds))
        process.kill()
    process.join()
    if moment == "runner":
        wait_for(lambda: not is_held(folder / "runs", jobs()[0].name))
    assert process.exitcode in (0, -signal.SIGKILL), f"{moment} in {folder} ended with {process.exitcode}"
    return process.exitcode != 0


def kill_log(kills: int, seed: int, place: Path, moments: tuple[str, ...] = MOMENTS) -> list[dict[str, Any]]:
    """Kill so many processes, and look how the work ends after every few of them.

    Args:
        kills: how many.
        seed: of the moments.
        place: an empty folder.
        moments: which work, in turn.

    Returns:
        A row a kill.

    Raises:
        AssertionError: a process failed by itself.
        CheckpointError: a killed process left a damaged file under its own name.
    """
    draw, log = random.Random(seed), []
    finish(train, place / "trained")  # to be evaluated
    wanted: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    for number in itertools.count():
        if len(log) >= kills:
            return log
        moment = moments[number % len(moments)]
        job = JOBS[moment]
        folder, whole = place / f"{number}-{moment}", place / f"whole-{moment}"
        for new in (folder, whole) if moment == "evaluation" else ():
            shutil.copytree(place / "trained", new, dirs_exist_ok=True)
        if moment not in wanted:
            seconds[moment] = finish(job, whole)
            wanted[moment] = outcome(whole)
        rows: list[dict[str, Any]] = []
        for _ in range(min(draw.randint(3, 6), kills - len(log))):
            if not kill_at(moment, folder, draw, seconds[moment]):
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
        shutil.rmtree(folder)


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
        "kills_with_a_checkpoint_to_go_on_from": sum(row["step"] is not None for row in log),
        "kills_after_the_first_step": sum(bool(row["step"]) for row in log),
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
