"""The small-compute benchmark of image flows: MNIST, a fixed budget of CPU time a run, at most 100 thousand parameters.

    python experiments/image_benchmark.py run --out runs/image_benchmark --processes 2
    python experiments/image_benchmark.py status --out runs/image_benchmark
    python experiments/image_benchmark.py evaluate --out runs/image_benchmark --processes 2
    python experiments/image_benchmark.py render --out runs/image_benchmark

A run is one row and one seed, trained by one process with one thread until its steps have used up the budget; the
learning rate follows the used share. All rows see the same images in the same order, in batches of 32. Validation
images choose the weights; the test images are scored once, 8 draws of the noise each. ``run`` does what is missing and
can be stopped and started at any time, on several machines over one folder too: whoever works on a run holds its lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from vi_flows.distributions.image_checks import check_samples, round_trip_error
from vi_flows.distributions.image_config import image_config
from vi_flows.records import Record, provenance, row_key
from vi_flows.training import ImageTrainConfig, Run, TrainingDivergedError, TrainingInterrupted
from vi_flows.training.budget import BudgetTrainer
from vi_flows.training.checkpoint import CheckpointError, load_tensors, save_tensors

RESULTS = Path(__file__).parent / "results" / "image_benchmark"
DATASET = "mnist"
MAX_PARAMETERS = 100_000
BUDGET_SECONDS = 1200.0
BATCH_SIZE = 32
NUM_DRAWS = 8
CHUNK = 250  # test images scored between two saves
TAKEN = 75  # exit code of a process that found its run in other hands

STEPS: dict[str, Any] = {"num_levels": 2, "num_steps": 6, "width": 52}
MASKED: dict[str, Any] = {"num_levels": 2, "num_couplings": 2, "width": 24, "num_blocks": 1}
OURS: dict[str, Any] = {"flow": "flow_pp", "num_levels": 2, "num_steps": 2, "conditioner": "gated"}
ROWS: dict[str, tuple[dict[str, Any], float]] = {
    "nice": ({"flow": "nice", "num_couplings": 4, "hidden_dims": (14, 14), "base": "logistic"}, 2e-3),
    "real_nvp": ({"flow": "real_nvp", "num_final": 0, **MASKED}, 5e-3),
    "mconv-cepstrum": ({"flow": "mconv", "filter": "cepstrum", **MASKED}, 5e-3),
    "mconv-kernel": ({"flow": "mconv", "filter": "kernel", **MASKED}, 5e-3),
    "mconv-cosine": ({"flow": "mconv", "filter": "cosine", **MASKED}, 5e-3),
    "glow": ({"flow": "glow", **STEPS}, 5e-3),
    "inv3x3-masked": ({"flow": "inv_conv3x3", "masked": True, **STEPS}, 5e-3),
    "inv3x3-block": ({"flow": "inv_conv3x3", **STEPS}, 5e-3),
    "inv3x3-quad": ({"flow": "inv_conv3x3", "coupling": "quad", **STEPS, "width": 28}, 5e-3),
    "emerging": ({"flow": "emerging", **STEPS}, 5e-3),
    "periodic": ({"flow": "periodic", **STEPS}, 5e-3),
    "finc": ({"flow": "finc", **STEPS}, 5e-3),
    "flow_pp-mixture": ({**OURS, "coupling": "quad_mixture", "width": 25}, 4e-3),
    "flow_pp-spline": ({**OURS, "coupling": "quad_spline", "width": 24}, 4e-3),
    "flow_pp-spline-vardeq": (
        {**OURS, "coupling": "quad_spline", "width": 22, "dequantization": "variational"}, 4e-3,
    ),
}  # fmt: skip
"""Rows by name: the flow, and the peak of Adam's learning rate."""


def run_config(row: str, seed: int, data_root: Path | None) -> ImageTrainConfig:
    """The settings of one run."""
    flow, learning_rate = ROWS[row]
    return ImageTrainConfig(
        dataset=DATASET, data_root=data_root, protocol="clean", image=image_config(**flow), seed=seed, threads=1,
        epochs=1000, batch_size=BATCH_SIZE, learning_rate=learning_rate, schedule="cosine", lr_warmup_steps=200,
        ema_decay=0.999, clip_norm=100.0, valid_images=1000,
    )  # fmt: skip


