"""The benchmarks of image flows: a fixed amount of computation a run, and a bound of the number of parameters.

    python experiments/image_benchmark.py run --processes 2
    python experiments/image_benchmark.py status
    python experiments/image_benchmark.py evaluate --processes 2
    python experiments/image_benchmark.py speed
    python experiments/image_benchmark.py render
    python experiments/image_benchmark.py compare --benchmark cifar --reference glow

``--benchmark mnist`` has 20 minutes and 100 thousand parameters, ``mnist-large`` 2 hours and a million, ``cifar`` 20
minutes and rows of equal size on a subset of CIFAR-10; see ``image_benchmark_rows.py`` for what a minute is.
A run is one row and one seed, trained by one process with one thread for the row's number of steps. All rows see the
same images in the same order, in batches of 32. Validation images choose the weights; the test images are scored once,
8 draws of the noise each. ``run`` does what is missing and can be stopped and started at any time, to the bit, on
several machines over one folder too: whoever works on a run holds its claim.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from image_benchmark_figures import draw_best, draw_curves, draw_samples
from image_benchmark_job import BudgetJob, Limits
from image_benchmark_rows import BENCHMARKS
from image_benchmark_speed import speed_table, steps_per_second
from image_benchmark_tables import markdown_table, paired_table, read_figures

from vi_flows.cli.outcome import exit_with
from vi_flows.records import Record
from vi_flows.settings import NonNegative, OneOf, Positive, PositiveFloat, SettingsError, check_settings
from vi_flows.table import Workplace, part_of, status_table, work_through

RESULTS = Path(__file__).parent / "results" / "image_benchmark"


@dataclass(frozen=True)
class Common:
    """What every command is told."""

    benchmark: Annotated[str, OneOf(tuple(BENCHMARKS))] = "mnist"
    """Which table: mnist, mnist-large or cifar."""
    out: Path = Path("runs/image_benchmark")
    """Folder of the runs; each table has its own in it."""
    rows: tuple[str, ...] = ()
    """Rows by name; none: all of them."""
    seeds: tuple[NonNegative, ...] = ()
    """Seeds, the first of every row before the second of any; none: the table's."""
    data_root: Path | None = None
    """Folder with the data files; default: VI_FLOWS_DATA."""
    steps: NonNegative = 0
    """Training steps of every run; 0: the table's, which take every row as long."""

    unused: ClassVar[tuple[str, ...]] = ()
    """Options that a command has no use for."""

    def __post_init__(self) -> None:
        check_settings(self)
        for name in self.unused:
            if getattr(self, name):
                command = type(self).__name__.lower()
                raise SettingsError(f"{name} has no effect on {command}: leave --{name} out")

    @property
    def place(self) -> Workplace:
        """Runs and records in one folder."""
        return Workplace(self.folder, self.folder, self.data_root)

    @property
    def folder(self) -> Path:
        """The table's, in ``out``."""
        return self.out / self.benchmark

    def jobs(self, only_scores: bool = False) -> list[BudgetJob]:
        """The runs in their order.

        Raises:
            ValueError: there is no such row.
        """
        table = BENCHMARKS[self.benchmark]
        unknown = [row for row in self.rows if row not in table.rows]
        if unknown:
            raise ValueError(f"unknown row {unknown[0]!r} of {table.name}; choose among {', '.join(table.rows)}")
        rows, seeds = self.rows or tuple(table.rows), self.seeds or table.seeds
        return [
            BudgetJob(table, row, seed, self.steps or table.rows[row].steps, only_scores)
            for seed in seeds for row in rows
        ]  # fmt: skip


@dataclass(frozen=True)
class RunAll(Common):
    """Train and score what is missing."""

    processes: Positive = 1
    """Runs at once, a process with one thread each."""
    shard: str = "1/1"
    """i/n: take every n-th run, from the i-th; for machines that share no folder."""
    limits: Annotated[Limits, tyro.conf.arg(name="")] = field(default_factory=Limits)

    def mine(self) -> list[BudgetJob]:
        """The runs of this shard."""
        number, count = part_of(self.shard)
        return self.jobs()[number - 1 :: count]

    def run(self) -> int:
        """Exit code 1 where something failed or is left."""
        return work_through(self.mine(), self.place, self.limits, self.processes, self.limits.wall_seconds)


