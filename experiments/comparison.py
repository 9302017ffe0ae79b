"""Methods beside each other on posteriors with known truth: what has no row yet is run, a record a posterior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from vi_flows.records import Record, provenance, row_key

__all__ = ["Comparison", "Row"]

Row = dict[str, Any]

SHOWN = ("method", "failed", "largest_mean_error", "cpu_seconds")


@dataclass(frozen=True)
class Comparison(ABC):
    """The command of a comparison.

    Attributes:
        kind: of its records.
        results: their folder.
        all_names: posteriors by name.
        all_methods: methods by name, in the order of a record's rows.
    """

    kind: ClassVar[str]
    results: ClassVar[Path]
    all_names: ClassVar[Collection[str]]
    all_methods: ClassVar[Collection[str]]

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Posteriors; default: all."""
    methods: tuple[str, ...] = ()
    """Methods by name; default: all."""
    again: bool = False
    """Run what has a row already."""
    only_table: bool = False
    """Print the table of the records that are there."""

    @abstractmethod
    def measure(self, name: str, method: str) -> Row:
        """The row of a method on a posterior, with how it was made."""

    @abstractmethod
    def table(self) -> str:
        """Markdown of the records that are there."""

    def figures(self, name: str) -> dict[str, Any]:
        """What a record says of its posterior beside the rows; called before a method is run on it.

        Raises:
            ValueError: the posterior's data are not there.
        """
        return {}

    def run(self) -> None:
        """Methods one after the other, each over all posteriors; a record is written after every row.

        Raises:
            ValueError: there is no such posterior or method.
        """
        for given, known in ((self.names, self.all_names), (self.methods, self.all_methods)):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        if not self.only_table:
            for method in self.methods or self.all_methods:
                for name in self.names or self.all_names:
                    self._add_row(name, method)
        print(self.table())

    def _others(self, name: str, method: str) -> tuple[list[Row], bool]:
        """The other methods' rows, and whether this one has a row."""
        path = self.results / f"{name}.json"
        rows = Record.read(path).figures["rows"] if path.exists() else []
        others = [row for row in rows if row["method"] != method]
        return others, len(others) < len(rows)

    def _add_row(self, name: str, method: str) -> None:
        if self._others(name, method)[1] and not self.again:
            return
        figures = self.figures(name)
        row = self.measure(name, method)
        others, _ = self._others(name, method)  # another process may have written a row meanwhile
        order = list(self.all_methods)
        settings = {"posterior": name}
        Record(
            kind=self.kind,
            key=row_key(name, settings),
            label=name,
            settings=settings,
            figures=figures | {"rows": sorted([*others, row], key=lambda r: order.index(r["method"]))},
            provenance=provenance(),
            note="Each row was made by itself and says how.",
        ).write(self.results / f"{name}.json", overwrite=True)
        print(name, {key: row[key] for key in SHOWN if key in row}, flush=True)
