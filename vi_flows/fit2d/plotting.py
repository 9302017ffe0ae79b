"""Pictures of densities on the plane (matplotlib is imported when one is drawn)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vi_flows.distributions.energies import Energy2D
from vi_flows.fit2d.plane import dtype_of, of_the_plane
from vi_flows.plotting import save_figure
from vi_flows.settings import check_counts
from vi_flows.transforms import Bijection

__all__ = ["picture_of_draws", "picture_of_target", "plot_fits_2d", "plot_panels_2d"]

View = tuple[float, float, float, float]
"""``(z₁ min, z₁ max, z₂ min, z₂ max)``."""
INNER: View = (-5.0, 5.0, -5.0, 5.0)

Picture = Callable[[View], Tensor]
"""Densities on a grid of the part of the plane that is asked for, first ``z₁`` then ``z₂``."""

BINS = 160
"""Of each side of a grid."""


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
        path: the file, a PNG unless it ends otherwise; its folder is made.
        view: the part of the plane that is shown.
        columns: panels a row.
        num_samples: draws of each flow.

    Returns:
        ``path``.
    """
    panels: list[tuple[str, Picture, View]] = [(f"target {target.name}", picture_of_target(target), view)]
    panels += [(title, picture_of_draws(flow, num_samples), view) for title, flow in fits]
    return plot_panels_2d(panels, path, columns)


def plot_panels_2d(
    panels: Sequence[tuple[str, Picture, View]],
    path: Path | str,
    columns: int = 6,
) -> Path:
    """Draw targets and flows of N(0, I₂), each panel with a view of its own.

    Args:
        panels: title, picture (:func:`picture_of_target`, :func:`picture_of_draws`), and view of each panel.
        path: the file, a PNG unless it ends otherwise; its folder is made.
        columns: panels a row.

    Returns:
        ``path``.

    Raises:
        ValueError: there is no panel or no column, or a view has no inside.
    """
    from matplotlib.figure import Figure

    check_counts(1, columns=columns)
    if not panels:
        raise ValueError("there is nothing to draw: panels is empty")
    for title, _, (a, b, c, d) in panels:
        if not (a < b and c < d):
            raise ValueError(f"the view of {title!r} must be (z1 min, z1 max, z2 min, z2 max), got {(a, b, c, d)}")
    rows, width = -(-len(panels) // columns), min(columns, len(panels))
    figure = Figure(figsize=(2.0 * width, 2.15 * rows), layout="constrained")
    axes = figure.subplots(rows, width, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, (title, picture, view) in zip(axes, panels, strict=False):
        axis.imshow(picture(view).T.numpy(), origin="lower", extent=view, cmap="magma", aspect="auto")
        axis.set_title(title, fontsize=7)
    return save_figure(figure, Path(path), 100)


def picture_of_target(target: Energy2D) -> Picture:
    """The target's density itself."""

    def picture(view: View) -> Tensor:
        a, b, c, d = view
        mesh = torch.meshgrid(torch.linspace(a, b, BINS), torch.linspace(c, d, BINS), indexing="ij")
        return target.log_prob(torch.stack(mesh, -1)).exp()

    return picture


def picture_of_draws(flow: Bijection, num_samples: int = 1_000_000) -> Picture:
    """A histogram of a flow's samples, so that flows without an inverse can be compared.

    Args:
        flow: of N(0, I₂).
        num_samples: draws, 100 000 at once.

    Raises:
        TypeError: the flow is no bijection.
        ValueError: ``num_samples`` is less than 1.
    """
    check_counts(1, num_samples=num_samples)
    flow = of_the_plane(flow)
    dtype = dtype_of(flow)

    def picture(view: View) -> Tensor:
        count = torch.zeros(BINS, BINS)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            for first in range(0, num_samples, 100_000):
                x, _ = flow.forward_and_ladj(torch.randn(min(100_000, num_samples - first), 2, dtype=dtype))
                count += torch.histogramdd(x.float(), [BINS, BINS], range=list(view)).hist
        return count

    return picture
