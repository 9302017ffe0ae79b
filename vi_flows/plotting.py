"""Pictures: image grids (with Pillow) and curves (matplotlib, imported only when something is drawn)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vi_flows.records import write_atomic
from vi_flows.settings import check_counts, check_tensors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["save_figure", "save_image_grid", "save_intervals"]


def save_figure(figure: Figure, path: Path, dpi: int) -> Path:
    """Write a figure whole or not at all, as on a full disk.

    Args:
        figure: drawn.
        path: the picture, of the kind that its ending names, PNG without one; its folder is made.
        dpi: points an inch.

    Returns:
        ``path``.

    Raises:
        ValueError: there is no such kind of picture.
        OSError: it can't be written.
    """
    content = io.BytesIO()
    figure.savefig(content, dpi=dpi, format=path.suffix[1:] or "png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content.getvalue())
    return path


def save_image_grid(images: Tensor, path: Path, columns: int | None = None, scale: int = 2, padding: int = 1) -> Path:
    """Write images side by side into one PNG.

    Args:
        images: ``(N, C, H, W)`` with one or three channels, values in [0, 1] (others are clipped).
        path: the PNG file; its folder is made.
        columns: images a row; default: the square root of ``N``, rounded up.
        scale: pixels of the picture for each pixel of an image.
        padding: grey pixels between images.

    Returns:
        ``path``.

    Raises:
        ValueError: there is no image, or it has neither one nor three channels.
        OSError: the picture can't be written; what was there before stays.
    """
    from PIL import Image

    check_tensors(images=images)
    if columns is not None:
        check_counts(1, columns=columns)
    if images.dim() != 4 or len(images) == 0 or images.shape[1] not in (1, 3):
        raise ValueError(f"expected (N, 1 or 3, H, W) with N > 0, got {tuple(images.shape)}")
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else min(columns, count)
    rows = math.ceil(count / columns)
    canvas = images.new_full(
        (channels, rows * (height + padding) + padding, columns * (width + padding) + padding), 0.5
    )
    for index, image in enumerate(images.detach()):
        row, column = divmod(index, columns)
        top, left = padding + row * (height + padding), padding + column * (width + padding)
        canvas[:, top : top + height, left : left + width] = image
    pixels = (canvas.clamp(0, 1) * 255).round().byte().cpu().movedim(0, -1).numpy()
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    content = io.BytesIO()
    picture.save(content, format="PNG", optimize=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content.getvalue())
    return path


def save_intervals(groups: Mapping[str, Sequence[tuple[str, float, float, float]]], path: Path) -> Path:
    """Draw values with their intervals, a line each, one panel a group.

    Args:
        groups: by title with unit; of each line its name, value, and the interval's ends.
        path: the picture, by its ending; its folder is made.

    Returns:
        ``path``.
    """
    from matplotlib.figure import Figure

    counts = [len(lines) for lines in groups.values()]
    figure = Figure(figsize=(9.0, 0.28 * sum(counts) + 0.9 * len(counts)), layout="constrained")
    panels = figure.subplots(len(counts), 1, squeeze=False, height_ratios=[count + 1.5 for count in counts])[:, 0]
    for panel, (title, lines) in zip(panels, groups.items(), strict=True):
        for place, (_, value, low, high) in enumerate(lines):
            panel.plot([low, high], [place, place], color="0.5", linewidth=2)
            panel.plot(value, place, "o", color="C0", markersize=5)
        panel.set_yticks(range(len(lines)), [name for name, *_ in lines], fontsize=8)
        panel.set_ylim(len(lines) - 0.5, -0.5)
        panel.set_title(title, fontsize=9, loc="left")
        panel.grid(axis="x", color="0.9")
        panel.tick_params(axis="x", labelsize=8)
    return save_figure(figure, path, 120)
