"""Figure of the ablations: what each change of the recipe makes of the NLL of the validation images, and what it costs.

    python experiments/ablation_figure.py

One line a record that ``vi-flows table run --rows 'ablation-*'`` made, in two panels of the same order: the NLL of the
validation images that all records were scored on, with its 95 % interval over images, which all recipes share; and the
seconds of training, which only those of one device can be compared by. A finish's seconds are its own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script, this file has only its own folder there

from experiments.tables.ablations import ABLATIONS, ablations_in
from vi_flows.cli.outcome import exit_with

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Options:
    """What to draw."""

    records: Path = ABLATIONS
    """Folder of the records."""
    figure: Path = HERE.parent / "figures" / "vae-ablations.png"
    """Picture."""
    model: str = "amortized-k4-tanh"
    """Whose ablations."""


def main(options: Options) -> None:
    """Draw the figure.

    Raises:
        ValueError: there is no record of the model.
    """
    from matplotlib.figure import Figure

    rows = [row for row in reversed(ablations_in(options.records)) if row.model == options.model]
    if not rows:
        raise ValueError(f"{options.records} has no record of {options.model}")
    figure = Figure(figsize=(10, 1.2 + 0.28 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    devices = {device: f"C{n}" for n, device in enumerate(sorted({row.device for row in rows}))}
    for device, color in devices.items():
        at = [height for height, row in enumerate(rows) if row.device == device]
        seconds = [rows[height].seconds for height in at]
        right.plot(seconds, at, "o", color=color, markersize=5, label=device)
        left.plot([rows[height].nll for height in at], at, "o", color=color, markersize=5)
    for height, row in enumerate(rows):
        left.plot(row.interval, [height, height], color="0.75", linewidth=1.5, zorder=0)
    left.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    left.set_xlabel(f"NLL of the first {rows[0].num_images} validation images (nats)")
    right.set_xscale("log")
    right.set_xlabel("training (seconds)")
    figure.legend(*right.get_legend_handles_labels(), fontsize=7, loc="outside upper right", ncols=2, frameon=False)
    right.grid(axis="y", color="0.9")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.figure, dpi=110)
    print(options.figure)


if __name__ == "__main__":
    exit_with("ablation_figure", lambda words: main(tyro.cli(Options, description=__doc__, args=words)))
