"""Scales that depend on the dimensions before: what turns a column of noise into a funnel."""

from __future__ import annotations

import math
from typing import Any

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
        gain: the parameters hold ``W / gain``, so that optimizers with steps of a fixed size take smaller ones in ``W``
            where it is below 1.

    Raises:
        ValueError: a size, bound or gain that is not positive.
    """

    _rows_cols: Tensor

    def __init__(self, input_dim: int, bound: float = 3.0, gain: float = 1.0) -> None:
        super().__init__(event_dim=1)
        if input_dim < 1 or not 0 < bound < math.inf or not 0 < gain < math.inf:
            raise ValueError(f"input_dim, bound and gain must be positive, got {input_dim}, {bound} and {gain}")
        self.input_dim, self.bound = input_dim, bound
        self.gains = {"weight": gain}
        self.weight = nn.Parameter(torch.zeros(input_dim * (input_dim - 1) // 2))
        self.register_buffer("_rows_cols", torch.tril_indices(input_dim, input_dim, -1), persistent=False)

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One matrix product."""
        self._check_last_dim(x, self.input_dim)
        s = self._squash(x @ self._matrix().T)
        return x * s.exp(), s.sum(-1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Forward substitution, ``d`` steps; its derivatives are one triangular solve."""
        self._check_last_dim(y, self.input_dim)
        matrix = self._matrix()
        return _Substitution.apply(y, matrix, self.bound)

    def extra_repr(self) -> str:
        """Size and bound."""
        return f"input_dim={self.input_dim}, bound={self.bound}"

    def _squash(self, a: Tensor) -> Tensor:
        return self.bound * torch.tanh(a / self.bound)

    def _matrix(self) -> Tensor:
        d = self.input_dim
        rows, cols = self._rows_cols
        flat = torch.zeros(d * d, dtype=self.weight.dtype, device=self.weight.device)
        return flat.index_copy(0, rows * d + cols, self.gains["weight"] * self.weight).reshape(d, d)


class _Substitution(torch.autograd.Function):
    """The inverse map as a function of ``y`` and ``W``, with implicit derivatives.

    With ``J = diag(eˢ) + diag(y ⊙ s′) W`` and the whole derivative ``g`` of the loss by ``z``, ``λ = J⁻ᵀ g`` is the
    one by ``y``, and ``−(λ ⊙ y ⊙ s′ + g_ladj s′) zᵀ`` the one by ``W``.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, matrix: Tensor, bound: float) -> tuple[Tensor, Tensor]:
        columns = matrix.unbind(-1)
        a = torch.zeros_like(y)  # Σ over the dimensions found so far
        found, logs = [], []
        for i, column in enumerate(columns):
            log = bound * torch.tanh(a[..., i] / bound)
            z = y[..., i] * (-log).exp()
            found.append(z)
            logs.append(log)
            if i + 1 < len(columns):
                a = torch.addcmul(a, z.unsqueeze(-1), column)
        return torch.stack(found, -1), -torch.stack(logs, -1).sum(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        y, matrix, bound = inputs
        ctx.save_for_backward(y, matrix, output[0])
        ctx.bound = bound

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_ladj: Tensor) -> tuple[Tensor, Tensor | None, None]:
        y, matrix, z = ctx.saved_tensors
        t = torch.tanh(z @ matrix.T / ctx.bound)
        slope = 1 - t * t
        jacobian = torch.diag_embed((ctx.bound * t).exp()) + (y * slope).unsqueeze(-1) * matrix
        direct = grad_ladj.unsqueeze(-1) * slope
        whole = grad_z - direct @ matrix
        grad_y = torch.linalg.solve_triangular(jacobian.mT, whole.unsqueeze(-1), upper=True).squeeze(-1)
        if not ctx.needs_input_grad[1]:
            return grad_y, None, None
        rows = (grad_y * y * slope + direct).reshape(-1, y.shape[-1])
        return grad_y, -(rows.T @ z.reshape(-1, y.shape[-1])).tril(-1), None
