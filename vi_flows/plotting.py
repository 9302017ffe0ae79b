"""Pictures: image grids (with Pillow) and curves (matplotlib, imported only when something is drawn)."""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

__all__ = ["save_image_grid"]


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
    """
    from PIL import Image

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
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    return path
