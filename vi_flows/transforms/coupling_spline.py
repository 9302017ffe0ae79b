"""The coupling map of neural spline flows: monotone rational-quadratic splines with linear tails."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vi_flows.settings import check_counts
from vi_flows.transforms.coupling_maps import ElementwiseMap
from vi_flows.transforms.rational_quadratic import least_slopes, rational_quadratic

__all__ = ["SplineMap"]


class SplineMap(ElementwiseMap):
    r"""A rational-quadratic spline after an affine map (Durkan et al. 2019, *Neural spline flows*, section 3.1).

    ``y = f((x + t) eᵃ)`` with the ``f`` of :func:`~vi_flows.transforms.rational_quadratic.rational_quadratic`. The maps
    are ``t``, ``a`` (bounded softly), ``K`` widths, ``K`` heights and ``K − 1`` slopes. Zero maps give the identity.

    Args:
        num_bins: ``K``.
        bound: ``B``.

    Raises:
        ValueError: there are fewer than two bins, or the bound is not positive and finite.
    """

    def __init__(self, num_bins: int = 8, bound: float = 6.0) -> None:
        check_counts(2, num_bins=num_bins)
        if not 0 < bound < math.inf:
            raise ValueError(f"bound must be positive and finite, got {bound}")
        self.num_bins, self.bound = num_bins, bound
        self.num_maps = 2 + 3 * num_bins - 1

    def elementwise(self, x: Tensor, maps: Sequence[Tensor], inverse: bool) -> tuple[Tensor, Tensor]:
        """Shift, scale, bend; or the reverse."""
        shift, log_scale = maps[0], 2.0 * torch.tanh(maps[1] / 2.0)
        widths, heights, slopes = self._free(maps)
        if inverse:
            x, log_slope = rational_quadratic(x, widths, heights, slopes, self.bound, inverse=True)
            return x * (-log_scale).exp() - shift, -(log_slope + log_scale)
        y, log_slope = rational_quadratic((x + shift) * log_scale.exp(), widths, heights, slopes, self.bound)
        return y, log_slope + log_scale

    def min_slope(self, maps: Sequence[Tensor]) -> float:
        """The least of ``eᵃ`` times the bounds of all bins, and times the 1 outside."""
        inner = least_slopes(*self._free(maps), self.bound).amin(0).clamp(max=1.0)
        return float((inner * (2.0 * torch.tanh(maps[1] / 2.0)).exp()).min())

    def _free(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Widths, heights and slopes, each stacked in front."""
        widths, heights, slopes = torch.stack(list(maps[2:])).split([self.num_bins, self.num_bins, self.num_bins - 1])
        return widths, heights, slopes
