"""A Gaussian start for a flow guide: quasi-Newton paths through the log joint density."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vi_flows.guides.remaining import remaining_kl
from vi_flows.guides.start.climbing import climb_all
from vi_flows.guides.start.gaussian_vi import antithetic_normal, points_at_once
from vi_flows.guides.start.gaussians import GaussianStart, best_of, gaussians_along, root_of, scores
from vi_flows.guides.start.newton import newton_path
from vi_flows.guides.start.rounds import around, polished, rounds

__all__ = ["pathfinder"]

NEAR_KL = 0.3
"""Nats: of a Gaussian with less to gain, no other one is better by more, and looking for it is not worth its time."""

WIDE_KL = 0.7
"""Nats: after rounds of natural gradients, one with less to gain is not looked for from elsewhere."""

EXACT_KL = 0.001
"""Nats: a Gaussian with less to gain is not polished."""

FLAT = 0.1
"""Nats by which a density may fall on the way to the mode that a point belongs to."""

LogDensity = Callable[[Tensor], Tensor]


def pathfinder(
    log_density: LogDensity,
    starts: Tensor,
    num_draws: int = 32,
    max_iterations: int = 200,
    max_candidates: int = 12,
    max_dense_dim: int = 1000,
    max_newton_dim: int = 1000,
    max_rounds_dim: int = 200,
    max_refined: int = 2,
    max_rounds: int = 40,
    generator: torch.Generator | None = None,
) -> GaussianStart | None:
    r"""The best Gaussian along quasi-Newton and Newton paths to the modes, by ELBO, refined by natural gradients.

    Follows Pathfinder (Zhang, Carpenter, Gelman and Vehtari 2022): L-BFGS climbs the log density from each start, each
    visited point with the inverse-Hessian estimate of its path gives a Gaussian ``N(x + H∇log p, H)``, and the one with
    the highest Monte Carlo ELBO wins. So a funnel, whose mode lies at infinity, is still met at its typical set. Damped
    Newton steps with exact Hessians go on where L-BFGS ends: covariates in raw units make the posterior a thin needle,
    along which it stalls. :func:`~vi_flows.guides.start.gaussian_vi.refine_gaussian` then moves the winner towards the
    best Gaussian of all, and, unless that is the posterior, so it does from the starts themselves, with a small and a
    curvature's covariance: a path may have run into the neck of a funnel or a mode of little mass. The highest ELBO of
    all wins.

    Args:
        log_density: unnormalised log density of unconstrained points ``(S, d) → (S,)``, differentiable; it is given
            points of the type and device of ``starts``. Wants float64.
        starts: starting points, shape ``(num_paths, d)``.
        num_draws: draws for each ELBO.
        max_iterations: of each L-BFGS run.
        max_candidates: points of each path whose ELBO is estimated; beyond ``max_rounds_dim`` dimensions a third, as
            their covariances are large.
        max_dense_dim: beyond that many dimensions the covariance stays diagonal.
        max_newton_dim: beyond that many dimensions there are no Newton steps and no refinement.
        max_rounds_dim: beyond that many dimensions natural gradients only polish the winner of the paths, in few steps.
        max_refined: starts from which natural gradients set out, besides the winner of the paths.
        max_rounds: of six natural-gradient steps each.
        generator: source of the draws.

    Returns:
        The winner, or ``None`` if no path met a finite density.
    """
    dim = starts.shape[-1]
    few, many = (antithetic_normal(size, dim, generator) for size in (num_draws, 8 * num_draws))
    dense, newton = dim <= max_dense_dim, dim <= max_newton_dim
    max_candidates = max_candidates if dim <= max_rounds_dim else max(1, max_candidates // 3)

    def density(x: Tensor) -> Tensor:
        return log_density(x.to(starts)).double().cpu()

    near = _Nearness(density, many)
    best: GaussianStart | None = None
    tops: list[tuple[Tensor, float]] = []
    outside: list[Tensor] = []
    begins = starts.double().cpu()
    for start, path in zip(begins, climb_all(density, begins, max_iterations), strict=True):
        if not path:
            continue
        x = torch.as_tensor(path[-1][0])
        # Paths that met at one mode need one Newton run, and those that met at the posterior's no more looks.
        if _within(best, x) and near(best):
            continue
        met = newton and _met(density, x, tops)
        if met and near(best):
            continue
        visited: list[tuple[Tensor, Tensor]] = []
        if newton and not met:
            visited, top = newton_path(density, x, max_candidates)
            if visited:
                tops.append((visited[-1][0], top))
                if _within(best, visited[-1][0]) and near(best):
                    continue
        best = best_of(best, *scores(density, visited, few))
        del visited
        best = best_of(best, *scores(density, gaussians_along(path, dense, max_candidates), few))
        outside.append(start)
    if not newton:
        return best
    if best is not None:
        best = best_of(*scores(density, [(best.loc, best.covariance)], many))
    if near(best, EXACT_KL):
        return best
    if dim > max_rounds_dim:
        return best_of(best, polished(density, best, many, generator, 6))
    if not near(best):
        best = best_of(best, *rounds(density, [best], many, max_rounds, generator))
    if not near(best, WIDE_KL):
        # Also from outside of all paths, which may have run into the neck of a funnel or a mode of little mass.
        wide = [gaussian for start in outside[:max_refined] for gaussian in around(density, start)]
        best = best_of(best, *rounds(density, wide, many, max_rounds, generator))
    steps = 24 if near(best) else 8
    return best_of(best, polished(density, best, many, generator, steps, near.highest(best)))


class _Nearness:
    """Whether a Gaussian is nearly the posterior, in the eyes of its own draws; it is asked more than once of the same.

    Args:
        log_density: of points ``(S, d)``.
        noise: standard normal draws.
    """

    def __init__(self, log_density: LogDensity, noise: Tensor) -> None:
        self.log_density, self.noise = log_density, noise
        self._last: tuple[Tensor, Tensor] | tuple[()] = ()
        self._highest = math.inf

    def __call__(self, start: GaussianStart | None, kl: float = NEAR_KL) -> bool:
        """Whether there are less than ``kl`` nats to gain, beyond noise."""
        return self.highest(start) < kl

    def highest(self, start: GaussianStart | None) -> float:
        """So many nats there are to gain at most, but for noise."""
        if start is None:
            return math.inf
        if not self._last or self._last[0] is not start.loc or self._last[1] is not start.covariance:
            self._last, self._highest = (start.loc, start.covariance), self._left(start)
        return self._highest

    def _left(self, start: GaussianStart) -> float:
        if (tril := root_of(start.covariance)) is None:
            return math.inf
        x = start.loc + self.noise @ tril.T
        with torch.no_grad():
            log_p = torch.cat([self.log_density(part) for part in x.split(points_at_once(x.shape[-1]))])
        left = remaining_kl(log_p + 0.5 * self.noise.square().sum(-1), x)
        return left.kl + 2 * left.kl_se


def _met(log_density: LogDensity, x: Tensor, tops: list[tuple[Tensor, float]]) -> bool:
    """Whether a point is as high as one of the tops, or the density does not fall on the straight line there."""
    if not tops:
        return False
    share = torch.linspace(0, 1, 18, dtype=x.dtype)[:-1, None, None]
    with torch.no_grad():
        way = log_density((x + share * (torch.stack([top for top, _ in tops]) - x)).flatten(0, 1)).reshape(17, -1)
    height = torch.tensor([value for _, value in tops], dtype=way.dtype)
    climbs = (way >= torch.minimum(way[0], height) - FLAT).all(0)
    return bool(((way[0] - height).abs() < 1e-3).any() or climbs.any())


def _within(start: GaussianStart | None, x: Tensor) -> bool:
    """Whether a point lies where the draws of the Gaussian do, or nearer to its middle."""
    if start is None or (tril := root_of(start.covariance)) is None:
        return False
    z = torch.linalg.solve_triangular(tril, (x - start.loc)[:, None], upper=False)
    return float(z.norm()) < x.numel() ** 0.5 + 3
