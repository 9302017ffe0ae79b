r"""Sylvester layers: ``y = x + Q R tanh(R̃ Qᵀx + b)`` (van den Berg, Hasenclever, Tomczak & Welling 2018, eq. 13)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vi_flows.nn.precision import with_32_bits
from vi_flows.transforms.vector.parametric import Family, linear_map, solve_tanh

__all__ = ["SylvesterFamily", "orthonormal_columns"]

MARGIN = 1e-3


def orthonormal_columns(vectors: Tensor, num_columns: int) -> Tensor:
    r"""The first ``M`` columns of the product of Householder reflections ``H_1 H_2 … H_n``, ``(…, d, M)``.

    The product is ``I − V T Vᵀ`` with ``T⁻¹ = ½ I + striu(VᵀV)`` for unit vectors ``V``: three matrix products and a
    triangular solve, whatever ``n`` is. ``n ≥ M`` reflections reach every set of ``M`` orthonormal columns, up to
    signs.

    Args:
        vectors: of the reflections, ``(…, n, d)``, of any length.
        num_columns: ``M ≤ d``.
    """
    size = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(min=torch.finfo(vectors.dtype).tiny)
    units = vectors / size
    count = units.shape[-2]
    upper = torch.triu(units @ units.mT, 1) + 0.5 * torch.eye(count, dtype=units.dtype, device=units.device)
    wide = with_32_bits(upper, units[..., :num_columns])
    inner = torch.linalg.solve_triangular(wide[0], wide[1], upper=True).to(units.dtype)
    return torch.eye(units.shape[-1], num_columns, dtype=units.dtype, device=units.device) - units.mT @ inner


class SylvesterFamily(Family):
    r"""``num_layers`` Sylvester layers of rank ``M``; ``log|det| = Σ log(1 + r_ii r̃_ii tanh′(·)_i)`` (paper, eq. 14).

    ``Q`` has ``M`` orthonormal columns, made of Householder reflections; ``R`` and ``R̃`` are upper triangular with
    diagonals within ``±(1 − 10⁻³)^½`` (by tanh), so that every layer is a bijection (theorem 2). The log-determinant
    needs ``R`` and ``R̃`` on the same side of the same ``Q``; Pyro 1.9.2 multiplies by ``Q`` on the wrong side. The
    inverse solves ``M`` scalar equations a layer, last to first, for the matrices are triangular. It starts at
    ``R = 0``, the identity, with ``R̃`` a multiple of one.

    Args:
        input_dim: ``d``.
        num_layers: layers.
        rank: ``M``; of more than ``d``, the ``d`` that there can be are taken.
        num_reflections: Householder reflections of ``Q``.

    Raises:
        ValueError: a size is less than 1.
    """

    def __init__(self, input_dim: int, num_layers: int, rank: int, num_reflections: int) -> None:
        if min(num_layers, rank, num_reflections) < 1:
            raise ValueError(
                f"num_layers, rank and num_reflections must be at least 1, got {num_layers}, {rank}, {num_reflections}"
            )
        rank = min(rank, input_dim)
        above = rank * (rank - 1) // 2
        self.sizes = (num_reflections * input_dim, above, above, rank, rank, rank)
        super().__init__(input_dim, num_layers * sum(self.sizes))
        self.num_layers, self.rank, self.num_reflections = num_layers, rank, num_reflections
        # Where each entry of a strictly upper triangular matrix is among the free ones; the others find a zero.
        places = torch.full((rank, rank), above)
        rows, columns = torch.triu_indices(rank, rank, 1)
        places[rows, columns] = torch.arange(above)
        self.register_buffer("places", places.flatten(), persistent=False)

    places: Tensor

    def initial(self) -> Tensor:
        """Random reflections, ``R = 0``, ``R̃ = tanh(1) I``, ``b = 0``."""
        params = torch.zeros(self.num_layers, sum(self.sizes))
        params[:, : self.sizes[0]].normal_()
        params[:, -2 * self.rank : -self.rank] = 1.0
        return params.flatten()

    def _layers(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``Q``, ``R``, ``R̃``, ``b`` and ``diag R ⊙ diag R̃`` of all layers, the layers' dimension before the others."""
        vectors, first, second, diag, other, b = params.unflatten(-1, (self.num_layers, -1)).split(self.sizes, -1)
        q = orthonormal_columns(vectors.unflatten(-1, (self.num_reflections, self.input_dim)), self.rank)
        bound = (1.0 - MARGIN) ** 0.5
        diag, other = bound * torch.tanh(diag), bound * torch.tanh(other)
        return q, self._triangular(first, diag), self._triangular(second, other), b, diag * other

    def _triangular(self, above: Tensor, diagonal: Tensor) -> Tensor:
        entries = F.pad(above, (0, 1)).index_select(-1, self.places)
        return entries.unflatten(-1, (self.rank, self.rank)) + torch.diag_embed(diagonal)

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """All layers, first to last."""
        q, r, other, b, diagonal = self._layers(params)
        total: Tensor | None = None
        for index in range(self.num_layers):
            columns = q[..., index, :, :]
            act = torch.tanh(linear_map(linear_map(x, columns), other[..., index, :, :].mT) + b[..., index, :])
            x = x + linear_map(linear_map(act, r[..., index, :, :].mT), columns.mT)
            ladj = torch.log1p(diagonal[..., index, :] * (1.0 - act.square())).sum(-1)
            total = ladj if total is None else total + ladj
        assert total is not None
        return x, total

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """All layers, last to first: ``s = Qᵀx`` by back substitution, then ``x = y − Q R tanh(R̃ s + b)``."""
        q, r, other, b, diagonal = self._layers(params)
        total: Tensor | None = None
        for index in reversed(range(self.num_layers)):
            columns, upper, inner = q[..., index, :, :], r[..., index, :, :], other[..., index, :, :]
            target, bias = linear_map(y, columns), b[..., index, :]
            solved: list[Tensor] = []  # s_M, s_{M−1}, …
            acts: list[Tensor] = []
            for row in reversed(range(self.rank)):
                rest, shift = target[..., row], bias[..., row]
                for place, (s, act) in enumerate(zip(solved, acts, strict=True)):
                    column = self.rank - 1 - place
                    rest, shift = rest - upper[..., row, column] * act, shift + inner[..., row, column] * s
                s = solve_tanh(upper[..., row, row], inner[..., row, row], shift, rest)
                solved.append(s)
                acts.append(torch.tanh(inner[..., row, row] * s + shift))
            act = torch.stack(acts[::-1], -1)
            y = y - linear_map(linear_map(act, upper.mT), columns.mT)
            ladj = torch.log1p(diagonal[..., index, :] * (1.0 - act.square())).sum(-1)
            total = -ladj if total is None else total - ladj
        assert total is not None
        return y, total

    def min_slope(self, params: Tensor) -> float:
        """``min(1, 1 + min r_ii r̃_ii)``: the least eigenvalue that a layer's Jacobian can have."""
        return float((1.0 + self._layers(params)[4]).min().clamp(max=1.0))
