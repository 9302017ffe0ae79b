"""Pictures of densities on the plane (matplotlib is imported when one is drawn)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from vi_flows.distributions.energies import Energy2D
from vi_flows.transforms import Bijection

__all__ = ["plot_fits_2d", "plot_panels_2d"]

View = tuple[float, float, float, float]
"""``(z₁ min, z₁ max, z₂ min, z₂ max)``."""
INNER: View = (-5.0, 5.0, -5.0, 5.0)


def plot_fits_2d(
    target: Energy2D,
    fits: Sequence[tuple[str, Bijection]],
    path: Path | str,
    view: View = INNER,
    columns: int = 6,
    num_samples: int = 1_000_000,
) -> Path:
    """Draw the target and the densities of flows of N(0, I₂) side by side, as in figure 2 of the ConvFlow paper.

    Args:
        target: drawn first.
        fits: titles and flows.
        path: the PNG file; its folder is made.
        view: the part of the plane that is shown.
        columns: panels a row.
        num_samples: draws of each flow.

    Returns:
        ``path``.
    """
    panels: list[tuple[str, Energy2D | Bijection, View]] = [(f"target {target.name}", target, view)]
    panels += [(title, flow, view) for title, flow in fits]
    return plot_panels_2d(panels, path, columns, num_samples)


def plot_panels_2d(
    panels: Sequence[tuple[str, Energy2D | Bijection, View]],
    path: Path | str,
    columns: int = 6,
    num_samples: int = 1_000_000,
) -> Path:
    """Draw targets and flows of N(0, I₂), each panel with a view of its own.

    Flows are drawn as histograms of their samples, so that those without an inverse can be compared.

    Args:
        panels: title, target or flow, and view of each panel.
        path: the PNG file; its folder is made.
        columns: panels a row.
        num_samples: draws of each flow.

    Returns:
        ``path``.
    """
    from matplotlib.figure import Figure

    rows, width = -(-len(panels) // columns), min(columns, len(panels))
    figure = Figure(figsize=(2.0 * width, 2.15 * rows), layout="constrained")
    axes = figure.subplots(rows, width, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, (title, density, view) in zip(axes, panels, strict=False):
        image = _density(density, view, num_samples)
        axis.imshow(image.T.numpy(), origin="lower", extent=view, cmap="magma", aspect="auto")
        axis.set_title(title, fontsize=7)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path


def _density(density: Energy2D | Bijection, view: View, num_samples: int, bins: int = 160) -> torch.Tensor:
    a, b, c, d = view
    if isinstance(density, Energy2D):
        mesh = torch.meshgrid(torch.linspace(a, b, bins), torch.linspace(c, d, bins), indexing="ij")
        return density.log_prob(torch.stack(mesh, -1)).exp()
    count = torch.zeros(bins, bins)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for _ in range(max(1, num_samples // 100_000)):
            x, _ = density.forward_and_ladj(torch.randn(100_000, 2))
            count += torch.histogramdd(x, [bins, bins], range=list(view)).hist
    return count
