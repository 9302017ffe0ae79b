"""Tails of exponential decay from Gaussian noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vi_flows.settings import check_counts
from vi_flows.transforms.base import Bijection

__all__ = ["QuadraticTails"]


class QuadraticTails(Bijection):
    r"""``yᵢ = zᵢ + αᵢ max(zᵢ, 0)² − βᵢ max(−zᵢ, 0)²``, ``αᵢ, βᵢ > 0``; ``log|det| = Σ log(1 + 2αᵢzᵢ₊ + 2βᵢzᵢ₋)``.

    A flow with bounded slopes, as ConvFlow is, keeps the base's Gaussian tails. The logarithm of a scale parameter has
    a left tail ``eˣ`` whenever its density is finite at zero, and importance weights of a Gaussian-tailed guide have
    no variance there. A quadratic map of Gaussian noise decays like ``exp(−y / 2α)``, to either side at its own rate.
    The inverse is the root of a quadratic.

    Args:
        input_dim: ``d``.
        init: initial ``α`` and ``β``.

    Raises:
        ValueError: a size or value that is not positive.
    """

    def __init__(self, input_dim: int, init: float = 0.01) -> None:
        super().__init__(event_dim=1)
        check_counts(1, input_dim=input_dim)
        if not 0 < init < math.inf:
            raise ValueError(f"init must be positive and finite, got {init}")
        self.input_dim = input_dim
        self.log_rate = nn.Parameter(torch.full((2, input_dim), math.log(init)))

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Elementwise."""
        self._check_last_dim(x, self.input_dim)
        rate = self._rate(x)
        size = x.abs()
        return x + rate * x * size, torch.log1p(2 * rate * size).sum(-1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``|z| = 2|y| / (1 + √(1 + 4α|y|))``, without cancellation."""
        self._check_last_dim(y, self.input_dim)
        rate = self._rate(y)
        x = 2 * y / (1 + torch.sqrt(1 + 4 * rate * y.abs()))
        return x, -torch.log1p(2 * rate * x.abs()).sum(-1)

    def _rate(self, value: Tensor) -> Tensor:
        right, left = self.log_rate.exp()
        return torch.where(value >= 0, right, left)
