"""Learning curves of the VAE tables: validation and training bounds over the steps of every row from fresh weights.

    python experiments/learning_curves.py --runs runs/table   # collect the curves of a table's runs, then draw
    python experiments/learning_curves.py                     # draw those that were collected before

The curves are one record, ``experiments/results/vae-curves.json``, so that they outlive the runs' folders; rows that
are not among the runs keep the curves that they have.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import tyro

from vi_flows.cli.outcome import exit_with
from vi_flows.records import Record, from_json, provenance, row_key
from vi_flows.training import Run, VAETrainConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
RECORD = HERE / "results" / "vae-curves.json"
CURVES = ("steps", "seconds", "train", "valid")
"""What of a row is a list, a number a validated epoch."""
DRAWN = {
    "plain": "VAE", "global-k8": "ConvFlow, K = 8, global", "amortized-k2-tanh": "ConvFlow, K = 2, amortized",
    "amortized-k8-tanh": "ConvFlow, K = 8, amortized",
}  # fmt: skip
"""Rows of the figure, all trained by the ELBO, and what it calls them; the record has the others too."""
ABOVE_BEST = 6.0
"""Nats that a panel shows above its lowest training bound and below the first epochs."""


@dataclass(frozen=True)
class Options:
    """Where from, where to."""

    runs: Path | None = None
    """Folder of the runs of `vi-flows table run`; without it, nothing is collected."""
    record: Path = RECORD
    """The curves."""
    figure: Path = HERE.parent / "figures" / "vae-learning-curves.png"
    """Picture."""


def curve_of(run: Run) -> dict[str, Any]:
    """A run's validated epochs: steps, seconds of training, and negative bounds in nats; and what the run is.

    Args:
        run: with validation images.
    """
    config = cast(VAETrainConfig, run.config)
    lines = [from_json(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "valid_loss" in line]
    return {
        "dataset": config.dataset, "architecture": config.vae.architecture, "label": config.label,
        "objective": config.objective, "trained_on": config.device, "revision": run.trained_at,
        "steps": [line["step"] for line in lines], "seconds": [line["seconds"] for line in lines],
        "train": [-line["train_bound"] for line in lines], "valid": [line["valid_loss"] for line in lines],
    }  # fmt: skip


def collect(runs: Path) -> dict[str, dict[str, Any]]:
    """Curves by the runs' names: of the first seed, from fresh weights, with validation images.

    Args:
        runs: their folder.

    Raises:
        ValueError: there is none.
    """
    found = {}
    for path in sorted(runs.glob("*-clean-*-s0/metrics.jsonl")):
        run = Run.open(path.parent)
        if run.config.kind == "vae" and run.started_from is None:
            found[run.folder.name] = curve_of(run)
    if not found:
        raise ValueError(f"{runs} has no run of the clean protocol and seed 0; vi-flows table run makes them")
    return found


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a record, as :func:`curve_of` gave them but for rounding; none where there is no record.

    Args:
        path: of the record.
    """
    if not path.exists():
        return {}
    record = Record.read(path)
    return {
        name: row | {curve: record.scores[f"{name} {curve}"].tolist() for curve in CURVES}
        for name, row in record.figures["rows"].items()
    }


def write(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Write the record: the curves are numbers in the file beside it.

    Args:
        rows: by the runs' names.
        path: of the record.
    """
    curves = {f"{name} {curve}": np.asarray(row[curve], np.float32) for name, row in rows.items() for curve in CURVES}
    about = {name: {what: row[what] for what in row if what not in CURVES} for name, row in rows.items()}
    Record(
        kind="learning-curves", key=row_key("vae-curves", {"rows": list(rows)}), label="Learning curves",
        settings={"rows": list(rows)}, figures={"rows": about}, scores=curves, provenance=provenance(),
        note="Seconds are of runs that shared a GPU with others; steps are the measure.",
    ).write(path, overwrite=True)  # fmt: skip


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """A panel a data set and architecture; solid lines are validation images, dotted ones training images.

    Args:
        rows: curves by the runs' names.
        path: of the picture.

    Raises:
        ValueError: none of the rows belongs there.
    """
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for name, row in rows.items():
        place = row["dataset"], row["architecture"]
        model = name.removeprefix("-".join(place) + "-").partition("-clean-")[0]
        if model in DRAWN:
            panels.setdefault(place, {})[model] = row
    if not panels:
        raise ValueError(f"none of the rows {', '.join(rows)} is of the figure, which shows {', '.join(DRAWN)}")
    figure = Figure(figsize=(10, 3.3 * ((len(panels) + 1) // 2)), layout="constrained")
    grid = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False).flatten()
    for axes, (place, models) in zip(grid, panels.items(), strict=False):
        _draw_panel(axes, models)
        axes.set_title(f"{place[0]}, {place[1].upper()}", fontsize=10)
    for axes in grid[len(panels) :]:
        axes.axis("off")
    grid[0].legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_panel(axes: Axes, models: dict[str, dict[str, Any]]) -> None:
    for color, (model, label) in enumerate(DRAWN.items()):
        if model in models:
            row = models[model]
            axes.plot(row["steps"], row["valid"], color=f"C{color}", linewidth=1.2, label=label)
            axes.plot(row["steps"], row["train"], ":", color=f"C{color}", linewidth=1)
    low = min(min(row["train"]) for row in models.values())
    axes.set_ylim(low - 0.5, max(row["valid"][-1] for row in models.values()) + ABOVE_BEST)
    axes.set_xlabel("steps")
    axes.set_ylabel("−ELBO (nats)")
    axes.spines[["top", "right"]].set_visible(False)


def main(options: Options) -> None:
    """Collect where runs are named, and draw.

    Raises:
        ValueError: there is nothing to draw.
    """
    rows = read(options.record)
    if options.runs is not None:
        rows = dict(sorted((rows | collect(options.runs)).items()))
        write(rows, options.record)
    if not rows:
        raise ValueError(f"there is no {options.record}: --runs FOLDER collects one")
    draw(rows, options.figure)
    print(options.figure)


if __name__ == "__main__":
    exit_with("learning_curves", lambda words: main(tyro.cli(Options, description=__doc__, args=words)))
