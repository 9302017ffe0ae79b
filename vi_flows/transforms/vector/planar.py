r"""Planar layers: ``y = x + û tanh(wᵀx + b)`` (Rezende & Mohamed 2015, eq. 10)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vi_flows.transforms.vector.parametric import Family, solve_tanh

__all__ = ["PlanarFamily", "above_minus_one"]

MARGIN = 1e-3
SHIFT = math.log(math.expm1(1.0))


def above_minus_one(a: Tensor) -> Tensor:
    r"""``m(a) = (1 − 10⁻³)(softplus(a + log(e − 1)) − 1)``: increasing, ``m(0) = 0``, above ``−(1 − 10⁻³)``.

    The papers' ``softplus(a) − 1`` is not zero at zero, so that a layer without parameters would not be the identity.
    """
    return (1.0 - MARGIN) * (F.softplus(a + SHIFT) - 1.0)


class PlanarFamily(Family):
    r"""``num_layers`` planar layers; ``log|det| = Σ log(1 + wᵀû (1 − tanh²(wᵀx + b)))`` (eq. 12).

    ``û = u + (m(wᵀu) − wᵀu) w/‖w‖²`` keeps ``wᵀû`` above −1 (paper, appendix A, with :func:`above_minus_one`), so that
    a layer is a bijection for all parameters. The inverse solves one scalar equation a layer. It starts at ``u = 0``,
    the identity, with ``w`` of variance ``1/d``.

    Args:
        input_dim: ``d``.
        num_layers: layers, with ``2 d + 1`` parameters each.

    Raises:
        ValueError: a size is less than 1.
    """

    def __init__(self, input_dim: int, num_layers: int) -> None:
        super().__init__(input_dim, num_layers * (2 * input_dim + 1))
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.num_layers = num_layers

    def initial(self) -> Tensor:
        """Random ``w``, zero ``u`` and ``b``."""
        params = torch.zeros(self.num_layers, 2 * self.input_dim + 1)
        params[:, : self.input_dim].normal_(std=self.input_dim**-0.5)
        return params.flatten()

    def _layers(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``w``, ``û``, ``b`` and ``wᵀû`` of all layers, the layers' dimension before the vectors' (or the last)."""
        d = self.input_dim
        w, u, b = params.unflatten(-1, (self.num_layers, 2 * d + 1)).split((d, d, 1), -1)
        a = torch.linalg.vecdot(w, u)
        m = above_minus_one(a)
        size = torch.linalg.vecdot(w, w).clamp(min=torch.finfo(w.dtype).tiny)
        return w, u + ((m - a) / size).unsqueeze(-1) * w, b.squeeze(-1), m

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """All layers, first to last."""
        w, u, b, m = self._layers(params)
        total: Tensor | None = None
        for index in range(self.num_layers):
            act = torch.tanh(torch.linalg.vecdot(x, w[..., index, :]) + b[..., index])
            x = x + act.unsqueeze(-1) * u[..., index, :]
            ladj = torch.log1p(m[..., index] * (1.0 - act.square()))
            total = ladj if total is None else total + ladj
        assert total is not None
        return x, total

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """All layers, last to first: with ``s = wᵀx + b`` known, ``x = y − û tanh s``."""
        w, u, b, m = self._layers(params)
        total: Tensor | None = None
        for index in reversed(range(self.num_layers)):
            shift = b[..., index]
            s = solve_tanh(m[..., index], 1.0, shift, torch.linalg.vecdot(y, w[..., index, :]))
            act = torch.tanh(s + shift)
            y = y - act.unsqueeze(-1) * u[..., index, :]
            ladj = torch.log1p(m[..., index] * (1.0 - act.square()))
            total = -ladj if total is None else total - ladj
        assert total is not None
        return y, total

    def min_slope(self, params: Tensor) -> float:
        """``min(1, 1 + wᵀû)``: the least factor by which a layer stretches along ``û``."""
        return float((1.0 + self._layers(params)[3]).min().clamp(max=1.0))
