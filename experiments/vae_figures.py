"""Pictures of the committed VAEs: samples beside training images.

python experiments/vae_figures.py [--data-root PATH]   # needs the data (VI_FLOWS_DATA); writes into figures/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from vi_flows.cli.outcome import exit_with
from vi_flows.plotting import save_image_grid
from vi_flows.training import Run
from vi_flows.training.tasks.base import BinaryDrawingSettings

HERE = Path(__file__).parent
GRIDS = ("binarized_mnist-g2-amortized-k8-tanh-iwae5", "omniglot28-g2-amortized-k8-tanh-iwae50")


@dataclass(frozen=True)
class Figures:
    """What to draw from, and where to."""

    pretrained: Path = HERE / "pretrained"
    """Folder of the committed runs."""
    figures: Path = HERE.parent / "figures"
    """Folder of the pictures."""
    data_root: Path | None = None
    """Folder with the data files; default: VI_FLOWS_DATA, else the download cache."""
    columns: int = 10
    """Images a row of each grid, and rows of it."""


def grid(run: Run, columns: int) -> torch.Tensor:
    """Rows of ``columns`` training images, a gap, and as many pixel means of the model's draws, ``(N, 1, H, W)``."""
    task = run.build_task()
    run.load_weights(task)
    torch.manual_seed(0)
    pictures = task.pictures(BinaryDrawingSettings(columns, columns))
    data, samples = (
        pictures[name].reshape(columns, columns, *pictures[name].shape[1:]) for name in ("data", "samples")
    )
    gap = torch.ones(columns, 1, *data.shape[2:])
    return torch.cat([data, gap, samples], 1).flatten(0, 1)


def main(options: Figures) -> None:
    for name in GRIDS:
        path = options.figures / f"vae-samples-{name.partition('-')[0]}.png"
        run = Run.open(options.pretrained / name, options.data_root)
        save_image_grid(grid(run, options.columns), path, 2 * options.columns + 1)
        print(path)


if __name__ == "__main__":
    exit_with("vae_figures", lambda words: main(tyro.cli(Figures, description=__doc__, args=words)))
