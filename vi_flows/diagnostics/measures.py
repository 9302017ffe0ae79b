"""Single numbers: invertibility margin, active units."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vi_flows.transforms.capabilities import min_slope_of, outermost

__all__ = ["active_units", "invertibility_margin"]


@torch.no_grad()
def invertibility_margin(flow: nn.Module) -> float | None:
    r"""The least slope ``min(1 + w₁ uᵢ h′)`` that any ConvFlow layer in ``flow`` can have anywhere.

    The slope lies between ``1`` and ``1 + M w₁ uᵢ`` with ``M = sup h′``; zero would be the end of invertibility, and
    the parameterisation keeps it above ``e⁻⁷ ≈ 9e-4``. A margin near that bound means that the flow folds a region to
    almost nothing: its inverse loses digits there.

    Args:
        flow: any module with ConvFlow layers, a guide or a conditioned flow among them.

    Returns:
        The margin, or ``None`` if there is no ConvFlow layer.
    """
    least = min_slope_of(outermost(nn.ModuleList([flow])))
    return None if least == math.inf else least


def active_units(posterior_means: Tensor, threshold: float = 0.01) -> Tensor:
    """Which latent dimensions respond to the data: variance of ``E_q[z|x]`` over rows above ``threshold``.

    Burda, Grosse and Salakhutdinov (2016), section 5.2; latents of unit prior variance.

    Args:
        posterior_means: ``(rows, d)``.
        threshold: of the variance.

    Returns:
        Booleans of shape ``(d,)``.

    Raises:
        ValueError: fewer than two rows.
    """
    if posterior_means.dim() != 2 or posterior_means.shape[0] < 2:
        raise ValueError(f"expected (rows, d) with at least two rows, got {tuple(posterior_means.shape)}")
    return posterior_means.var(0) > threshold
