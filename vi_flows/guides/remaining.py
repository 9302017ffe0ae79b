"""How much a guide has still to gain: the Kullback–Leibler divergence that is left, from importance weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Remaining", "remaining_kl"]

SMALL_SHIFT = 0.02
"""Of the marginal means, in standard deviations."""

SMALL_STRETCH = 0.05
"""Of the marginal variances, relative: 2.5 % of a standard deviation."""


@dataclass(frozen=True)
class Remaining:
    """What is left to gain, in the eyes of the guide's own draws: a mode that none of them reached is not seen.

    Attributes:
        elbo: mean log-weight, nats.
        kl: estimate of ``KL(q‖p)``, nats.
        kl_se: its standard error.
        shift: the furthest that weighting moves the mean of an unconstrained coordinate, in its standard deviations.
        stretch: the largest relative change of a coordinate's variance by weighting.
    """

    elbo: float
    kl: float
    kl_se: float
    shift: float
    stretch: float

    def below(self, kl: float) -> bool:
        """Whether less than ``kl`` nats are left beyond noise, with all means and spreads in place."""
        return self.kl + 2 * self.kl_se < kl and self.shift < SMALL_SHIFT and self.stretch < SMALL_STRETCH


@torch.no_grad()
def remaining_kl(log_weights: Tensor, x: Tensor) -> Remaining:
    r"""Estimate ``KL(q‖p) = log E_q[w] − E_q[log w]`` with ``w = p(x, data) / q(x)``.

    With ``ℓ = log w`` and ``L`` the log of the mean weight, the estimate ``L − mean ℓ`` has the influence function
    ``e^{ℓ−L} − 1 − (ℓ − mean ℓ)``, second order in the spread of ``ℓ``: near the optimum a thousand draws give the
    divergence to a small part of itself, where the ELBO's own noise is of first order. The same cancellation gives the
    changes of means and variances, ``Σ (w̄ − 1/S) f(x)`` with normalised weights ``w̄``.

    Args:
        log_weights: ``ℓ`` of draws of the guide, shape ``(S,)``.
        x: the draws on unconstrained coordinates, shape ``(S, d)``.

    Returns:
        The estimates; infinite where a weight is not finite.
    """
    log_w, x = log_weights.double(), x.double()
    size = len(log_w)
    if not bool(torch.isfinite(log_w).all()):
        return Remaining(-math.inf, math.inf, math.inf, math.inf, math.inf)
    mean = log_w.mean()
    log_mean = torch.logsumexp(log_w, 0) - math.log(size)
    ratio = (log_w - log_mean).exp()
    influence = ratio - 1 - (log_w - mean)
    centered = x - x.mean(0)
    variance = centered.square().mean(0).clamp(min=1e-300)
    change = ((ratio - 1) / size)[:, None]
    shift = (change * centered).sum(0) / variance.sqrt()
    stretch = (change * centered.square()).sum(0) / variance - shift.square()
    return Remaining(
        elbo=float(mean),
        kl=float(log_mean - mean),
        kl_se=float(influence.std()) / size**0.5,
        shift=float(shift.abs().amax()),
        stretch=float(stretch.abs().amax()),
    )
