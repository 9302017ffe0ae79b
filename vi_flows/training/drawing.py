"""What ``vi-flows sample`` writes for the kinds of runs on images."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from torch import Tensor

from vi_flows.plotting import save_image_grid
from vi_flows.training.tasks.base import DrawingSettings, PictureTask

__all__ = ["draw_grids"]

D = TypeVar("D", bound=DrawingSettings)


def draw_grids(task: PictureTask[D], folder: Path, settings: D) -> list[Path]:
    """Write the task's grids as PNG files; small images are drawn larger, channels that make no colours side by side.

    Args:
        task: with its trained weights.
        folder: where to.
        settings: of the task's kind.

    Returns:
        The files.
    """
    return [
        save_image_grid(_shown(images), folder / f"{name}.png", settings.columns, max(1, round(56 / images.shape[-2])))
        for name, images in task.pictures(settings).items()
    ]


def _shown(images: Tensor) -> Tensor:
    """Grey or RGB images as they are, ``(N, 1 or 3, H, W)``; of others the channels in a row, ``(N, 1, H, C·W)``."""
    count, channels, height, width = images.shape
    if channels in (1, 3):
        return images
    return images.movedim(1, 2).reshape(count, 1, height, channels * width)
