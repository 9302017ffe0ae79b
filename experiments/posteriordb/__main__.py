"""Fit posteriordb's posteriors by default settings; a record for each, and the table of them all.

VI_FLOWS_DATA=… python -m experiments.posteriordb                        # what has no row yet
VI_FLOWS_DATA=… python -m experiments.posteriordb arK-arK --again        # some posteriors anew
python -m experiments.posteriordb --only-table                           # the table of the records that are there

Each method runs in a process of its own, on one thread, within a limit of CPU time; rows that are there stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import tyro

from experiments.comparison import Comparison, Row
from experiments.posteriordb.apart import one
from experiments.posteriordb.collection import PROGRAMS, load
from experiments.posteriordb.methods import METHODS, Settings
from experiments.posteriordb.table import table
from vi_flows.cli.outcome import exit_with


@dataclass(frozen=True)
class Compare(Comparison):
    """Compare default settings with reference draws."""

    kind: ClassVar[str] = "posteriordb"
    results: ClassVar[Path] = Path(__file__).parents[1] / "results" / "posteriordb"
    all_names = PROGRAMS
    all_methods = METHODS

    settings: Settings = field(default_factory=Settings)
    """What the methods are run with."""

    def figures(self, name: str) -> dict[str, Any]:
        """The number of its scalars."""
        _, chains = load(name)
        return {"scalars": len(chains)}

    def measure(self, name: str, method: str) -> Row:
        """In a process of its own."""
        return one(name, method, self.settings)

    def table(self) -> str:
        """The table of the README."""
        return table(self.results)


if __name__ == "__main__":
    exit_with("posteriordb", lambda words: tyro.cli(Compare, args=words).run())
