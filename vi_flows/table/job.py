"""What a list of runs is made of: a job knows its run, its record, and how it is trained and judged."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from vi_flows.records import Record, from_json
from vi_flows.settings import SettingsError
from vi_flows.training.config import TrainConfig, config_to_dict

__all__ = ["Computer", "Job", "OutOfTimeError", "Workplace", "part_of"]


class OutOfTimeError(RuntimeError):
    """A run was stopped since its time was up; it goes on next time."""


class Computer(Protocol):
    """What makes jobs, and how thoroughly; each kind of job has settings of its own."""

    @property
    def device(self) -> str:
        """Torch device."""

    @property
    def stack(self) -> int:
        """Jobs that one process trains as one stacked model, at most."""


@dataclass(frozen=True)
class Workplace:
    """Where runs live and how they are computed; no part of what a run is."""

    runs: Path = Path("runs/table")
    """Folder of the runs; locks and states lie in it too."""
    results: Path = Path("experiments/results/vae")
    """Folder of the records: a row with a record is finished."""
    data_root: Path | None = None
    """Folder with the data files; default: VI_FLOWS_DATA, else the download cache."""

    def __post_init__(self) -> None:
        for name in ("runs", "results"):
            if getattr(self, name).exists() and not getattr(self, name).is_dir():
                raise SettingsError(f"{name} must be a folder, {getattr(self, name)} is a file")


C = TypeVar("C", bound=Computer, contravariant=True)


class Job(ABC, Generic[C]):
    """One run, from its beginning to its record: what the runner and the status table ask of it.

    Attributes:
        source: the job whose weights it starts from.
        progress_name: what counts its progress, a figure in every line of the run's metrics, and its title in tables.
        score_name: the figure of its record that tables show, and its title.
        digits: of losses and scores in tables.
    """

    source: Job[Any] | None
    progress_name: ClassVar[tuple[str, str]]
    score_name: ClassVar[tuple[str, str]]
    digits: ClassVar[int]

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the run's folder, of its claim, and in tables."""

    @property
    @abstractmethod
    def total(self) -> float:
        """The progress at the end of training."""

    @property
    def stack_key(self) -> Hashable | None:
        """Jobs of one key can be trained as one stacked model; ``None``: this one never."""
        return None

    def folder(self, workplace: Workplace) -> Path:
        """Of the run."""
        return workplace.runs / self.name

    @abstractmethod
    def record(self, workplace: Workplace) -> Path:
        """What a finished job leaves."""

    def has_record(self, workplace: Workplace) -> bool:
        """Whether nothing is left to do."""
        return self.record(workplace).exists()

    @abstractmethod
    def settings(self, workplace: Workplace) -> TrainConfig:
        """The run's settings; those of the machine don't matter."""

    def record_differs(self, workplace: Workplace) -> str:
        """The first setting by which the record that is there is another run's: names don't say all of a recipe.

        Empty where there is none. Settings that only one of the two knows are left out: records outlive versions.
        """
        try:
            found = dict(from_json(self.record(workplace).read_text(encoding="utf-8"))["settings"])
        except (ValueError, KeyError, TypeError):
            return "settings that can't be read"
        config = self.settings(workplace)
        planned = {n: value for n, value in config_to_dict(config).items() if n not in config.of_the_machine}
        return _first_difference(json.loads(json.dumps(planned)), found)

    def is_trained(self, workplace: Workplace) -> bool:
        """Whether its weights are there for others to start from; a record may have come without them."""
        return (self.folder(workplace) / "last.safetensors").exists()

    @abstractmethod
    def train(self, others: Sequence[Self], workplace: Workplace, machine: C) -> None:
        """Train it to the end, from its beginning or from where it was stopped.

        Args:
            others: jobs of the same :attr:`stack_key` to be trained with it.
            workplace: where.
            machine: by what.

        Raises:
            RunError: see :meth:`~vi_flows.training.Run.open_or_create`.
            OutOfTimeError: its time was up.
            TrainingInterrupted: by a signal.
        """

    @abstractmethod
    def evaluate(self, workplace: Workplace, machine: C) -> Record:
        """Judge the trained weights and write the record.

        Raises:
            OutOfTimeError: its time was up; what it found is kept.
        """

    @abstractmethod
    def summary(self, record: Record) -> str:
        """A record in a line."""


def _first_difference(planned: dict[str, Any], found: dict[str, Any]) -> str:
    for name in [name for name in planned if name in found]:
        mine, theirs = planned[name], found[name]
        if isinstance(mine, dict) and isinstance(theirs, dict):
            inner = _first_difference(mine, theirs)
            if inner:
                return f"{name}.{inner}"
        elif mine != theirs:
            return f"{name}={theirs!r}, and the row has {mine!r}"
    return ""


def part_of(shard: str) -> tuple[int, int]:
    """Number and count of a shard, ``i/n``.

    Raises:
        ValueError: it is none.
    """
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"--shard must be i/n with 1 <= i <= n, such as 1/2, got {shard!r}")
    return int(number), int(count)
