r"""Diagonal affine maps, ``y = e^ρ ⊙ x + μ``."""

from __future__ import annotations

import torch
from torch import Tensor

from vi_flows.transforms.vector.parametric import Family

__all__ = ["DiagonalFamily"]

BOUND = 2.0
"""Largest log scale, of either sign: that of the couplings' bounded scales."""


class DiagonalFamily(Family):
    r"""``y = e^ρ ⊙ x + μ`` with ``ρ = 2 tanh(b/2)``; ``log|det| = Σ_i ρ_i``. It starts at the identity.

    Below a flow and given a context it is a base with a mean and a scale of each context's own.

    Args:
        input_dim: ``d``; there are ``2 d`` parameters, ``μ`` and ``b``.

    Raises:
        ValueError: the size is less than 1.
    """

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim, 2 * input_dim)

    def initial(self) -> Tensor:
        """Zeros."""
        return torch.zeros(self.num_params)

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor]:
        loc, free = params.chunk(2, -1)
        return loc, BOUND * torch.tanh(free / BOUND)

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """A product and a sum."""
        loc, log_scale = self._parts(params)
        y = x * log_scale.exp() + loc
        return y, log_scale.sum(-1).expand(y.shape[:-1])

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """A difference and a product."""
        loc, log_scale = self._parts(params)
        x = (y - loc) * (-log_scale).exp()
        return x, -log_scale.sum(-1).expand(x.shape[:-1])

    def min_slope(self, params: Tensor) -> float:
        """The least scale."""
        return self._parts(params)[1].min().exp().item()