@dataclass(frozen=True)
class Evaluate(RunAll):
    """Score the test images that trained runs have not scored yet."""

    limits: Annotated[Limits, tyro.conf.arg(name="")] = field(default_factory=lambda: Limits(evaluate_seconds=math.inf))

    def mine(self) -> list[BudgetJob]:
        """Those that have weights; stopped runs too.

        Raises:
            ValueError: none has.
        """
        number, count = part_of(self.shard)
        jobs = self.jobs(only_scores=True)[number - 1 :: count]
        found = [job for job in jobs if (job.folder(self.place) / "best.safetensors").exists()]
        if not found:
            raise ValueError(
                f"of the {len(jobs)} runs asked for, none has weights in {self.folder}: begin with image_benchmark "
                "run, or say where they are by --out"
            )
        return found


@dataclass(frozen=True)
class Status(Common):
    """Say how far every run is."""

    def run(self) -> int:
        """Print a line a run."""
        print(status_table(self.jobs(), self.place))
        return 0


@dataclass(frozen=True)
class Speed(Common):
    """Measure how many steps of each row a CPU second of this machine holds, and what the table's steps take here.

    A CPU second is another amount of work on another processor, and beside other processes; so let nothing else run.
    """

    unused: ClassVar[tuple[str, ...]] = ("seeds", "steps")

    seconds: PositiveFloat = 6.0
    """CPU seconds of a measure."""
    rounds: Positive = 3
    """Measures a row, of which the best counts."""

    def run(self) -> int:
        """Print a table."""
        table, rows = BENCHMARKS[self.benchmark], list(dict.fromkeys(job.row for job in self.jobs()))
        print(speed_table(table, steps_per_second(table, rows, self.seconds, self.rounds, self.data_root)))
        return 0


@dataclass(frozen=True)
class Render(Common):
    """Copy the runs' records to the results, print the table and draw curves, samples and the best row's pictures."""

    unused: ClassVar[tuple[str, ...]] = ("rows", "seeds", "steps")

    results: Path = RESULTS
    """Folder of the records; each table has its own in it."""
    figures: Path = RESULTS.parents[2] / "figures"
    """Folder of ``image-benchmark-mnist-curves.png``, ``-samples.png``, ``-best.png`` and the other tables'."""

    def run(self) -> int:
        """Render what is there."""
        results = self.results / self.benchmark
        for path in sorted(self.folder.glob("*/record.json")):
            Record.read(path).write(results / f"{path.parent.name}.json", overwrite=True)
        table = BENCHMARKS[self.benchmark]
        records = read_figures(results)
        start = f"image-benchmark-{self.benchmark}"
        draw_curves(records, self.figures / f"{start}-curves.png", table.steps, table.reference_seconds)
        for name, draw in {"samples": draw_samples, "best": draw_best}.items():
            problem = draw(self.folder, records, self.figures / f"{start}-{name}.png", self.data_root)
            if problem is not None:
                print(problem, file=sys.stderr)
        print(markdown_table(records, table.steps))
        return 0


@dataclass(frozen=True)
class Compare:
    """Print each row's bits/dim less those of one of them, paired by seed, from the committed records."""

    benchmark: Annotated[str, OneOf(tuple(BENCHMARKS))] = "mnist"
    """Which table: mnist, mnist-large or cifar."""
    reference: str = "glow"
    """The row that the others are beside."""
    results: Path = RESULTS
    """Folder of the records; each table has its own in it."""

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self) -> int:
        """Print the table."""
        figures = read_figures(self.results / self.benchmark)
        print(paired_table(figures, self.reference, BENCHMARKS[self.benchmark].steps))
        return 0


Command = (
    Annotated[RunAll, tyro.conf.subcommand("run", prefix_name=False)]
    | Annotated[Status, tyro.conf.subcommand("status", prefix_name=False)]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate", prefix_name=False)]
    | Annotated[Speed, tyro.conf.subcommand("speed", prefix_name=False)]
    | Annotated[Render, tyro.conf.subcommand("render", prefix_name=False)]
    | Annotated[Compare, tyro.conf.subcommand("compare", prefix_name=False)]
)

if __name__ == "__main__":
    exit_with("image_benchmark", lambda words: tyro.cli(Command, args=words).run())
