"""Pictures of densities on the plane (matplotlib is imported when one is drawn)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from vi_flows.distributions.energies import Energy2D
from vi_flows.transforms import Bijection

__all__ = ["plot_fits_2d"]


def plot_fits_2d(
    target: Energy2D,
    fits: Sequence[tuple[str, Bijection]],
    path: Path | str,
    view: tuple[float, float, float, float] | None = None,
    columns: int = 6,
    num_samples: int = 1_000_000,
) -> Path:
    """Draw the target and the densities of flows of N(0, I₂) side by side, as in figure 2 of the ConvFlow paper.

    Flows are drawn as histograms of their samples, so that those without an inverse can be compared.

    Args:
        target: drawn first.
        fits: titles and flows.
        path: the PNG file; its folder is made.
        view: ``(z₁ min, z₁ max, z₂ min, z₂ max)``; default: the inner 5 units around the origin.
        columns: panels a row.
        num_samples: draws of each flow.

    Returns:
        ``path``.
    """
    from matplotlib.figure import Figure

    a, b, c, d = view = view or (-5.0, 5.0, -5.0, 5.0)
    bins = 160
    mesh = torch.stack(torch.meshgrid(torch.linspace(a, b, bins), torch.linspace(c, d, bins), indexing="ij"), -1)
    panels = [(f"target {target.name}", target.log_prob(mesh).exp())]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for title, flow in fits:
            count = torch.zeros(bins, bins)
            for _ in range(max(1, num_samples // 100_000)):
                x, _ = flow.forward_and_ladj(torch.randn(100_000, 2))
                count += torch.histogramdd(x, [bins, bins], range=list(view)).hist
            panels.append((title, count))
    rows = -(-len(panels) // columns)
    width = min(columns, len(panels))
    figure = Figure(figsize=(2.0 * width, 2.15 * rows), layout="constrained")
    axes = figure.subplots(rows, width, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, (title, density) in zip(axes, panels, strict=False):
        axis.imshow(density.T.numpy(), origin="lower", extent=(a, b, c, d), cmap="magma", aspect="auto")
        axis.set_title(title, fontsize=7)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path
