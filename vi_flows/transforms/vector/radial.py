r"""Radial layers: ``y = x + β/(α + r) (x − c)``, ``r = ‖x − c‖`` (Rezende & Mohamed 2015, eq. 14)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vi_flows.transforms.vector.parametric import Family
from vi_flows.transforms.vector.planar import above_minus_one

__all__ = ["RadialFamily"]


class RadialFamily(Family):
    r"""``num_layers`` radial layers, each with a center, ``α = softplus(a)`` and ``β = α m(b) > −α``.

    ``log|det| = (d − 1) log(1 + β/(α + r)) + log(1 + αβ/(α + r)²)`` (paper, eq. 14; appendix A for the bound). The
    inverse finds ``r`` from a quadratic. It starts at ``b = 0``, the identity, with random centers.

    Args:
        input_dim: ``d``.
        num_layers: layers, with ``d + 2`` parameters each.

    Raises:
        ValueError: a size is less than 1.
    """

    def __init__(self, input_dim: int, num_layers: int) -> None:
        super().__init__(input_dim, num_layers * (input_dim + 2))
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.num_layers = num_layers

    def initial(self) -> Tensor:
        """Standard normal centers, zeros otherwise."""
        params = torch.zeros(self.num_layers, self.input_dim + 2)
        params[:, : self.input_dim].normal_()
        return params.flatten()

    def _layers(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Centers, ``α``, ``β`` and ``β/α``, the layers' dimension before the vectors' (or the last)."""
        center, a, b = params.unflatten(-1, (self.num_layers, self.input_dim + 2)).split((self.input_dim, 1, 1), -1)
        alpha, share = F.softplus(a.squeeze(-1)), above_minus_one(b.squeeze(-1))
        return center, alpha, alpha * share, share

    def _ladj(self, radius: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        reach = alpha + radius
        return (self.input_dim - 1) * torch.log1p(beta / reach) + torch.log1p(alpha * beta / reach.square())

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """All layers, first to last."""
        centers, alphas, betas, _ = self._layers(params)
        total: Tensor | None = None
        for index in range(self.num_layers):
            alpha, beta = alphas[..., index], betas[..., index]
            away = x - centers[..., index, :]
            radius = torch.linalg.vector_norm(away, dim=-1)
            x = x + (beta / (alpha + radius)).unsqueeze(-1) * away
            ladj = self._ladj(radius, alpha, beta)
            total = ladj if total is None else total + ladj
        assert total is not None
        return x, total

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """All layers, last to first: ``ρ = ‖y − c‖ = r (1 + β/(α + r))`` gives ``r² + (α + β − ρ) r − αρ = 0``."""
        centers, alphas, betas, _ = self._layers(params)
        total: Tensor | None = None
        for index in reversed(range(self.num_layers)):
            alpha, beta = alphas[..., index], betas[..., index]
            away = y - centers[..., index, :]
            rho = torch.linalg.vector_norm(away, dim=-1)
            half = alpha + beta - rho
            root = (half.square() + 4.0 * alpha * rho).sqrt()
            # Of the two forms of the positive root, the one without cancellation.
            safe = torch.where(half > 0, half + root, torch.ones_like(root))
            radius = torch.where(half > 0, 2.0 * alpha * rho / safe, 0.5 * (root - half))
            y = y - (beta / (alpha + beta + radius)).unsqueeze(-1) * away
            ladj = self._ladj(radius, alpha, beta)
            total = -ladj if total is None else total - ladj
        assert total is not None
        return y, total

    def min_slope(self, params: Tensor) -> float:
        """``min(1, 1 + β/α)``: the slope at the center."""
        return float((1.0 + self._layers(params)[3]).min().clamp(max=1.0))
