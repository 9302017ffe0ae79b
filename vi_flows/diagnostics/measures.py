"""Single numbers: invertibility margin, active units, shapes of tails."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vi_flows.evaluation.psis import fit_generalised_pareto, tail_size
from vi_flows.transforms.capabilities import min_slope_of, outermost

__all__ = ["active_units", "invertibility_margin", "reach", "tail_shape"]

K_FOURTH_MOMENT = 0.25
"""A generalised Pareto tail of this shape or more has no fourth moment: a sample's spread has no standard error."""

REACHED = 0.99
"""Share of the draws that lie within half the reach."""


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


def tail_shape(draws: Tensor) -> Tensor:
    r"""Shape ``k`` of the generalised Pareto law of each coordinate's largest distances from its median.

    A law has no mean if ``k ≥ 1`` and no variance if ``k ≥ 1/2``; near these, the moments of any number of draws rest
    on the few largest ones (Vehtari, Simpson, Gelman, Yao and Gabry 2024, section 3: the same fit as for importance
    weights). The tail holds ``min(S/5, 3√S)`` of ``S`` draws, of both sides.

    Args:
        draws: ``(S, …)``.

    Returns:
        The shape of one draw; −∞ for a coordinate without a spread or with fewer than 5 draws in the tail.
    """
    values = draws.detach().double().cpu()
    flat = values.reshape(len(values), -1)
    shape = torch.full((flat.shape[1],), -math.inf, dtype=torch.float64)
    tail = tail_size(len(flat))
    if tail >= 5 and flat.shape[1] > 0:
        ordered = (flat - flat.median(0).values).abs().sort(0).values
        excess = (ordered[-tail:] - ordered[-tail - 1]).T
        spread = excess[:, int(tail / 4 + 0.5) - 1] > 0
        if bool(spread.any()):
            shape[spread] = fit_generalised_pareto(excess[spread])[0]
    return shape.reshape(values.shape[1:])


def reach(draws: Tensor) -> tuple[Tensor, Tensor]:
    r"""Least and largest value of each coordinate with which its mean and its spread can be judged.

    Where the tail has no fourth moment (:func:`tail_shape` of ¼ or more), a spread of any number of draws is decided by
    the outermost ones, and its standard error is as good as none: values count as no further than ``m ± 2 q``, ``m``
    the median and ``q`` the 99 % quantile of the distance from it (of a normal law, five standard deviations).

    Args:
        draws: ``(S, …)``.

    Returns:
        Both of the shape of one draw, in double precision; −∞ and ∞ for coordinates of lighter tails.
    """
    values = draws.detach().double().cpu()
    flat = values.reshape(len(values), -1)
    median = flat.median(0).values
    far = 2 * (flat - median).abs().sort(0).values[int(REACHED * (len(flat) - 1))]
    far[~(tail_shape(flat) >= K_FOURTH_MOMENT)] = math.inf
    return (median - far).reshape(values.shape[1:]), (median + far).reshape(values.shape[1:])
