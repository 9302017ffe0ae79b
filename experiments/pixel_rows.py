"""The rows of the autoregressive models' table: trained and scored unattended, by the runner of the VAE tables.

    python -m experiments.pixel_rows run --rows 'binarized_mnist-made*' --processes 2
    python -m experiments.pixel_rows status
    python -m experiments.pixel_rows rows

A row is trained on its training images, its weights are those of the epoch that is best on the validation images, and
its test images are scored once, exactly. A row with a record is finished; ``run`` can be stopped and started at any
time, on several machines over one folder too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import tyro

from experiments.pixel_rows_job import ROWS, SOURCES, Device, PixelJob
from vi_flows.cli.outcome import exit_with
from vi_flows.settings import Positive, Seed, SettingsError, check_settings
from vi_flows.table import Workplace, status_table, work_through
from vi_flows.training.config import check_device


@dataclass(frozen=True)
class Selection:
    """Which runs."""

    rows: tuple[str, ...] = ("*",)
    """Rows by name, with a shell's wildcards; `rows` lists them."""
    seeds: tuple[Seed, ...] = (0,)
    """A run each."""
    epochs: Positive | None = None
    """Instead of the rows' own, for runs from fresh weights; it is part of the run's name and record."""

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.rows or not self.seeds:
            raise SettingsError(f"{'seeds' if self.rows else 'rows'} must name at least one")

    def _job(self, row: str, seed: int) -> PixelJob:
        if row not in SOURCES:
            return PixelJob(row, seed, self.epochs or ROWS[row].epochs)
        return PixelJob(row, seed, ROWS[row].epochs, self._job(SOURCES[row], seed))

    def jobs(self) -> list[PixelJob]:
        """The runs, all of the first seed first; a run comes after the one it starts from.

        Raises:
            ValueError: a pattern matches no row.
        """
        for pattern in self.rows:
            if not any(fnmatchcase(name, pattern) for name in ROWS):
                raise ValueError(f"no row matches {pattern!r}; there are {', '.join(ROWS)}")
        names = [name for name in ROWS if any(fnmatchcase(name, pattern) for pattern in self.rows)]
        chosen = [self._job(name, seed) for seed in self.seeds for name in names]
        return list(dict.fromkeys(each for job in chosen for each in (job.source, job) if each is not None))


PLACE = Workplace(Path("runs/pixel"), Path("experiments/results/pixel"))


@dataclass(frozen=True)
class RunRows:
    """Train and score the rows that have no record yet; runs that were stopped go on, finished ones are left alone."""

    selection: Annotated[Selection, tyro.conf.arg(name="")] = field(default_factory=Selection)
    place: Annotated[Workplace, tyro.conf.arg(name="")] = PLACE
    machine: Annotated[Device, tyro.conf.arg(name="")] = field(default_factory=Device)
    processes: Positive = 1
    """Runs at a time, each in a process of its own with one thread."""

    def run(self) -> int:
        """Exit code 1 where something failed."""
        check_settings(self)
        check_device(self.machine.device)
        return work_through(self.selection.jobs(), self.place, self.machine, self.processes)


@dataclass(frozen=True)
class Status:
    """Show one line a run: state, epoch, best validation loss, NLL (nats), time left."""

    selection: Annotated[Selection, tyro.conf.arg(name="")] = field(default_factory=Selection)
    place: Annotated[Workplace, tyro.conf.arg(name="")] = PLACE

    def run(self) -> int:
        """Print the table; exit code 0."""
        print(status_table(self.selection.jobs(), self.place))
        return 0


@dataclass(frozen=True)
class Rows:
    """List the rows by name."""

    def run(self) -> int:
        """Print the names; exit code 0."""
        print("\n".join(ROWS))
        return 0


Command = (
    Annotated[RunRows, tyro.conf.subcommand("run", prefix_name=False)]
    | Annotated[Status, tyro.conf.subcommand("status", prefix_name=False)]
    | Annotated[Rows, tyro.conf.subcommand("rows", prefix_name=False)]
)

if __name__ == "__main__":
    exit_with("pixel_rows", lambda words: tyro.cli(Command, args=words).run())
