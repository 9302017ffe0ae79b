"""Which runs are to be made: rows times seeds, with the runs that they start from, split among machines."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vi_flows.settings import NonNegative, Positive, check_settings
from vi_flows.table.rows import Row, matching_rows
from vi_flows.training.config import config_to_dict
from vi_flows.training.run import Run
from vi_flows.training.tasks.vae import VAETrainConfig

__all__ = ["Job", "Selection", "Workplace"]

TABLES = ("binarized_mnist-*", "omniglot28-*")


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
                raise ValueError(f"{name} must be a folder, {getattr(self, name)} is a file")


@dataclass(frozen=True)
class Job:
    """One run of a row.

    Attributes:
        row: what is trained.
        seed: of everything.
        epochs: of this run, as the recipe says or as asked for instead.
        source: the run whose weights it starts from.
    """

    row: Row
    seed: int
    epochs: int
    source: Job | None = None

    @property
    def name(self) -> str:
        """``binarized_mnist-g1-plain-clean-e800-s0``; of a run that starts from another one, ``…-e800+100-s0``."""
        before = "" if self.source is None else f"{self.source.epochs}+"
        return f"{self.row.name}-e{before}{self.epochs}-s{self.seed}"

    def folder(self, workplace: Workplace) -> Path:
        """Of the run."""
        return workplace.runs / self.name

    def record(self, workplace: Workplace) -> Path:
        """What a finished job leaves; ablations in a folder of their own."""
        folder = workplace.results / "ablation" if self.row.change else workplace.results
        return folder / f"{self.name}.json"

    def record_differs(self, workplace: Workplace) -> str:
        """The first setting by which the record that is there is another run's: names don't say all of a recipe.

        Empty where there is none. Settings that only one of the two knows are left out: records outlive versions.
        """
        try:
            found = dict(json.loads(self.record(workplace).read_text(encoding="utf-8"))["settings"])
        except (ValueError, KeyError, TypeError):
            return "settings that can't be read"
        config = self.config(workplace)
        planned = {n: value for n, value in config_to_dict(config).items() if n not in config.of_the_machine}
        return _first_difference(json.loads(json.dumps(planned)), found)

    def is_trained(self, workplace: Workplace) -> bool:
        """Whether its weights are there for others to start from; a record may have come without them."""
        return (self.folder(workplace) / "last.safetensors").exists()

    def open(self, workplace: Workplace, device: str, cuda_graph: bool) -> Run:
        """The run, new or as it was left.

        Raises:
            RunError: see :meth:`~vi_flows.training.Run.open_or_create`.
        """
        return Run.open_or_create(self.folder(workplace), self.config(workplace, device, cuda_graph))

    def config(self, workplace: Workplace, device: str = "cpu", cuda_graph: bool = False) -> VAETrainConfig:
        """The run's settings, with one thread on a CPU."""
        start = None if self.source is None else self.source.folder(workplace)
        return replace(
            self.row.config, seed=self.seed, epochs=self.epochs, start_from=start, device=device, threads=1,
            cuda_graph=cuda_graph, data_root=workplace.data_root,
        )  # fmt: skip


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


@dataclass(frozen=True)
class Selection:
    """Which runs."""

    rows: tuple[str, ...] = TABLES
    """Rows by name, with a shell's wildcards: DATASET-(g1|g2)-MODEL-(clean|paper), or ablation-DATASET-g1-MODEL-CHANGE,
    evaluated on the validation images; `vi-flows table rows` lists them."""
    seeds: tuple[NonNegative, ...] = (0,)
    """A run each."""
    epochs: Positive | None = None
    """Instead of the recipe's, for runs from fresh weights; it becomes part of the run's name and record."""
    finish_epochs: Positive | None = None
    """Instead of the recipe's, for runs that start from another run's weights."""
    shard: str = "1/1"
    """`i/n`: every n-th run from the i-th, i = 1 … n, for machines that share no folder."""

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.rows or not self.seeds:
            raise ValueError(f"{'seeds' if self.rows else 'rows'} must name at least one")

    def _part(self) -> tuple[int, int]:
        number, _, count = self.shard.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ValueError(f"--shard must be i/n with 1 <= i <= n, such as 1/2, got {self.shard!r}")
        return int(number), int(count)

    def _job(self, row: Row, seed: int) -> Job:
        asked = self.epochs if row.source is None else self.finish_epochs
        source = None if row.source is None else self._job(row.source, seed)
        return Job(row, seed, row.config.epochs if asked is None else asked, source)

    def jobs(self) -> list[Job]:
        """The runs in the order of the tables, all of the first seed first; a run comes after the one it starts from.

        A run and the one it starts from fall into the same shard.

        Raises:
            ValueError: a pattern matches no row, or the shard is none.
        """
        number, count = self._part()
        rows = matching_rows(self.rows)
        chains = [self._job(row, seed) for seed in self.seeds for row in rows]
        roots: dict[str, int] = {}
        jobs: dict[str, Job] = {}
        for job in chains:
            root = job if job.source is None else job.source
            if roots.setdefault(root.name, len(roots)) % count == number - 1:
                for each in (root, job):
                    jobs.setdefault(each.name, each)
        return list(jobs.values())
