"""Scales that depend on the dimensions before: what turns a column of noise into a funnel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vi_flows.transforms.base import Bijection

__all__ = ["TriangularScale"]


class TriangularScale(Bijection):
    r"""``yᵢ = zᵢ exp(sᵢ)`` with ``sᵢ = c tanh((Σ_{j<i} W_{ij} z_j) / c)``; ``log|det| = Σ sᵢ``.

    ConvFlow adds to a dimension a function of others, with a bounded slope; the spread of a hierarchical model's
    parameters is *multiplied* by an exponential of another one (Neal's funnel). This layer has that form exactly, with
    one product of the strictly triangular ``W``: the linear case of an autoregressive flow's scale (Kingma et al.
    2016), in the order in which the model samples its sites (parents first).

    Args:
        input_dim: ``d``.
        bound: ``c``, so that scales lie within ``e^{±c}``.

    Raises:
        ValueError: a size or bound that is not positive.
    """

    def __init__(self, input_dim: int, bound: float = 3.0) -> None:
        super().__init__(event_dim=1)
        if input_dim < 1 or not 0 < bound < math.inf:
            raise ValueError(f"input_dim and bound must be positive, got {input_dim} and {bound}")
        self.input_dim, self.bound = input_dim, bound
        self.weight = nn.Parameter(torch.zeros(input_dim * (input_dim - 1) // 2))
        self.register_buffer("_rows_cols", torch.tril_indices(input_dim, input_dim, -1), persistent=False)

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One matrix product."""
        self._check_last_dim(x, self.input_dim)
        s = self._squash(x @ self._matrix().T)
        return x * s.exp(), s.sum(-1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Forward substitution, ``d`` steps."""
        self._check_last_dim(y, self.input_dim)
        columns = self._matrix().unbind(-1)
        a = torch.zeros_like(y)  # Σ over the dimensions found so far
        found, logs = [], []
        for i, column in enumerate(columns):
            s = self._squash(a[..., i])
            found.append(y[..., i] * (-s).exp())
            logs.append(s)
            a = a + found[-1].unsqueeze(-1) * column
        return torch.stack(found, -1), -torch.stack(logs, -1).sum(-1)

    def extra_repr(self) -> str:
        """Size and bound."""
        return f"input_dim={self.input_dim}, bound={self.bound}"

    def _squash(self, a: Tensor) -> Tensor:
        return self.bound * torch.tanh(a / self.bound)

    def _matrix(self) -> Tensor:
        d = self.input_dim
        rows, cols = self._rows_cols
        flat = torch.zeros(d * d, dtype=self.weight.dtype, device=self.weight.device)
        return flat.index_copy(0, rows * d + cols, self.weight).reshape(d, d)
