"""A mixture of Gaussians that a guide can start from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MixtureStart"]


@dataclass(frozen=True)
class MixtureStart:
    """``Σ_k π_k N(m_k, L_k L_kᵀ)`` with its Monte Carlo ELBO.

    Attributes:
        log_weights: ``log π``, shape ``(K,)``.
        locs: shape ``(K, d)``.
        trils: lower triangular, shape ``(K, d, d)``.
        elbo: nats.
    """

    log_weights: Tensor
    locs: Tensor
    trils: Tensor
    elbo: float

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the whole."""
        weights = self.log_weights.exp()
        mean = weights @ self.locs
        spread = self.trils @ self.trils.mT + (self.locs - mean).unsqueeze(-1) * (self.locs - mean).unsqueeze(-2)
        return mean, (weights[:, None, None] * spread).sum(0)

    def parts(self, x: Tensor) -> Tensor:
        """``log π_k N_k(x)`` of points ``(S, d)``, shape ``(S, K)``."""
        z = torch.linalg.solve_triangular(self.trils, (x[:, None] - self.locs).permute(1, 2, 0), upper=False)
        log_det = self.trils.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = 0.5 * x.shape[-1] * math.log(2 * math.pi)
        return self.log_weights - log_det - constant - 0.5 * z.square().sum(1).T

    def draw(self, noise: Tensor) -> Tensor:
        """``(K, S, d)`` from ``(S, d)``: the same noise in every component."""
        return self.locs[:, None] + noise @ self.trils.mT
