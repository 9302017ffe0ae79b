"""The coupling map of neural spline flows: monotone rational-quadratic splines with linear tails."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vi_flows.transforms.coupling_maps import CouplingMap

__all__ = ["SplineMap"]


class SplineMap(CouplingMap):
    r"""A rational-quadratic spline after an affine map (Durkan et al. 2019, *Neural spline flows*, section 3.1).

    ``y = f((x + t) eᵃ)``. Within ``[−B, B]`` the increasing function ``f`` goes through ``K + 1`` knots ``(x_k, y_k)``
    with slopes ``δ_k``; in bin ``k``, with ``ξ = (x − x_k)/w_k`` and ``s_k = h_k/w_k``,

        ``f = y_k + h_k (s_k ξ² + δ_k ξ(1−ξ)) / (s_k + (δ_{k+1} + δ_k − 2 s_k) ξ(1−ξ))``   (eq. 4).

    Outside it is the identity, and ``δ_0 = δ_K = 1``. Each bin keeps at least a tenth of its equal share of both
    axes and each slope lies in ``[e⁻³, e³]``, so that no network output makes a step or a plateau of it. The inverse
    is the root of a quadratic equation (eq. 6–8). Zero maps give the identity.

    Args:
        num_bins: ``K``.
        bound: ``B``.

    Raises:
        ValueError: there are fewer than two bins, or the bound is not positive.
    """

    least_share = 0.1

    def __init__(self, num_bins: int = 8, bound: float = 6.0) -> None:
        if num_bins < 2:
            raise ValueError(f"num_bins must be at least 2, got {num_bins}")
        if not bound > 0:
            raise ValueError(f"bound must be positive, got {bound}")
        self.num_bins, self.bound = num_bins, bound
        self.num_maps = 2 + 3 * num_bins - 1

    def __call__(self, x: Tensor, maps: Sequence[Tensor], inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Shift, scale, bend; or the reverse."""
        shift, log_scale = maps[0], 2.0 * torch.tanh(maps[1] / 2.0)
        knots = self._knots(torch.stack(list(maps[2:])))
        if inverse:
            x, log_slope = self._bend(x, *knots, inverse=True)
            return x * (-log_scale).exp() - shift, -(log_slope + log_scale).flatten(-3).sum(-1)
        y, log_slope = self._bend((x + shift) * log_scale.exp(), *knots, inverse=False)
        return y, (log_slope + log_scale).flatten(-3).sum(-1)

    def _knots(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions of the knots on both axes and the slopes there, each ``(K + 1, …)``."""
        widths, heights, slopes = maps.split([self.num_bins, self.num_bins, self.num_bins - 1])
        ends = torch.zeros_like(maps[:1])
        slopes = torch.cat([ends, 3.0 * torch.tanh(slopes / 3.0), ends]).exp()
        return self._positions(widths), self._positions(heights), slopes

    def _positions(self, logits: Tensor) -> Tensor:
        shares = self.least_share / self.num_bins + (1 - self.least_share) * F.softmax(logits, 0)
        inner = 2 * self.bound * shares.cumsum(0)[:-1] - self.bound
        edge = torch.full_like(logits[:1], self.bound)
        return torch.cat([-edge, inner, edge])

    def _bend(self, value: Tensor, xs: Tensor, ys: Tensor, slopes: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """``f`` (or its inverse) and ``log f′`` at the point on the x-axis."""
        inside = value.abs() < self.bound
        held = torch.where(inside, value, torch.zeros_like(value))
        knots = ys if inverse else xs
        index = (held >= knots[1:-1]).sum(0, keepdim=True)

        def at(array: Tensor, offset: int = 0) -> Tensor:
            return array.gather(0, index + offset).squeeze(0)

        x0, x1, y0, y1, d0, d1 = at(xs), at(xs, 1), at(ys), at(ys, 1), at(slopes), at(slopes, 1)
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
        return torch.where(inside, moved, value), torch.where(inside, log_slope, torch.zeros_like(log_slope))
