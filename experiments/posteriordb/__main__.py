"""Fit posteriordb's posteriors by default settings; a record for each, and the table of them all.

VI_FLOWS_DATA=… python -m experiments.posteriordb                        # what has no row yet
VI_FLOWS_DATA=… python -m experiments.posteriordb arK-arK --again        # some posteriors anew
python -m experiments.posteriordb --only-table                           # the table of the records that are there

Each method runs in a process of its own, on one thread, within a limit of CPU time; rows that are there stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from experiments.posteriordb.apart import one
from experiments.posteriordb.collection import PROGRAMS, load
from experiments.posteriordb.methods import METHODS, Settings
from experiments.posteriordb.table import table
from vi_flows.records import Record, provenance, row_key

RESULTS = Path(__file__).parents[1] / "results" / "posteriordb"


@dataclass(frozen=True)
class Compare:
    """Compare default settings with reference draws."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Posteriors; default: all that there are programs for."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Methods by name."""
    again: bool = False
    """Run what has a row already."""
    only_table: bool = False
    """Print the table of the records that are there."""
    settings: Settings = field(default_factory=Settings)
    """What the methods are run with."""

    def run(self) -> None:
        """Methods one after the other, each over all posteriors; a record is written after every row."""
        for given, known in ((self.names, PROGRAMS), (self.methods, METHODS)):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        if not self.only_table:
            for method in self.methods:
                for name in self.names or tuple(PROGRAMS):
                    self._row(name, method)
        print(table(RESULTS))

    def _row(self, name: str, method: str) -> None:
        path = RESULTS / f"{name}.json"
        rows = Record.read(path).figures["rows"] if path.exists() else []
        others = [row for row in rows if row["method"] != method]
        if len(others) < len(rows) and not self.again:
            return
        try:
            _, chains = load(name)
        except FileNotFoundError as error:
            raise SystemExit(str(error)) from error
        row = one(name, method, self.settings)
        # Another process may have written a row meanwhile.
        rows = Record.read(path).figures["rows"] if path.exists() else []
        others = [other for other in rows if other["method"] != method]
        rows = sorted([*others, row], key=lambda r: list(METHODS).index(r["method"]))
        settings = {"posterior": name}
        Record(
            kind="posteriordb",
            key=row_key(name, settings),
            label=name,
            settings=settings,
            figures={"scalars": len(chains), "rows": rows},
            provenance=provenance(),
            note="Each row was made by itself and says how.",
        ).write(path, overwrite=True)
        shown = ("method", "failed", "largest_mean_error", "cpu_seconds")
        print(name, {key: row[key] for key in shown if key in row}, flush=True)


if __name__ == "__main__":
    tyro.cli(Compare).run()
