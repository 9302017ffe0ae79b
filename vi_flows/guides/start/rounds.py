"""Gaussians that climb side by side by natural gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vi_flows.guides.start.gaussian_vi import polish_gaussian, refine_gaussians
from vi_flows.guides.start.gaussians import GaussianStart, best_of, elbos, root_of, scores
from vi_flows.guides.start.newton import inverse_curvature

__all__ = ["around", "polished", "rounds"]

SMALL_RISE = 0.1
"""Nats: rounds of natural gradients that rise by less gain no more than as many of the flow's own steps do."""

LogDensity = Callable[[Tensor], Tensor]


def around(log_density: LogDensity, start: Tensor) -> list[GaussianStart]:
    """A small Gaussian around a point, and one with the curvature's covariance, no wider than one."""
    found = [GaussianStart(start, 0.01 * torch.eye(len(start), dtype=torch.float64), -math.inf)]
    covariance = inverse_curvature(log_density, start, 1e-2)
    if covariance is not None:
        shrink = covariance.diagonal().rsqrt().clamp(max=1.0)
        found.append(GaussianStart(start, covariance * shrink[:, None] * shrink, -math.inf))
    return found


def rounds(
    log_density: LogDensity,
    starts: Sequence[GaussianStart | None],
    noise: Tensor,
    max_rounds: int,
    generator: torch.Generator | None,
) -> list[GaussianStart]:
    """What rounds of natural gradients make of each, until its ELBO stops rising; all of them side by side."""
    moving = [
        _Moving(GaussianStart(start.loc, start.covariance, -math.inf), tril)
        for start in starts
        if start is not None and (tril := root_of(start.covariance)) is not None
    ]
    everyone = list(moving)
    for _ in range(max_rounds):
        if not moving:
            break
        here = [(one.best.loc, one.tril) for one in moving]
        there = refine_gaussians(log_density, here, rates=[one.rate for one in moving], generator=generator)
        arrived = [refined for refined in there if refined is not None]
        scores = iter(elbos(log_density, [(loc, tril @ tril.T) for loc, tril in arrived], noise))
        for one, refined in zip(moving, there, strict=True):
            one.take(refined, None if refined is None else next(scores))
        highest = max(one.best.elbo for one in everyone)
        moving = [one for one in moving if not one.done(highest)]
    return [one.best for one in everyone if math.isfinite(one.best.elbo)]


@dataclass
class _Moving:
    """A Gaussian between rounds of natural gradients."""

    best: GaussianStart
    tril: Tensor
    rate: float = 1.0
    still: int = 0

    def take(self, refined: tuple[Tensor, Tensor] | None, score: GaussianStart | None) -> None:
        """Where a round ended: taken where the ELBO rose; ``None`` for nowhere."""
        rise = -math.inf if score is None else score.elbo - self.best.elbo
        if score is not None and refined is not None and rise > 0:
            self.best, self.tril = score, refined[1]
        # Steps that overshoot are taken back.
        if rise < 0:
            self.rate /= 2
        self.still = self.still + 1 if abs(rise) < SMALL_RISE else 0

    def done(self, highest: float) -> bool:
        """Whether there is nothing more to expect, where one beside it has the ``highest`` ELBO."""
        far_behind = self.still > 0 and self.best.elbo < highest - 5 * SMALL_RISE
        return far_behind or self.still == 2 or self.rate < 0.1


def polished(
    log_density: LogDensity,
    start: GaussianStart | None,
    noise: Tensor,
    generator: torch.Generator | None,
    max_iterations: int = 24,
    kl: float = 0.0,
) -> GaussianStart | None:
    """After natural-gradient steps of decreasing length, over which the noise averages out.

    Args:
        log_density: of points ``(S, d) → (S,)``, differentiable.
        start: from where; ``None`` for nowhere.
        noise: standard normal draws for the ELBO.
        generator: source of the steps' draws.
        max_iterations: steps at most.
        kl: nats that it has to gain, about; with many, the noise may be larger.
    """
    if start is None or (tril := root_of(start.covariance)) is None:
        return None
    refined = polish_gaussian(log_density, start.loc, tril, max_iterations, generator, min(kl, 1.0))
    return _score_of(log_density, refined, noise)


def _score_of(log_density: LogDensity, refined: tuple[Tensor, Tensor] | None, noise: Tensor) -> GaussianStart | None:
    if refined is None:
        return None
    return best_of(*scores(log_density, [(refined[0], refined[1] @ refined[1].T)], noise))
