"""Scales that depend on the dimensions before: what turns a column of noise into a funnel."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vi_flows.recording import is_recorded, is_transformed
from vi_flows.settings import check_counts
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
        check_counts(1, input_dim=input_dim)
        if not 0 < bound < math.inf or not 0 < gain < math.inf:
            raise ValueError(f"bound and gain must be positive and finite, got {bound} and {gain}")
        self.input_dim, self.bound = input_dim, bound
        self.gains = {"weight": gain}
        self.weight = nn.Parameter(torch.zeros(input_dim * (input_dim - 1) // 2))
        self.register_buffer("_rows_cols", torch.tril_indices(input_dim, input_dim, -1), persistent=False)

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One matrix product."""
        self._check_last_dim(x, self.input_dim)
        self._check_type(x, self.weight)
        s = self._squash(x @ self._matrix().T)
        return x * s.exp(), s.sum(-1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Forward substitution, by sweeps over all dimensions where they settle; its derivatives go from the end."""
        self._check_last_dim(y, self.input_dim)
        self._check_type(y, self.weight)
        matrix = self._matrix()
        if is_transformed():  # forward-mode derivatives need each operation for itself
            scaled = matrix.T / self.bound
            found = _from_the_beginning(y, scaled, self.bound)
            return found, (torch.tanh(found @ scaled) * -self.bound).sum(-1)
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


BLOCK = 32
"""Dimensions that are found one by one between two matrix products."""
SWEEPS = 32
"""Sweeps over all dimensions at once, before they are found one by one."""


def _blocks(dim: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, dim)) for start in range(0, dim, BLOCK)]


def _settled(sweep: Callable[[Tensor], Tensor], start: Tensor) -> Tensor | None:
    """The value that ``sweep`` no longer changes by a bit; ``None`` where that takes long or can't be asked.

    As each dimension depends on those before alone, ``k`` sweeps settle the first ``k``, and dimensions that depend on
    few others, or little, far sooner. Not where a graph is recorded: the derivatives of the sweeps settle later.
    """
    if is_recorded() or is_transformed() or torch.is_grad_enabled() or start.device.type != "cpu":
        return None
    for _ in range(SWEEPS):
        value = sweep(start)
        if torch.equal(value, start):
            return value
        start = value
    return None


def _solve_transposed(whole: Tensor, inverse_diagonal: Tensor, factor: Tensor, matrix: Tensor) -> Tensor:
    """``λ`` of ``(diag(1 / inverse_diagonal) + diag(factor) W)ᵀ λ = whole``.

    A Jacobian for each row, ``(N, d, d)``, is never made: ``W`` is the same in all of them.
    """
    right = whole * inverse_diagonal
    found = _settled(lambda solved: right - ((factor * solved) @ matrix) * inverse_diagonal, right)
    return _from_the_end(whole, inverse_diagonal, factor, matrix) if found is None else found


def _from_the_end(whole: Tensor, inverse_diagonal: Tensor, factor: Tensor, matrix: Tensor) -> Tensor:
    """:func:`_solve_transposed` from the last dimension to the first."""
    solved = weighted = whole[..., :0]  # λ and factor ⊙ λ of all later blocks
    for block in reversed(_blocks(whole.shape[-1])):
        # Not by an index, which of all dimensions is an alias: batched gradients know none.
        here = partial(torch.narrow, dim=-1, start=block.start, length=block.stop - block.start)
        rest = here(whole) - weighted @ matrix[block.stop :, block]
        part: list[Tensor] = []
        for i, row in reversed(list(enumerate(matrix[block, block].unbind(-2)))):
            value = rest[..., i] * inverse_diagonal[..., block.start + i]
            part.insert(0, value)
            rest = torch.addcmul(rest, (value * factor[..., block.start + i]).unsqueeze(-1), row, value=-1)
        found = torch.stack(part, -1)
        solved = torch.cat([found, solved], -1)
        weighted = torch.cat([found * here(factor), weighted], -1)
    return solved


def _from_the_beginning(y: Tensor, scaled: Tensor, bound: float) -> Tensor:
    """``z`` of ``y = z exp(c tanh(z W'ᵀ))`` from the first dimension to the last; ``scaled`` is ``W'ᵀ = Wᵀ / c``."""
    found = y[..., :0]
    for block in _blocks(y.shape[-1]):
        # Σ over the dimensions of all earlier blocks, then of this one's as they are found.
        a = found @ scaled[: block.start, block]
        part = []
        for i, row in enumerate(scaled[block, block].unbind(-2)):
            # Of one entry, not of none: the tangent of a number by itself would become one in double precision.
            z = y[..., block.start + i : block.start + i + 1] * (torch.tanh(a[..., i : i + 1]) * -bound).exp()
            part.append(z)
            a = torch.addcmul(a, z, row)
        found = torch.cat([found, *part], -1)
    return found


class _Substitution(torch.autograd.Function):
    """The inverse map as a function of ``y`` and ``W``, with implicit derivatives.

    With ``J = diag(eˢ) + diag(y ⊙ s′) W`` and the whole derivative ``g`` of the loss by ``z``, ``λ = J⁻ᵀ g`` is the
    one by ``y``, and ``−(λ ⊙ y ⊙ s′ + g_ladj s′) zᵀ`` the one by ``W``.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, matrix: Tensor, bound: float) -> tuple[Tensor, Tensor]:
        scaled = matrix.T / bound
        found = _settled(lambda z: y * (torch.tanh(z @ scaled) * -bound).exp(), y)
        if found is None:
            found = _from_the_beginning(y, scaled, bound)
        return found, -bound * torch.tanh(found @ scaled).sum(-1)

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
        direct = grad_ladj.unsqueeze(-1) * slope
        whole = grad_z - direct @ matrix
        grad_y = _solve_transposed(whole, (-ctx.bound * t).exp(), y * slope, matrix)
        if not ctx.needs_input_grad[1]:
            return grad_y, None, None
        rows = (grad_y * y * slope + direct).reshape(-1, y.shape[-1])
        return grad_y, -(rows.T @ z.reshape(-1, y.shape[-1])).tril(-1), None
