"""Add, remove and sweep attributes of real images through a flow's latents, and measure what the edits changed.

    python experiments/attribute_edit.py runs/mnist-inv_conv3x3-small-seed0
    python experiments/attribute_edit.py runs/cifar-glow-short-seed0 --name cifar --attributes colors --no-class-edit

The counterpart of figure 5 of Nagar et al.: thickness, slant and width of digits, or brightness, contrast and warmth of
pictures, are measured on the images themselves (see ``vi_flows.diagnostics.attributes``), a class comes with the data.
Directions are fitted on training images; test images are edited and measured again. The record holds, for each
direction, the mean change of every attribute in standard deviations per unit of the edit, and how often a classifier
sees the class that was added.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from vi_flows.cli.outcome import exit_with
from vi_flows.data import ImageData
from vi_flows.diagnostics.attributes import ATTRIBUTES, Attributes, attribute_directions, edit
from vi_flows.distributions import ImageDensity
from vi_flows.records import Record, provenance, row_key
from vi_flows.training import ImageTrainConfig, Run

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Options:
    """What to edit."""

    folder: tyro.conf.Positional[Path]
    """Folder of a trained image flow (`vi-flows train image --dataset mnist`)."""
    name: str = "mnist"
    """Of the data, in the names of the record and of the picture: NAME-attribute-edits."""
    attributes: Literal["strokes", "colors"] = "strokes"
    """What to measure: thickness, slant and width, or brightness, contrast and warmth."""
    results: Path = HERE / "results"
    """Folder of the record."""
    figures: Path = HERE.parent / "figures"
    """Folder of the picture."""
    class_edit: bool = True
    """Add a class of the data, too, and ask a classifier."""
    shown: tuple[int, ...] = (2, 4, 7)
    """Classes of the images that are drawn, the first of each."""
    num_fit: int = 5000
    """Training images that the directions are fitted on."""
    num_test: int = 300
    """Test images that are edited and measured."""
    added_class: int = 9
    """Digit whose class is added to others."""
    class_amount: float = 4.0
    """How far the class is added, in units of its direction."""
    data_root: Path | None = None
    """Folder with the data files."""
    threads: int = 1
    """CPU threads."""


def spread(data: ImageData, split: str, count: int) -> tuple[Tensor, Tensor]:
    """So many images of a split with their classes, evenly spaced: some data sets are sorted by class."""
    images, labels = data.images(split), data.labels[split]
    chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).long()
    return images[chosen], labels[chosen]


def encode(density: ImageDensity, images: Tensor) -> Tensor:
    """Latents, in batches."""
    return torch.cat([density.encode(part) for part in images.split(250)])


def effects(
    density: ImageDensity, attributes: Attributes, images: Tensor, directions: Tensor, deviation: Tensor
) -> list[list[float]]:
    """Mean change of each attribute (columns) in standard deviations per unit of each edit (rows)."""
    rows = []
    for direction in directions:
        low, high = (attributes.measure(e) for e in edit(density, images, direction, (-1.0, 1.0)))
        change = (high - low) / 2 / deviation
        rows.append([round(float(v), 4) for v in change.nanmean(0)])
    return rows


def class_effect(
    density: ImageDensity, options: Options, fit: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], direction: Tensor
) -> dict[str, Any]:
    """How often a classifier, trained on other images, sees the added class before and after the edit."""
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier((100,), max_iter=200, random_state=0, early_stopping=True)
    classifier.fit(fit[0].flatten(1).numpy() / 255, fit[1].numpy())
    others = test[0][test[1] != options.added_class]

    def share(images: Tensor) -> float:
        return float((classifier.predict(images.flatten(1).numpy() / 255) == options.added_class).mean())

    edited = edit(density, others, direction, (-options.class_amount, options.class_amount))
    accuracy = float((classifier.predict(test[0].flatten(1).numpy() / 255) == test[1].numpy()).mean())
    return {
        "class": options.added_class,
        "amount": options.class_amount,
        "classifier_accuracy": accuracy,
        "seen_before": share(others),
        "seen_after_adding": share(edited[1]),
        "seen_after_removing": share(edited[0]),
        "num_images": len(others),
    }


def draw(
    density: ImageDensity, options: Options, test: Tensor, labels: Tensor, swept: dict[str, tuple[Tensor, float]]
) -> Path:
    """One row a direction: the same test images swept from less to more, the original in the middle.

    Returns:
        Where the picture is.

    Raises:
        ValueError: no image is of a class that is to be shown.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    missing = [label for label in options.shown if label not in labels]
    if missing:
        found = ", ".join(str(label) for label in sorted(set(labels.tolist())))
        raise ValueError(
            f"none of the {len(labels)} test images is of class {missing[0]}; --shown takes some of {found}"
        )
    chosen = [int((labels == label).nonzero()[0]) for label in options.shown]
    rows = len(swept) * len(chosen)
    figure, axes = plt.subplots(rows, 7, figsize=(5.2, 0.8 * rows))
    for block, (name, (direction, amount)) in enumerate(swept.items()):
        steps = np.linspace(-amount, amount, 7)
        edited = edit(density, test[chosen], direction, list(steps)).permute(0, 1, 3, 4, 2)
        for line in range(len(chosen)):
            for column, step in enumerate(steps):
                axis = axes[block * len(chosen) + line, column]
                picture = edited[column, line]
                axis.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
                axis.set_xticks([])
                axis.set_yticks([])
                for side in axis.spines.values():
                    side.set_color("tab:orange" if column == 3 else "none")
                    side.set_linewidth(2)
                if line == 0:
                    axis.set_title(f"{step:+.1f}" if column != 3 else "original", fontsize=7, pad=2)
                if line == 1 and column == 0:
                    axis.set_ylabel(name, fontsize=9)
    figure.subplots_adjust(0.06, 0.01, 0.99, 0.97, 0.05, 0.22)
    path = options.figures / f"{options.name}-attribute-edits.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def main(options: Options) -> None:
    """Fit, edit, measure, draw."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    run = Run.open(options.folder, options.data_root)
    if not isinstance(run.config, ImageTrainConfig) or run.config.labels:
        raise ValueError(
            f"{options.folder} is a run of {run.config.kind} {run.config.name}; directions are edited in the latents "
            "of an image flow that was trained by `vi-flows train image` without --labels"
        )
    task = run.build_task()
    trained = run.load_weights(task)
    density, data = task.module, run.data
    fit, test = spread(data, "train", options.num_fit), spread(data, "test", options.num_test)
    attributes = ATTRIBUTES[options.attributes]
    measured = attributes.measure(fit[0])
    deviation = measured.std(0)
    latents = encode(density, fit[0])
    both = {
        "covariance": attribute_directions(latents, measured, partial=False),
        "partial": attribute_directions(latents, measured),
    }
    swept = {name: (d, 3.0) for name, d in zip(attributes.names, both["partial"], strict=True)}
    record = {
        "attributes": list(attributes.names),
        "effects": {name: effects(density, attributes, test[0], d, deviation) for name, d in both.items()},
        "correlations": np.corrcoef(measured.numpy().T).round(3).tolist(),
        "num_fit": len(fit[0]),
        "num_test": len(test[0]),
        "flow": run.config.name,
        "epochs": trained["epoch"],
    }
    if options.class_edit:
        indicator = (fit[1] == options.added_class).double()[:, None]
        added = attribute_directions(latents, torch.cat([indicator, measured], 1))[0]
        record["class_edit"] = class_effect(density, options, fit, test, added)
        swept[f"class {options.added_class}"] = (added, options.class_amount)
    chosen = ("added_class", "class_amount", "num_fit", "num_test")
    settings = {"run": run.config.key, **{name: getattr(options, name) for name in chosen}}
    Record(
        kind="attribute_edit",
        key=row_key("attribute_edit", settings),
        label=f"attributes edited in the latents of {run.config.name}",
        settings=settings,
        figures=record,
        provenance=provenance(data_sha256=data.sha256, trained_at_revision=run.trained_at),
    ).write(options.results / f"{options.name}-attribute-edits.json", overwrite=True)
    path = draw(density, options, *test, swept)
    print("change in standard deviations of", *attributes.names)
    for name, matrix in record["effects"].items():
        for attribute, row in zip(attributes.names, matrix, strict=True):
            print(f"  {name:10s} +1 {attribute:10s}", *(f"{v:+.3f}" for v in row))
    if "class_edit" in record:
        print(record["class_edit"])
    print(options.results / f"{options.name}-attribute-edits.json", path)


if __name__ == "__main__":
    exit_with("attribute_edit", lambda words: main(tyro.cli(Options, args=words)))
