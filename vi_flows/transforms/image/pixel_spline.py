"""One increasing function of a pixel's value, the same at every pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vi_flows.settings import check_counts
from vi_flows.transforms.image.base import ImageBijection
from vi_flows.transforms.rational_quadratic import shared_rational_quadratic

__all__ = ["PixelSpline"]


class PixelSpline(ImageBijection):
    r"""A rational-quadratic spline of the values of each channel, shared by all pixels: ``y_{cij} = f_c(x_{cij})``.

    ``log|det| = Σ log f_c′(x_{cij})``; ``f`` is that of
    :func:`~vi_flows.transforms.rational_quadratic.rational_quadratic` (Durkan et al. 2019, *Neural spline flows*, eq.
    4), the identity at the start and outside of ``[−B, B]``.

    Between the logits of images and a flow it bends the marginal of a pixel, which affine couplings can only shift and
    scale. The noise within the grey value 0, for one, has the exponential tail ``eˣ`` in logits; a normal base with
    affine couplings can't follow it, whatever the other pixels are.

    Args:
        channels: ``C``.
        num_bins: ``K``.
        bound: ``B``; 16 holds all logits of images in float32.

    Raises:
        ValueError: there are fewer than two bins or channels are less than 1, or the bound is not positive; on use, the
            image has another number of channels.
    """

    def __init__(self, channels: int, num_bins: int = 96, bound: float = 16.0) -> None:
        super().__init__(channels)
        check_counts(2, num_bins=num_bins)
        if not bound > 0:
            raise ValueError(f"bound must be positive, got {bound}")
        self.bound = bound
        self.widths = nn.Parameter(torch.zeros(num_bins, channels))
        self.heights = nn.Parameter(torch.zeros(num_bins, channels))
        self.slopes = nn.Parameter(torch.zeros(num_bins - 1, channels))

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``f(x)``."""
        y, log_slope = self._bend(x, inverse=False)
        return y, log_slope.flatten(-3).sum(-1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``f⁻¹(y)``."""
        x, log_slope = self._bend(y, inverse=True)
        return x, -log_slope.flatten(-3).sum(-1)

    def _bend(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        self._check_image(value)
        rows = value.movedim(-3, 0)
        bent = shared_rational_quadratic(rows.flatten(1), self.widths, self.heights, self.slopes, self.bound, inverse)
        moved, log_slope = (each.reshape(rows.shape).movedim(0, -3) for each in bent)
        return moved, log_slope
