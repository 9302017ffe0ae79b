r"""Monotone rational-quadratic splines of single entries (Durkan, Bekasov, Murray & Papamakarios 2019, section 3.1)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["rational_quadratic"]

MIN_BIN, MIN_SLOPE = 1e-3, 1e-3
"""Smallest width and height of a bin as a share of all, and smallest slope at a knot (the paper's implementation)."""
UNIT_SLOPE = math.log(math.expm1(1.0 - MIN_SLOPE))  # a free slope of zero stands for a slope of one


def _knots(free: Tensor, bound: float) -> Tensor:
    """Places of the ``K + 1`` knots from ``K`` free sizes."""
    count = free.shape[-1]
    sizes = MIN_BIN + (1.0 - MIN_BIN * count) * torch.softmax(free, -1)
    inner = 2.0 * bound * torch.cumsum(sizes, -1)[..., :-1] - bound
    edge = torch.full_like(free[..., :1], bound)
    return torch.cat([-edge, inner, edge], -1)


def rational_quadratic(
    x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, bound: float, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    r"""A spline through ``K + 1`` knots on ``[−B, B]``, the identity with slope one outside.

    In a bin of width ``w``, height ``h``, chord ``s = h/w`` and slopes ``δ₀, δ₁`` at its ends, with ``ξ`` the place
    within the bin,

        ``y = y₀ + h (s ξ² + δ₀ ξ(1−ξ)) / (s + (δ₀ + δ₁ − 2s) ξ(1−ξ))``   (eq. 4),

    and the inverse solves a quadratic in its stable form (eq. 6–8). Free parameters of zero give the identity.

    Args:
        x: entries of any shape.
        widths: free widths of the bins, ``(…, K)``, broadcastable to ``x.shape + (K,)``.
        heights: free heights, the same.
        slopes: free slopes at the inner knots, ``(…, K − 1)``.
        bound: ``B``.
        inverse: map ``y`` to ``x``.

    Returns:
        The mapped entries, and the log of the slope of what was done, both of the broadcast shape.
    """
    xs, ys = _knots(widths, bound), _knots(heights, bound)
    ends = torch.ones_like(widths[..., :1])
    deltas = torch.cat([ends, MIN_SLOPE + F.softplus(slopes + UNIT_SLOPE), ends], -1)
    inside = (x >= -bound) & (x <= bound)
    value = x.clamp(-bound, bound)
    edges = ys if inverse else xs
    # The bin is the number of inner knots that the value has passed.
    index = (value.unsqueeze(-1) >= edges[..., 1:-1]).sum(-1, keepdim=True)

    def pick(table: Tensor, shift: int = 0) -> Tensor:
        table = table.expand(*index.shape[:-1], table.shape[-1])
        return table.gather(-1, index + shift).squeeze(-1)

    x0, y0, d0, d1 = pick(xs), pick(ys), pick(deltas), pick(deltas, 1)
    width, height = pick(xs, 1) - x0, pick(ys, 1) - y0
    chord = height / width
    bend = d0 + d1 - 2.0 * chord
    if inverse:
        rise = value - y0
        a = height * (chord - d0) + rise * bend
        b = height * d0 - rise * bend
        root = (b.square() + 4.0 * a * chord * rise).clamp(min=0.0)
        # 2c / (−b − √…) with c = −s·rise; the denominator is zero for no parameters, since b > 0 at rise = 0.
        xi = 2.0 * chord * rise / (b + root.sqrt())
    else:
        xi = (value - x0) / width
    mix = xi * (1.0 - xi)
    below = chord + bend * mix
    slope = chord.square() * (d1 * xi.square() + 2.0 * chord * mix + d0 * (1.0 - xi).square()) / below.square()
    mapped = x0 + xi * width if inverse else y0 + height * (chord * xi.square() + d0 * mix) / below
    log_slope = -slope.log() if inverse else slope.log()
    return torch.where(inside, mapped, x), torch.where(inside, log_slope, torch.zeros_like(log_slope))