@dataclass(frozen=True)
class Common:
    """What every command is told."""

    out: Path = Path("runs/image_benchmark")
    """Folder of the runs."""
    rows: tuple[str, ...] = ()
    """Rows by name; none: all of them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; the first seed of every row comes before the second of any."""
    data_root: Path | None = None
    """Folder with the data files; default: VI_FLOWS_DATA."""

    def names(self) -> list[str]:
        """The runs in their order, ``row-s0``."""
        unknown = [row for row in self.rows if row not in ROWS]
        if unknown:
            raise SystemExit(f"unknown row {unknown[0]!r}; choose among {', '.join(ROWS)}")
        return [f"{row}-s{seed}" for seed in self.seeds for row in self.rows or ROWS]


@dataclass(frozen=True)
class Pool(Common):
    """Settings of the commands that start processes."""

    processes: int = 1
    """Runs at once, a process with one thread each."""
    shard: str = "1/1"
    """i/n: take every n-th run, from the i-th; for machines that share no folder."""
    budget_seconds: float = BUDGET_SECONDS
    """CPU seconds that the steps of a run may use."""
    wall_seconds: float = math.inf
    """Stop (and save) every run that is still training so long after the start."""
    evaluate_seconds: float = 60.0
    """CPU seconds for the scores of test images; the rest of the images is left to `evaluate`."""
    num_samples: int = 256
    """Samples drawn for the check of stability."""

    def mine(self) -> list[str]:
        """The runs of this shard.

        Raises:
            SystemExit: the shard is not of the form i/n.
        """
        try:
            index, count = (int(part) for part in self.shard.split("/"))
        except ValueError:
            index = count = 0
        if not 1 <= index <= count:
            raise SystemExit(f"--shard is i/n with 1 <= i <= n, such as 2/3; got {self.shard!r}")
        return self.names()[index - 1 :: count]

    def start(self, name: str, command: str, wall_seconds: float) -> subprocess.Popen[bytes]:
        """Work on one run in a process of its own."""
        one = [f"--name={name}", f"--command={command}", f"--out={self.out}"]
        one += [f"--budget-seconds={self.budget_seconds}", f"--wall-seconds={wall_seconds}"]
        one += [f"--evaluate-seconds={self.evaluate_seconds}", f"--num-samples={self.num_samples}"]
        one += [] if self.data_root is None else [f"--data-root={self.data_root}"]
        limits = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
        package = str(Path(__file__).resolve().parents[1])
        paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        folder = self.out / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (self.out / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, __file__, "one", *one],
                stdout=log, stderr=log, env={**os.environ, **limits, "PYTHONPATH": paths},
            )  # fmt: skip

    def work(self, command: str, left: list[str]) -> int:
        """Keep ``processes`` runs going until none is left; a signal is passed on and waited for."""
        began, running, failed, stopped = time.monotonic(), {}, [], []

        def stop(number: int, frame: object) -> None:
            stopped.append(number)
            for process in running.values():
                process.send_signal(signal.SIGTERM)

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while left or running:
                wall = self.wall_seconds - (time.monotonic() - began)
                while left and len(running) < self.processes and not stopped and wall > 0:
                    name = left.pop(0)
                    running[name] = self.start(name, command, wall)
                if stopped or wall <= 0:
                    left.clear()
                for name, process in list(running.items()):
                    if process.poll() is not None:
                        del running[name]
                        print(f"{name}: {state_of(self.out / name)}", flush=True)
                        if process.returncode not in (0, TAKEN):
                            failed.append(name)
                time.sleep(0.2)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        for name in failed:
            print(f"{name} did not finish; see {self.out / name}.log", file=sys.stderr)
        return 1 if failed else 0


@dataclass(frozen=True)
class RunAll(Pool):
    """Train and score what is missing."""

    def run(self) -> int:
        """Start the runs that have no record yet."""
        return self.work("run", [name for name in self.mine() if not (self.out / name / "record.json").exists()])


