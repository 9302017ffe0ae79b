"""Figure of the ablations: what each change of the recipe makes of the NLL of the validation images, and what it costs.

    python experiments/ablation_figure.py

One line a record that ``vi-flows table run --rows 'ablation-*'`` made, in two panels of the same order: the NLL of the
validation images with its 95 % interval over images, which all recipes share, and the seconds of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from vi_flows.records import Record

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Options:
    """What to draw."""

    records: Path = HERE / "results" / "vae" / "ablation"
    """Folder of the records."""
    figure: Path = HERE.parent / "figures" / "vae-ablations.png"
    """Picture."""
    model: str = "ablation-binarized_mnist-g1-amortized-k4-tanh"
    """What the names of the records begin with."""


def rows_of(folder: Path, model: str) -> dict[str, Record]:
    """Records by the name of the change, the worst first.

    Args:
        folder: of the records.
        model: what their names begin with.
    """
    found = {path.stem.removeprefix(f"{model}-"): Record.read(path) for path in folder.glob(f"{model}-*.json")}
    return dict(sorted(found.items(), key=lambda row: -row[1].figures["nll"]))


def main(options: Options) -> None:
    """Draw the figure."""
    import matplotlib.pyplot as plt

    rows = rows_of(options.records, options.model)
    if not rows:
        raise SystemExit(f"{options.records} has no record whose name begins with {options.model}")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 1 + 0.3 * len(rows)), sharey=True)
    for height, record in enumerate(rows.values()):
        left.plot(record.figures["interval"], [height, height], color="0.7", linewidth=1.5)
        left.plot(record.figures["nll"], height, "o", color="C0", markersize=5)
    left.set_yticks(range(len(rows)), list(rows))
    left.set_xlabel("NLL of the validation images (nats)")
    right.barh(range(len(rows)), [r.provenance["training_seconds"] for r in rows.values()], height=0.5, color="0.6")
    right.set_xlabel("training (seconds)")
    figure.tight_layout()
    figure.savefig(options.figure, dpi=110)
    plt.close(figure)
    print(options.figure)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
