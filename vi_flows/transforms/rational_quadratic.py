"""Monotone rational-quadratic splines of single entries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["least_slopes", "rational_quadratic", "shared_rational_quadratic"]

LEAST_SHARE = 0.1
"""Least width and height of a bin, as a share of an equal one."""
SLOPE_BOUND = 3.0
"""Largest log slope at a knot, of either sign."""


def _knots(free: Tensor, bound: float) -> Tensor:
    shares = LEAST_SHARE / len(free) + (1 - LEAST_SHARE) * F.softmax(free, 0)
    inner = 2 * bound * shares.cumsum(0)[:-1] - bound
    edge = torch.full_like(free[:1], bound)
    return torch.cat([-edge, inner, edge])


def _slopes_at_knots(slopes: Tensor) -> Tensor:
    ends = torch.zeros_like(slopes[:1])
    return torch.cat([ends, SLOPE_BOUND * torch.tanh(slopes / SLOPE_BOUND), ends]).exp()


def least_slopes(widths: Tensor, heights: Tensor, slopes: Tensor, bound: float) -> Tensor:
    r"""Lower bounds of the slopes of :func:`rational_quadratic` in each bin, ``(K, …)``.

    By the paper's eq. 5, ``f′ = s² (δ_{k+1} ξ² + 2 s ξ(1−ξ) + δ_k (1−ξ)²) / (s + (δ_{k+1} + δ_k − 2 s) ξ(1−ξ))²``: the
    bracket is a mean of the slopes at both knots and ``s``, and the denominator is largest at an end or in the middle.

    Args:
        widths: see :func:`rational_quadratic`, as the others.
        heights: the same.
        slopes: the same; at least one.
        bound: ``B``.
    """
    s = _knots(heights, bound).diff(dim=0) / _knots(widths, bound).diff(dim=0)
    deltas = _slopes_at_knots(slopes)
    d0, d1 = deltas[:-1], deltas[1:]
    return s.square() * torch.minimum(torch.minimum(d0, d1), s) / torch.maximum(s, (2 * s + d0 + d1) / 4).square()


def rational_quadratic(
    value: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, bound: float, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    r"""An increasing function through ``K + 1`` knots on ``[−B, B]``, the identity outside.

    In bin ``k``, with ``ξ = (x − x_k)/w_k`` and ``s_k = h_k/w_k``,

        ``f = y_k + h_k (s_k ξ² + δ_k ξ(1−ξ)) / (s_k + (δ_{k+1} + δ_k − 2 s_k) ξ(1−ξ))``

    (Durkan, Bekasov, Murray & Papamakarios 2019, *Neural spline flows*, eq. 4), and ``δ_0 = δ_K = 1``. Each bin keeps
    at least a tenth of its equal share of both axes and each slope lies in ``[e⁻³, e³]``, so that no parameters make a
    step or a plateau of it. The inverse is the root of a quadratic equation (eq. 6–8). Free parameters of zero give the
    identity.

    Args:
        value: entries of any shape.
        widths: free widths of the bins, ``(K,) + value.shape``.
        heights: free heights, the same.
        slopes: free slopes at the inner knots, ``(K − 1,) + value.shape``.
        bound: ``B``.
        inverse: map ``f(x)`` to ``x``.

    Returns:
        The mapped entries and ``log f′`` at the point on the x-axis (in both directions), of the shape of ``value``.
    """
    xs, ys = _knots(widths, bound), _knots(heights, bound)
    deltas = _slopes_at_knots(slopes)
    inside, held = _held_inside(value, bound)
    index = (held >= (ys if inverse else xs)[1:-1]).sum(0, keepdim=True)

    def at(array: Tensor, offset: int = 0) -> Tensor:
        return array.gather(0, index + offset).squeeze(0)

    moved, log_slope = _in_bin(held, at(xs), at(xs, 1), at(ys), at(ys, 1), at(deltas), at(deltas, 1), inverse)
    return torch.where(inside, moved, value), torch.where(inside, log_slope, torch.zeros_like(log_slope))


def shared_rational_quadratic(
    value: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, bound: float, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """:func:`rational_quadratic` where all entries of a row share one function: its knots are computed once.

    Args:
        value: ``(C, N)``.
        widths: free widths, ``(K, C)``.
        heights: free heights, the same.
        slopes: free slopes, ``(K − 1, C)``.
        bound: ``B``.
        inverse: map ``f(x)`` to ``x``.

    Returns:
        As :func:`rational_quadratic`, both ``(C, N)``.
    """
    xs, ys = _knots(widths, bound), _knots(heights, bound)
    deltas = _slopes_at_knots(slopes)
    inside, held = _held_inside(value, bound)
    knots = (ys if inverse else xs)[1:-1].mT
    index = torch.searchsorted(knots.contiguous().detach(), held.contiguous().detach(), right=True)
    bins = torch.stack([xs[:-1], xs[1:], ys[:-1], ys[1:], deltas[:-1], deltas[1:]], -1)  # (K, C, 6)
    rows = index * bins.shape[1] + torch.arange(bins.shape[1], device=value.device)[:, None]
    x0, x1, y0, y1, d0, d1 = F.embedding(rows, bins.flatten(0, 1)).unbind(-1)
    moved, log_slope = _in_bin(held, x0, x1, y0, y1, d0, d1, inverse)
    return torch.where(inside, moved, value), torch.where(inside, log_slope, torch.zeros_like(log_slope))


def _held_inside(value: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Which entries lie between the outer knots, and the entries with 0 for the others, which stay as they are."""
    inside = value.abs() < bound
    return inside, torch.where(inside, value, torch.zeros_like(value))


def _in_bin(
    held: Tensor, x0: Tensor, x1: Tensor, y0: Tensor, y1: Tensor, d0: Tensor, d1: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The function of each entry's own bin, between ``(x0, y0)`` and ``(x1, y1)`` with slopes ``d0`` and ``d1``."""
    width, height = x1 - x0, y1 - y0
    s = height / width
    bend = d0 + d1 - 2 * s
    if inverse:
        rise = held - y0
        a = height * (s - d0) + rise * bend
        b = height * d0 - rise * bend
        c = -s * rise
        root = (b * b - 4 * a * c).clamp(min=0).sqrt()  # rounding may take a double root below zero
        xi = (2 * c / (-b - root)).clamp(0, 1)
        moved = x0 + xi * width
    else:
        xi = (held - x0) / width
    cross = xi * (1 - xi)
    denominator = s + bend * cross
    if not inverse:
        moved = y0 + height * (s * xi * xi + d0 * cross) / denominator
    log_slope = 2 * (s / denominator).log() + (d1 * xi * xi + 2 * s * cross + d0 * (1 - xi) ** 2).log()
    return moved, log_slope
