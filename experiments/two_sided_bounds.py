"""Figure of the bounds that enclose each row's likelihood: by importance sampling, by annealing, and by BDMC.

    python experiments/two_sided_bounds.py

One line a record that was made with ``vi-flows evaluate RUN --ais``. Left: NLL of the annealed test images, from 100
and from 5000 importance samples and by annealing (with its 95 % interval over images); all three are upper bounds of
the NLL in expectation, so the lowest is the best one. Right: how far apart the upper and the lower bound are on images
that the model itself drew, where both can be had: about as far off the left side's annealing may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from vi_flows.records import Record

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """One line of the figure; NLLs in nats on the same images."""

    label: str
    coarse: float
    importance: float
    annealed: float
    interval: tuple[float, float]
    bdmc: tuple[float, tuple[float, float]] | None

    @staticmethod
    def of(record: Record) -> Row:
        """The line of a record with annealing and scores."""
        ais, scores = record.figures["ais"], record.scores
        size = ais["num_rows"]
        bdmc = ais.get("bdmc")
        return Row(
            f"{record.settings['vae']['architecture'].upper()} {record.label}, {record.settings['dataset']}",
            float(scores["nll_100"][:size].mean(dtype=np.float64)),
            float(scores["nll"][:size].mean(dtype=np.float64)),
            ais["nll"],
            tuple(ais["interval"]),
            # Of a single image there is a gap, but no interval.
            None if bdmc is None or bdmc["gap_interval"] is None else (bdmc["gap"], tuple(bdmc["gap_interval"])),
        )


@dataclass(frozen=True)
class Options:
    """What to draw."""

    records: Path = HERE / "results" / "vae"
    """Folder of the records."""
    figure: Path = HERE.parent / "figures" / "two-sided-bounds.png"
    """Picture."""


def draw(rows: list[Row], path: Path) -> None:
    """Draw the lines, the lowest NLL on top."""
    from matplotlib.figure import Figure

    rows = sorted(rows, key=lambda row: -row.annealed)
    heights = np.arange(len(rows))
    figure = Figure(figsize=(10, 1.6 + 0.34 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1.3))
    for height, row in zip(heights, rows, strict=True):
        left.plot(row.interval, [height, height], color="0.8", linewidth=5, solid_capstyle="butt", zorder=0)
        left.plot([row.annealed, row.coarse], [height, height], color="0.4", linewidth=1, zorder=1)
        if row.bdmc is not None:
            gap, interval = row.bdmc
            right.plot(interval, [height, height], color="0.8", linewidth=5, solid_capstyle="butt", zorder=0)
            right.plot([gap], [height], "o", color="C2")
    left.plot([row.coarse for row in rows], heights, "o", color="C0", markerfacecolor="white", label="100 samples")
    left.plot([row.importance for row in rows], heights, "o", color="C0", label="5000 samples")
    left.plot([row.annealed for row in rows], heights, "D", color="C1", label="annealing, with its 95 % interval")
    left.set_yticks(heights, [row.label for row in rows], fontsize=8)
    left.set_xlabel("NLL of the annealed test images (nats)")
    left.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    right.axvline(0, color="0.6", linewidth=0.8)
    right.set_xlabel("BDMC gap (nats)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(options: Options) -> None:
    """Read the records and draw those with annealing.

    Raises:
        SystemExit: there is none.
    """
    records = [Record.read(path) for path in sorted(options.records.rglob("*.json"))]
    rows = [Row.of(record) for record in records if "ais" in record.figures and record.scores]
    if not rows:
        raise SystemExit(f"no record in {options.records} has annealing: vi-flows evaluate RUN --ais writes one")
    draw(rows, options.figure)
    for row in rows:
        print(f"{row.label}: {row.coarse:.3f} and {row.importance:.3f} by samples, {row.annealed:.3f} by annealing")
    print(options.figure)


if __name__ == "__main__":
    main(tyro.cli(Options))
