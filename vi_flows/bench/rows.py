"""The goals of speed, and the rows of the table that measures them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

from vi_flows.bench.measure import Measurement

__all__ = ["GOALS", "Goal", "Row", "Unavailable", "format_table"]


class Unavailable(Exception):
    """A row can't be measured here; the message says why."""


@dataclass(frozen=True)
class Goal:
    """A ratio that is to be reached.

    Attributes:
        number: of the goal.
        title: what is divided by what.
        floor: the least that counts as done.
        goal: what is aimed at.
        faster: whether a larger ratio is the better one.
    """

    number: int
    title: str
    floor: float
    goal: float
    faster: bool = False

    def verdict(self, ratio: float) -> str:
        """``goal``, ``floor`` or ``below`` for a measured ratio."""
        reached = operator.ge if self.faster else operator.le
        return "goal" if reached(ratio, self.goal) else "floor" if reached(ratio, self.floor) else "below"


GOALS: dict[str, Goal] = {
    "1a": Goal(1, "ConvFlow training pass, N=100: PyTorch / fused", 20, 50, True),
    "1b": Goal(1, "ConvFlow training pass, N=5000: PyTorch / fused", 10, 20, True),
    "2a": Goal(2, "VAE training step, IW=1: with ConvFlow K=8 / without", 1.3, 1.10),
    "2b": Goal(2, "VAE training step, IW=50: with ConvFlow K=8 / without", 1.3, 1.10),
    "3a": Goal(3, "ConvFlow, N=100: inverse / forward", 1.5, 1.0),
    "3b": Goal(3, "ConvFlow, N=5000: inverse / forward", 1.5, 1.0),
    "4": Goal(4, "image sampler: 3x3 convolutions / Glow", 1.05, 1.02),
    "5": Goal(5, "VAE training step: written in Pyro / bare PyTorch", 1.15, 1.05),
    "6a": Goal(6, "training pass, N=100: Pyro IAF x4 / ConvFlow K=8", 3, 6, True),
    "6b": Goal(6, "training pass, N=5000: Pyro IAF x4 / ConvFlow K=8", 3, 6, True),
    "6c": Goal(6, "training pass, N=100: zuko MAF x4 / ConvFlow K=8", 3, 6, True),
    "6d": Goal(6, "training pass, N=5000: zuko MAF x4 / ConvFlow K=8", 3, 6, True),
    "7": Goal(7, "models trained side by side: model-steps/s / one at a time", 2, 3, True),
    "8": Goal(8, "5000-sample NLL: with ConvFlow K=8 / without", 1.15, 1.05),
}
"""The eight goals; some are measured at two sizes or against two peers. Each is a ratio of CPU times on one thread."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: key in :data:`GOALS`, or a name of its own for a row without a goal.
        title: what is divided by what.
        measurement: ``None`` where it can't be measured.
        note: why not, or what else was seen.
    """

    name: str
    title: str
    measurement: Measurement | None
    note: str = ""

    @property
    def verdict(self) -> str:
        """See :meth:`Goal.verdict`; ``-`` without a goal or a measurement."""
        goal = GOALS.get(self.name)
        return "-" if goal is None or self.measurement is None else goal.verdict(self.measurement.ratio)

    def record(self) -> dict[str, Any]:
        """The row for JSON."""
        goal = GOALS.get(self.name)
        bounds = {} if goal is None else {"goal_number": goal.number, "floor": goal.floor, "goal": goal.goal}
        measured = {} if self.measurement is None else asdict(self.measurement)
        return {
            "name": self.name,
            "title": self.title,
            **bounds,
            **measured,
            "verdict": self.verdict,
            "note": self.note,
        }


def measure_row(name: str, title: str, measure: Callable[[], tuple[Measurement, str]]) -> Row:
    """Run one row; what it lacks becomes its note."""
    try:
        measurement, note = measure()
    except Unavailable as reason:
        return Row(name, title, None, f"not available: {reason}")
    return Row(name, title, measurement, note)


def format_table(rows: list[Row]) -> str:
    """The rows for people."""
    lines = []
    for row in rows:
        goal, m = GOALS.get(row.name), row.measurement
        sides = "" if m is None else f"{m.numerator_ms:.3g} ms / {m.denominator_ms:.3g} ms"
        title = "\n  ".join(filter(None, (row.title, "; ".join(filter(None, (sides, row.note))))))
        figures = ("-", "") if m is None else (f"{m.ratio:.3g}", f"{m.low:.3g} … {m.high:.3g}")
        limits = ("", "") if goal is None else (f"{'≥' if goal.faster else '≤'} {goal.floor:g}", f"{goal.goal:g}")
        lines.append((row.name if goal else "", title, *figures, *limits, "" if m is None else row.verdict))
    head = ("", "ratio of CPU times, one thread", "ratio", "quartiles", "floor", "goal", "")
    align = ("left", "left", "right", "right", "right", "right", "left")
    return tabulate(lines, head, disable_numparse=True, colalign=align)
