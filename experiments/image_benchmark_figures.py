"""Figures of the benchmarks of image flows; see ``image_benchmark.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from image_benchmark_tables import Figures, by_row, mean_of

from vi_flows.distributions import ImageDensity
from vi_flows.training import Run


def draw_curves(records: Sequence[Figures], path: Path, steps: Mapping[str, int], reference_seconds: float) -> None:
    """Validation bits/dim of the averaged weights over CPU time, a line a row (its first seed).

    Args:
        records: their figures.
        path: of the picture.
        steps: a row's by name.
        reference_seconds: that they are worth: all rows' times are those of one machine.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    ordered = sorted((group[0] for group in by_row(records).values()), key=lambda r: r["curve"][-1]["valid_loss"])
    low = ordered[0]["curve"][-1]["valid_loss"]
    for index, record in enumerate(ordered):
        curve = [line for line in record["curve"] if line["step"] > 1]
        last = curve[-1]["valid_loss"]
        label = record["row"] if last <= low + 0.6 else f"{record['row']}\n(above, ends at {last:.2f})"
        second = reference_seconds / steps[record["row"]]
        axes.plot(
            [line["step"] * second for line in curve], [line["valid_loss"] for line in curve],
            color=plt.get_cmap("tab20")(index % 20), ls=("-", "--")[index % 2], lw=1.2, label=label,
        )  # fmt: skip
    axes.set(xlabel="training, CPU seconds of one machine", ylabel="validation bits/dim", ylim=(low - 0.03, low + 0.6))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_samples(
    out: Path, records: Sequence[Figures], path: Path, data_root: Path | None, columns: int = 16
) -> str | None:
    """A line of samples at temperature 1 a row (its first seed), of the rows whose weights are in ``out``.

    Returns:
        Why a picture that is there was left as it is: rows without weights would be missing in the new one.
    """
    strips: dict[str, torch.Tensor] = {}
    trained = _trained(out, records)
    lacking = sorted({record["row"] for record in records} - set(trained))
    if lacking and path.exists():
        return f"{path} is left as it is: {out} has no weights of {', '.join(lacking)}; delete it to draw the others"
    for row, folder in trained.items():
        run, density = _opened(folder, data_root)
        strips.setdefault("test images", _test_images(run, columns) / (density.num_levels - 1))
        strips[row] = _sampled(density, columns, 1.0)
    if strips:
        _draw_strips(strips, path, 2.0)
    return None


def draw_best(
    out: Path, records: Sequence[Figures], path: Path, data_root: Path | None, columns: int = 16
) -> str | None:
    """The best row's samples at four temperatures, of the same draws, and ways between test images in its latents.

    Returns:
        Why there is no new picture: ``out`` has no weights of the best row.
    """
    best = min(by_row(records).items(), key=lambda item: mean_of("bits_per_dim", item[1]))[0]
    folder = _trained(out, records).get(best)
    if folder is None:
        return f"{path} is not drawn: {out} has no weights of {best}, the best row"
    run, density = _opened(folder, data_root)
    strips = {f"temperature {t:g}": _sampled(density, columns, t) for t in (0.6, 0.75, 0.9, 1.0)}
    ends = _test_images(run, 2 * len(strips))
    for index, (first, second) in enumerate(zip(ends[::2], ends[1::2], strict=True)):
        line = density.interpolate(first, second, columns)
        strips[f"interpolation {index + 1}"] = line / (density.num_levels - 1)
    _draw_strips(strips, path, 1.5)
    return None


def _trained(out: Path, records: Sequence[Figures]) -> dict[str, Path]:
    """By row, best first, the folder of its first seed, where the weights are in ``out``."""
    found: dict[str, Path] = {}
    for record in sorted(records, key=lambda r: (r["seed"], r["bits_per_dim"])):
        folder = out / f"{record['row']}-s{record['seed']}"
        if (folder / "best.safetensors").exists():
            found.setdefault(record["row"], folder)
    return found


def _opened(folder: Path, data_root: Path | None) -> tuple[Run, ImageDensity]:
    run = Run.open(folder, data_root)
    task = run.build_task()
    run.load_weights(task, "best")
    return run, task.module


def _test_images(run: Run, count: int) -> torch.Tensor:
    """So many, evenly spaced: some data sets are sorted by class."""
    images = run.data.images("test")
    return images[torch.linspace(0, len(images) - 1, count).long()]


def _sampled(density: ImageDensity, count: int, temperature: float) -> torch.Tensor:
    """Samples, black 0 and white 1; those that are not finite become NaN, which :func:`_strip` shows in red."""
    torch.manual_seed(0)
    logits = density.sample_logits(count, temperature)
    broken = ~logits.isfinite().flatten(1).all(1)[:, None, None, None]
    levels = density.num_levels
    images = (levels * density.pixels.forward_and_ladj(logits)[0]).floor().clamp(0, levels - 1)
    return (images / (levels - 1)).masked_fill(broken, torch.nan)


def _draw_strips(strips: dict[str, torch.Tensor], path: Path, margin: float) -> None:
    """Lines of as many images, with their names in a margin of so many inches."""
    import matplotlib.pyplot as plt

    columns = len(next(iter(strips.values())))
    width = 0.5 * columns + margin
    figure, axes = plt.subplots(len(strips), 1, figsize=(width, 0.5 * len(strips)))
    for axis, (name, images) in zip(axes, strips.items(), strict=True):
        axis.imshow(_strip(images))
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
    figure.subplots_adjust(left=margin / width, right=0.995, top=0.995, bottom=0.005, hspace=0.05)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _strip(images: torch.Tensor) -> np.ndarray:
    """Images side by side in colours, dark on white where they have one channel; those that hold a NaN are red."""
    flat = torch.cat(list(images), -1).movedim(0, -1).numpy()
    colours = np.repeat(1 - flat, 3, -1) if flat.shape[-1] == 1 else flat
    return np.where(np.isnan(colours), np.array([1.0, 0.0, 0.0]), colours)
