"""Figure of the bounds that enclose each row's likelihood: by importance sampling, by annealing, and by BDMC.

    python experiments/two_sided_bounds.py

One line a record that was made with ``vi-flows evaluate RUN --ais``, a panel a data set and architecture. Left: NLL of
the first test images, as many as all rows of the panel have annealed, from 100 and from 5000 importance samples and by
annealing (with its 95 % interval over images); all three are upper bounds of the NLL in expectation, so the lowest is
the best one. Right: how far apart the upper and the lower bound are on images that the model itself drew, where both
can be had: about as far off the left side's annealing may be.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script, this file has only its own folder there

from experiments.tables.vae_rows import label_of
from vi_flows.cli.outcome import exit_with
from vi_flows.evaluation.nll import bootstrap_interval
from vi_flows.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
SHOWN_NATS = 7.0
"""Rows that are so much worse than the best of their panel stand at its edge, with their number."""


@dataclass(frozen=True)
class Row:
    """One line of the figure; NLLs in nats on the same images."""

    panel: str
    label: str
    coarse: float
    importance: float
    annealed: float
    interval: tuple[float, float]
    images: str
    bdmc: tuple[float, tuple[float, float]] | None

    @staticmethod
    def of(record: Record, images: np.ndarray) -> Row:
        """The line of a record with annealing and scores, of ``images``, which it was annealed on."""
        ais, scores, settings = record.figures["ais"], record.scores, record.settings
        here = np.isin(record.images("ais_nll"), images)
        annealed = torch.from_numpy(scores["ais_nll"][here].astype(np.float64))
        bdmc = ais.get("bdmc")
        paper = ", paper's protocol" if settings["protocol"] == "paper" else ""
        seed = f", seed {settings['seed']}" if settings["seed"] else ""
        return Row(
            panel_of(record),
            f"{label_of(record)}{paper}{seed}",
            float(scores["nll_100"][images].mean(dtype=np.float64)),
            float(scores["nll"][images].mean(dtype=np.float64)),
            float(annealed.mean()),
            bootstrap_interval(annealed),
            f"{'the first ' if images[-1] + 1 == len(images) else ''}{len(images)} test images",
            # Of a single image there is a gap, but no interval.
            None if bdmc is None or bdmc["gap_interval"] is None else (bdmc["gap"], tuple(bdmc["gap_interval"])),
        )


def panel_of(record: Record) -> str:
    """The panel that a record's line is in."""
    return f"{record.settings['dataset']}, {record.settings['vae']['architecture'].upper()}"


@dataclass(frozen=True)
class Options:
    """What to draw."""

    records: Path = HERE / "results" / "vae"
    """Folder of the records."""
    figure: Path = HERE.parent / "figures" / "two-sided-bounds.png"
    """Picture."""


def draw(rows: list[Row], path: Path) -> None:
    """Draw the panels, in each of them the lowest NLL on top."""
    from matplotlib.figure import Figure

    panels: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.panel, -row.annealed)):
        panels.setdefault(row.panel, []).append(row)
    heights = [len(each) + 1.5 for each in panels.values()]
    figure = Figure(figsize=(10, 1.2 + 0.27 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 2, sharey="row", squeeze=False, height_ratios=heights, width_ratios=(3, 1.3))
    gaps = [0.0, *(end for row in rows if row.bdmc is not None for end in row.bdmc[1])]
    limits = min(gaps) - 0.02, max(gaps) + 0.02
    for (left, right), (panel, each) in zip(grid, panels.items(), strict=True):
        _draw_panel(left, right, each)
        left.set_title(f"{panel}: NLL of {each[0].images} (nats)", fontsize=9, loc="left")
        right.set_title("BDMC gap (nats)", fontsize=9, loc="left")
        right.set_xlim(limits)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper right", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_panel(left: Axes, right: Axes, rows: list[Row]) -> None:
    edge = min(row.annealed for row in rows) + SHOWN_NATS
    shown = [(height, row) for height, row in enumerate(rows) if row.coarse <= edge]
    for height, row in shown:
        left.plot(row.interval, [height, height], color="0.85", linewidth=5, solid_capstyle="butt", zorder=0)
        left.plot([row.annealed, row.coarse], [height, height], color="0.4", linewidth=1, zorder=1)
    for height, row in enumerate(rows):
        if row.coarse > edge:
            place = left.get_yaxis_transform()  # the panel's width across, rows upwards
            left.text(1, height, f"{row.annealed:.1f} →", transform=place, fontsize=8, ha="right", va="center")
        if row.bdmc is not None:
            gap, interval = row.bdmc
            right.plot(interval, [height, height], color="0.8", linewidth=5, solid_capstyle="butt", zorder=0)
            right.plot([gap], [height], "o", color="C2", markersize=5)
    at = [height for height, _ in shown]
    left.plot([r.coarse for _, r in shown], at, "o", color="C0", markerfacecolor="white", label="100 samples")
    left.plot([r.importance for _, r in shown], at, "o", color="C0", label="5000 samples")
    left.plot([r.annealed for _, r in shown], at, "D", color="C1", markersize=5, label="annealing, 95 % interval")
    left.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    left.set_ylim(-0.7, len(rows) - 0.3)
    right.axvline(0, color="0.6", linewidth=0.8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", labelsize=8)


def main(options: Options) -> None:
    """Read the records and draw those with annealing.

    Raises:
        ValueError: there is none.
    """
    records = [Record.read(path) for path in sorted(options.records.rglob("*.json"))]
    records = [record for record in records if "ais" in record.figures and record.scores]
    if not records:
        raise ValueError(f"no record in {options.records} has annealing: vi-flows evaluate RUN --ais writes one")
    common: dict[str, np.ndarray] = {}  # by panel, images that all of its records were annealed on
    for record in records:
        panel, images = panel_of(record), record.images("ais_nll")
        common[panel] = np.intersect1d(images, common.get(panel, images))
    rows = [Row.of(record, common[panel_of(record)]) for record in records]
    draw(rows, options.figure)
    for row in rows:
        print(f"{row.panel}, {row.label}: ", end="")
        print(f"{row.coarse:.3f} and {row.importance:.3f} by samples, {row.annealed:.3f} by annealing")
    print(options.figure)


if __name__ == "__main__":
    exit_with("two_sided_bounds", lambda words: main(tyro.cli(Options, args=words)))
