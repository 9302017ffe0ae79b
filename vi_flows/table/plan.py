"""Which runs are to be made: rows times seeds, with the runs that they start from, split among machines."""

from __future__ import annotations

from dataclasses import dataclass

from vi_flows.settings import Positive, Seed, SettingsError, check_settings
from vi_flows.table.job import part_of
from vi_flows.table.rows import Row, matching_rows
from vi_flows.table.vae_job import VAEJob

__all__ = ["Selection"]

TABLES = ("binarized_mnist-*", "omniglot28-*")


@dataclass(frozen=True)
class Selection:
    """Which runs."""

    rows: tuple[str, ...] = TABLES
    """Rows by name, with a shell's wildcards: DATASET-(g1|g2)-MODEL-(clean|paper), or ablation-DATASET-g1-MODEL-CHANGE,
    evaluated on the validation images; `vi-flows table rows` lists them."""
    seeds: tuple[Seed, ...] = (0,)
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
            raise SettingsError(f"{'seeds' if self.rows else 'rows'} must name at least one")

    def _job(self, row: Row, seed: int) -> VAEJob:
        option, asked = ("epochs", self.epochs) if row.source is None else ("finish-epochs", self.finish_epochs)
        if row.is_of_epochs and asked not in (None, row.config.epochs):
            raise SettingsError(
                f"--{option} {asked} would make {row.name} what another row is, as its number of epochs is all that "
                f"it changes: leave out --{option} or that row"
            )
        source = None if row.source is None else self._job(row.source, seed)
        return VAEJob(row, seed, row.config.epochs if asked is None else asked, source)

    def jobs(self) -> list[VAEJob]:
        """The runs in the order of the tables, all of the first seed first; a run comes after the one it starts from.

        A run and the one it starts from fall into the same shard.

        Raises:
            ValueError: a pattern matches no row, the shard is none, or other epochs are asked for than those that a
                row is there for.
        """
        number, count = part_of(self.shard)
        rows = matching_rows(self.rows)
        chains = [self._job(row, seed) for seed in self.seeds for row in rows]
        roots: dict[str, int] = {}
        jobs: dict[str, VAEJob] = {}
        for job in chains:
            root = job if job.source is None else job.source
            if roots.setdefault(root.name, len(roots)) % count == number - 1:
                for each in (root, job):
                    jobs.setdefault(each.name, each)
        return list(jobs.values())