@dataclass(frozen=True)
class Evaluate(Pool):
    """Score the test images that trained runs have not scored yet."""

    evaluate_seconds: float = math.inf
    """CPU seconds a run for the scores."""

    def run(self) -> int:
        """Start the runs that have weights and lack scores."""
        left = [
            name for name in self.mine()
            if (self.out / name / "best.safetensors").exists() and not complete(self.out / name)
        ]  # fmt: skip
        return self.work("evaluate", left)


def complete(folder: Path) -> bool:
    """Whether the run's record has all test images."""
    path = folder / "record.json"
    if not path.exists():
        return False
    record = Record.read(path).figures
    return record["num_images"] == record["num_test_images"]


def state_of(folder: Path) -> str:
    """One line on a run."""
    if (folder / "record.json").exists():
        record = Record.read(folder / "record.json").figures
        return (
            f"{record['bits_per_dim']:.4f} bits/dim of {record['num_images']} test images; "
            f"{100 * record['budget_used']:.0f} % of the budget, {record['steps']} steps"
        )
    if not (folder / "metrics.jsonl").exists():
        return "not started"
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    return f"{last['cpu_seconds']:.0f} CPU seconds, step {last['step']}, validation {last['valid_loss']:.4f}"


@dataclass(frozen=True)
class Status(Common):
    """Say how far every run is."""

    def run(self) -> int:
        """Print a line a run."""
        for name in self.names():
            print(f"{name:24s} {state_of(self.out / name)}")
        return 0


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold a lock file for as long as the process lives; false where another one does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@dataclass(frozen=True)
class One:
    """Work on one run in this process (what `run` and `evaluate` start)."""

    name: str
    command: str
    out: Path
    budget_seconds: float
    wall_seconds: float
    evaluate_seconds: float
    num_samples: int
    data_root: Path | None = None

    def run(self) -> int:
        """Train if asked to, then score with the weights that there are."""
        torch.set_num_threads(1)
        folder = self.out / self.name
        with claimed(self.out / f"{self.name}.lock") as mine:
            if not mine:
                return TAKEN
            code = self.train(folder) if self.command == "run" else 0
            if code == 0:
                self.score(folder)
            return code

    def train(self, folder: Path) -> int:
        """Train to the end of the budget; a run that diverges keeps the weights of before."""
        row, _, seed = self.name.rpartition("-s")
        known = (folder / "config.json").exists()
        config = run_config(row, int(seed), self.data_root)
        run = Run.open(folder, self.data_root) if known else Run.create(folder, config)
        trainer = BudgetTrainer(run, self.budget_seconds, min(60.0, self.budget_seconds / 8), self.wall_seconds)
        size = sum(p.numel() for p in trainer.parameters)
        if size > MAX_PARAMETERS:
            raise SystemExit(f"{row} has {size} parameters; the class allows {MAX_PARAMETERS}")
        trainer.resume() if known else trainer.start()
        try:
            trainer.fit()
        except TrainingInterrupted as stopped:
            return 128 + stopped.number
        except TrainingDivergedError as error:
            print(error)
            (folder / "diverged.txt").write_text(f"{error}\n", encoding="utf-8")
            return 0 if (folder / "best.safetensors").exists() else 3
        return 0 if trainer.state["finished"] else 124

    def score(self, folder: Path) -> None:
        """Score test images in parts, each kept as soon as it is there, check samples, and write the record."""
        run = Run.open(folder, self.data_root)
        task = run.build_task()
        trained = run.load_weights(task, "best")
        density, data, test = task.module, run.data, run.data.split("clean").test
        path, began = folder / "scores.safetensors", time.process_time()
        try:
            scores = load_tensors(path)[0]["bits_per_dim"]
        except CheckpointError:
            scores = torch.zeros(0)
        while len(scores) < len(test):
            torch.manual_seed(len(scores))
            part = data.images(test[len(scores) : len(scores) + CHUNK])
            with torch.no_grad():
                scores = torch.cat([scores, density.bits_per_dim(part, NUM_DRAWS).float()])
            save_tensors(path, {"bits_per_dim": scores}, {"num_draws": NUM_DRAWS})
            if time.process_time() - began > self.evaluate_seconds:
                break
        torch.manual_seed(0)
        samples = check_samples(density, self.num_samples)
        _, state = load_tensors(folder / "checkpoint.safetensors")
        half = 1.96 * (scores.double().std() / math.sqrt(len(scores))).item()
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"] | {"data_root": None}
        settings |= {"budget_seconds": self.budget_seconds, "num_draws": NUM_DRAWS}
        figures = {
            "row": self.name.rpartition("-s")[0],
            "seed": run.config.seed,
            "bits_per_dim": scores.double().mean().item(),
            "half_width": half,
            "num_images": len(scores),
            "num_test_images": len(test),
            "num_draws": NUM_DRAWS,
            "valid_bits_per_dim": trained["valid_loss"],
            "parameters": sum(p.numel() for p in density.parameters()),
            "budget_seconds": self.budget_seconds,
            "budget_used": min(1.0, state["cpu_seconds"] / self.budget_seconds),
            "cpu_seconds": state["cpu_seconds"],
            "validation_cpu_seconds": state["validation_cpu_seconds"],
            "seconds": state["seconds"],
            "steps": state["step"],
            "images_seen": state["step"] * run.config.batch_size,
            "diverged": (folder / "diverged.txt").exists(),
            "round_trip_error": round_trip_error(density, data.images(test[:100])),
            "samples": samples._asdict(),
            "curve": [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()],
        }
        Record(
            kind="image_benchmark",
            key=row_key(self.name, {"run": run.key, "budget_seconds": self.budget_seconds}),
            label=figures["row"],
            settings=settings,
            figures=figures,
            scores={"bits_per_dim": scores.numpy()},
            provenance=provenance(data_sha256=data.sha256, trained_at_revision=run.trained_at),
        ).write(folder / "record.json", overwrite=True)


