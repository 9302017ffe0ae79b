"""What ``vi-flows sample`` writes for the kinds of runs on images."""

from __future__ import annotations

from pathlib import Path

from vi_flows.plotting import save_image_grid
from vi_flows.training.tasks.vae import PictureTask

__all__ = ["draw_grids"]


def draw_grids(
    task: PictureTask, folder: Path, rows: int, columns: int, binary: bool, temperature: float
) -> list[Path]:
    """Write the task's grids as PNG files; small images are drawn larger.

    Args:
        task: with its trained weights.
        folder: where to.
        rows: see :meth:`~vi_flows.training.tasks.vae.PictureTask.pictures`, as the following.
        columns: as above.
        binary: as above.
        temperature: as above.

    Returns:
        The files.

    Raises:
        ValueError: see the task.
    """
    grids = task.pictures(rows, columns, binary, temperature)
    return [
        save_image_grid(images, folder / f"{name}.png", columns, max(1, round(56 / images.shape[-2])))
        for name, images in grids.items()
    ]