# Student's t quantile at 97.5 % for the interval over n seeds.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}


def markdown_table(records: list[dict[str, Any]]) -> str:
    """The table, best row first; intervals are over seeds (Student's t), or over test images for one seed."""
    lines = [
        "| row | bits/dim | ± 95 % | seeds | parameters | CPU s | images seen | sampling, ms an image "
        "| finite | saturated pixels | round trip |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        rows.setdefault(record["row"], []).append(record)

    def mean(name: str, group: list[dict[str, Any]]) -> float:
        return sum(r[name] for r in group) / len(group)

    for row, group in sorted(rows.items(), key=lambda item: mean("bits_per_dim", item[1])):
        bits, count = [r["bits_per_dim"] for r in group], len(group)
        center = mean("bits_per_dim", group)
        half = group[0]["half_width"]
        if count > 1:
            spread = math.sqrt(sum((b - center) ** 2 for b in bits) / (count - 1))
            half = STUDENT[min(count, max(STUDENT))] * spread / math.sqrt(count)
        samples = [r["samples"] for r in group]
        note = "†" if count == 1 else ""
        partial = (
            "" if all(r["num_images"] == r["num_test_images"] for r in group) else f" ({group[0]['num_images']} images)"
        )
        short = "" if all(r["budget_used"] >= 1 for r in group) else " (cut)"
        lines.append(
            f"| {row}{short} | {center:.4f}{partial} | {half:.4f}{note} | {count} | {group[0]['parameters']:,} "
            f"| {mean('cpu_seconds', group):.0f} | {mean('images_seen', group) / 1000:.0f} k "
            f"| {1000 * mean('cpu_seconds', samples):.1f} | {100 * mean('finite_images', samples):.1f} % "
            f"| {100 * mean('saturated_pixels', samples):.2f} % | {max(r['round_trip_error'] for r in group):.0e} |"
        )
    if any(len(group) == 1 for group in rows.values()):
        lines += ["", "† one seed: the interval is over test images."]
    return "\n".join(lines)


def draw_curves(records: list[dict[str, Any]], path: Path) -> None:
    """Validation bits/dim of the averaged weights over CPU time, a line a row (its first seed)."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    first: dict[str, dict[str, Any]] = {}
    for record in sorted(records, key=lambda r: r["seed"]):
        first.setdefault(record["row"], record)
    ordered = sorted(first.values(), key=lambda r: r["curve"][-1]["valid_loss"])
    for index, record in enumerate(ordered):
        curve = [line for line in record["curve"] if line["step"] > 1]
        axes.plot(
            [line["cpu_seconds"] for line in curve], [line["valid_loss"] for line in curve],
            color=plt.get_cmap("tab20")(index % 20), ls=("-", "--")[index % 2], lw=1.2, label=record["row"],
        )  # fmt: skip
    low = ordered[0]["curve"][-1]["valid_loss"]
    axes.set(xlabel="CPU seconds of training", ylabel="validation bits/dim", ylim=(low - 0.03, low + 0.6))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_samples(
    out: Path, records: list[dict[str, Any]], path: Path, data_root: Path | None, columns: int = 16
) -> None:
    """A line of samples at temperature 1 a row (its first seed), of the rows whose weights are in ``out``."""
    import matplotlib.pyplot as plt

    names = [f"{r['row']}-s{r['seed']}" for r in sorted(records, key=lambda r: (r["seed"], r["bits_per_dim"]))]
    chosen: dict[str, str] = {}
    for name in names:
        if (out / name / "best.safetensors").exists():
            chosen.setdefault(name.rpartition("-s")[0], name)
    if not chosen:
        return
    figure, axes = plt.subplots(len(chosen) + 1, 1, figsize=(0.5 * columns + 2.0, 0.5 * (len(chosen) + 1)))
    strips: dict[str, torch.Tensor] = {}
    for row, name in chosen.items():
        run = Run.open(out / name, data_root)
        task = run.build_task()
        run.load_weights(task, "best")
        strips.setdefault("MNIST", run.data.images("test")[:columns])
        torch.manual_seed(0)
        logits = task.module.sample_logits(columns)
        # A sample that is not finite is shown in red, never as a picture.
        images = (256 * task.module.pixels.forward_and_ladj(logits)[0]).floor().clamp(0, 255)
        strips[row] = images.masked_fill(~logits.isfinite().flatten(1).all(1)[:, None, None, None], torch.nan)
    palette = plt.get_cmap("gray_r").with_extremes(bad="red")
    for axis, (row, images) in zip(axes, strips.items(), strict=True):
        axis.imshow(torch.cat(list(images[:, 0].float()), 1).numpy(), cmap=palette, vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(row, rotation=0, ha="right", va="center", fontsize=7)
    figure.subplots_adjust(left=2.0 / (0.5 * columns + 2.0), right=0.995, top=0.995, bottom=0.005, hspace=0.05)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


@dataclass(frozen=True)
class Render(Common):
    """Copy the runs' records to the results, write the table and draw the curves and samples."""

    results: Path = RESULTS
    """Folder of the records and of ``table.md``."""
    figures: Path = RESULTS.parents[2] / "figures"
    """Folder of ``image-benchmark-curves.png`` and ``image-benchmark-samples.png``."""

    def run(self) -> int:
        """Render what is there."""
        for path in sorted(self.out.glob("*/record.json")):
            Record.read(path).write(self.results / f"{path.parent.name}.json", overwrite=True)
        records = [Record.read(path).figures for path in sorted(self.results.glob("*.json"))]
        if not records:
            raise SystemExit(f"no record in {self.out} or {self.results}; see `run`")
        table = markdown_table(records)
        (self.results / "table.md").write_text(table + "\n", encoding="utf-8")
        draw_curves(records, self.figures / "image-benchmark-curves.png")
        draw_samples(self.out, records, self.figures / "image-benchmark-samples.png", self.data_root)
        print(table)
        return 0


Command = (
    Annotated[RunAll, tyro.conf.subcommand("run", prefix_name=False)]
    | Annotated[Status, tyro.conf.subcommand("status", prefix_name=False)]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate", prefix_name=False)]
    | Annotated[Render, tyro.conf.subcommand("render", prefix_name=False)]
    | Annotated[One, tyro.conf.subcommand("one", prefix_name=False)]
)

if __name__ == "__main__":
    sys.exit(tyro.cli(Command).run())
