"""A Gaussian start for a flow guide: quasi-Newton paths through the log joint density."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vi_flows.guides.remaining import remaining_kl
from vi_flows.guides.start.climbing import Path, climb_all
from vi_flows.guides.start.gaussian_vi import (
    antithetic_normal,
    exact_hessian,
    points_at_once,
    polish_gaussian,
    refine_gaussians,
    value_and_grad,
)

__all__ = ["GaussianStart", "inverse_curvature", "pathfinder"]

NEAR_KL = 0.3
"""Nats: of a Gaussian with less to gain, no other one is better by more, and looking for it is not worth its time."""

WIDE_KL = 0.7
"""Nats: after rounds of natural gradients, one with less to gain is not looked for from elsewhere."""

EXACT_KL = 0.001
"""Nats: a Gaussian with less to gain is not polished."""

SMALL_RISE = 0.1
"""Nats: rounds of natural gradients that rise by less gain no more than as many of the flow's own steps do."""

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GaussianStart:
    """A Gaussian approximation ``N(loc, covariance)`` with the Monte Carlo ELBO it was chosen by, in nats.

    Attributes:
        loc: shape ``(d,)``.
        covariance: shape ``(d, d)``, or ``(d,)`` for a diagonal one.
        elbo: nats.
    """

    loc: Tensor
    covariance: Tensor
    elbo: float


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
    tops: list[float] = []
    outside: list[Tensor] = []
    begins = starts.double().cpu()
    for start, path in zip(begins, climb_all(density, begins, max_iterations), strict=True):
        if not path:
            continue
        x = torch.as_tensor(path[-1][0])
        with torch.no_grad():
            top = float(density(x[None]))
        # Paths that met at one mode need one Newton run, and those that met at the posterior's no more looks.
        met = any(abs(top - other) < 1e-3 for other in tops)
        if (met or _within(best, x)) and near(best):
            continue
        visited: list[tuple[Tensor, Tensor]] = []
        if newton and not met:
            visited, top = _newton(density, x, top, max_candidates)
            tops.append(top)
            if visited and _within(best, visited[-1][0]) and near(best):
                continue
        best = _best(best, *_scores(density, visited, few))
        del visited
        best = _best(best, *_scores(density, _gaussians(path, dense, max_candidates), few))
        outside.append(start)
    if not newton:
        return best
    if best is not None:
        best = _best(*_scores(density, [(best.loc, best.covariance)], many))
    if near(best, EXACT_KL):
        return best
    if dim > max_rounds_dim:
        return _best(best, _polished(density, best, many, generator, 6))
    if not near(best):
        best = _best(best, *_rounds(density, [best], many, max_rounds, generator))
    if not near(best, WIDE_KL):
        # Also from outside of all paths, which may have run into the neck of a funnel or a mode of little mass.
        wide = [gaussian for start in outside[:max_refined] for gaussian in _around(density, start)]
        best = _best(best, *_rounds(density, wide, many, max_rounds, generator))
    return _best(best, _polished(density, best, many, generator))


def _around(log_density: LogDensity, start: Tensor) -> list[GaussianStart]:
    """A small Gaussian around a point, and one with the curvature's covariance, no wider than one."""
    found = [GaussianStart(start, 0.01 * torch.eye(len(start), dtype=torch.float64), -math.inf)]
    covariance = inverse_curvature(log_density, start, 1e-2)
    if covariance is not None:
        shrink = covariance.diagonal().rsqrt().clamp(max=1.0)
        found.append(GaussianStart(start, covariance * shrink[:, None] * shrink, -math.inf))
    return found


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
        if start is None:
            return False
        if not self._last or self._last[0] is not start.loc or self._last[1] is not start.covariance:
            self._last, self._highest = (start.loc, start.covariance), self._left(start)
        return self._highest < kl

    def _left(self, start: GaussianStart) -> float:
        if (tril := _root(start.covariance)) is None:
            return math.inf
        x = start.loc + self.noise @ tril.T
        with torch.no_grad():
            log_p = torch.cat([self.log_density(part) for part in x.split(points_at_once(x.shape[-1]))])
        left = remaining_kl(log_p + 0.5 * self.noise.square().sum(-1), x)
        return left.kl + 2 * left.kl_se


def _within(start: GaussianStart | None, x: Tensor) -> bool:
    """Whether a point lies where the draws of the Gaussian do, or nearer to its middle."""
    if start is None or (tril := _root(start.covariance)) is None:
        return False
    z = torch.linalg.solve_triangular(tril, (x - start.loc)[:, None], upper=False)
    return float(z.norm()) < x.numel() ** 0.5 + 3


def _rounds(
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
        if start is not None and (tril := _root(start.covariance)) is not None
    ]
    everyone = list(moving)
    for _ in range(max_rounds):
        if not moving:
            break
        here = [(one.best.loc, one.tril) for one in moving]
        there = refine_gaussians(log_density, here, rates=[one.rate for one in moving], generator=generator)
        arrived = [refined for refined in there if refined is not None]
        scores = iter(_elbos(log_density, [(loc, tril @ tril.T) for loc, tril in arrived], noise))
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


def _polished(
    log_density: LogDensity,
    start: GaussianStart | None,
    noise: Tensor,
    generator: torch.Generator | None,
    max_iterations: int = 24,
) -> GaussianStart | None:
    """After natural-gradient steps of decreasing length, over which the noise averages out."""
    if start is None or (tril := _root(start.covariance)) is None:
        return None
    refined = polish_gaussian(log_density, start.loc, tril, max_iterations, generator)
    return _score_of(log_density, refined, noise)


def _score_of(log_density: LogDensity, refined: tuple[Tensor, Tensor] | None, noise: Tensor) -> GaussianStart | None:
    if refined is None:
        return None
    return _best(*_scores(log_density, [(refined[0], refined[1] @ refined[1].T)], noise))


def _root(covariance: Tensor) -> Tensor | None:
    """The Cholesky factor of a dense covariance, or ``None``."""
    if covariance.dim() == 1:
        return torch.diag(covariance.sqrt())
    tril, info = torch.linalg.cholesky_ex(covariance)
    return tril if int(info) == 0 else None


def _best(*candidates: GaussianStart | None) -> GaussianStart | None:
    """The one of the highest ELBO; ``None`` stands for none."""
    return max((c for c in candidates if c is not None), key=lambda c: c.elbo, default=None)


def _gaussians(path: Path, dense: bool, max_candidates: int) -> list[tuple[Tensor, Tensor]]:
    """Newton-corrected points of the path with the BFGS inverse Hessian there; the last points in any case."""
    if not path:
        return []
    dim = len(path[0][0])
    keep = set(np.unique(np.linspace(0, len(path) - 1, max_candidates).round().astype(int)).tolist())
    inverse: np.ndarray | None = None
    found = []
    for index, (x, grad) in enumerate(path):
        if index > 0:
            s, y = x - path[index - 1][0], grad - path[index - 1][1]
            sy = float(s @ y)
            if sy > 1e-10 * float(y @ y) > 0:
                if inverse is None:
                    inverse = np.eye(dim) * (sy / float(y @ y)) if dense else np.full(dim, sy / float(y @ y))
                if dense:
                    hy = inverse @ y
                    inverse = (
                        inverse + (1 + y @ hy / sy) * np.outer(s, s) / sy - (np.outer(hy, s) + np.outer(s, hy)) / sy
                    )
                else:
                    # The diagonal of the same update.
                    hy = inverse * y
                    inverse = np.maximum(inverse + (1 + y @ hy / sy) * s * s / sy - 2 * hy * s / sy, 1e-12)
        if index in keep:
            scale = (
                inverse
                if inverse is not None
                else (np.eye(dim) if dense else np.ones(dim)) / max(1.0, float(np.linalg.norm(grad)))
            )
            step = scale @ grad if dense else scale * grad
            covariance = torch.as_tensor(scale)
            found.append((torch.as_tensor(x - step), covariance))
            if np.linalg.norm(step) > 1e-3 * (1 + np.linalg.norm(x)):
                found.append((torch.as_tensor(x), covariance))
    return found


def _scores(log_density: LogDensity, gaussians: list[tuple[Tensor, Tensor]], noise: Tensor) -> list[GaussianStart]:
    """Those of the Gaussians that have a finite Monte Carlo ELBO, with it."""
    return [start for start in _elbos(log_density, gaussians, noise) if start is not None]


def _elbos(
    log_density: LogDensity, gaussians: list[tuple[Tensor, Tensor]], noise: Tensor
) -> list[GaussianStart | None]:
    """The Gaussians with their Monte Carlo ELBOs; ``None`` where that is not finite."""
    points, entropies, kept = [], [], []
    found: list[GaussianStart | None] = [None] * len(gaussians)
    for index, (loc, covariance) in enumerate(gaussians):
        if covariance.dim() == 1:
            x, log_det = loc + noise * covariance.sqrt(), 0.5 * covariance.log().sum()
        else:
            tril = _root(covariance)
            if tril is None:
                continue
            x, log_det = loc + noise @ tril.T, tril.diagonal().log().sum()
        if bool(torch.isfinite(x).all()):
            points.append(x)
            entropies.append(log_det + 0.5 * loc.numel() * math.log(2 * math.pi) + 0.5 * noise.square().sum(-1).mean())
            kept.append(index)
    # Many at once: a pass through a small model costs as much for one point as for hundreds.
    size = points_at_once(noise.shape[-1])
    step = max(1, min(256, size) // len(noise))
    with torch.no_grad():
        for i in range(0, len(points), step):
            parts = torch.cat(points[i : i + step]).split(size)
            log_p = torch.cat([log_density(part) for part in parts]).reshape(-1, len(noise)).mean(1)
            for index, mean, entropy in zip(kept[i:], log_p, entropies[i:], strict=False):
                if math.isfinite(elbo := float(mean + entropy)):
                    found[index] = GaussianStart(*gaussians[index], elbo)
    return found


def _newton(
    log_density: LogDensity, x: Tensor, value: float, max_kept: int, max_iterations: int = 40
) -> tuple[list[tuple[Tensor, Tensor]], float]:
    """Of a Newton path with halved steps: its last points with inverse Hessians (eigenvalues' sizes), and its top."""
    visited: list[tuple[Tensor, Tensor]] = []
    halvings = 0.5 ** torch.arange(12, dtype=x.dtype)
    for _ in range(max_iterations):
        grad = value_and_grad(log_density, x[None])[1][0]
        covariance = inverse_curvature(log_density, x, 1e-12, visited[-1][1] if visited else None)
        if covariance is None or not bool(torch.isfinite(grad).all()):
            break
        visited = [*visited, (x, covariance)][-max_kept:]
        step = covariance @ grad
        gain = float(grad @ step)
        if not 1e-9 < gain < float("inf"):
            break
        with torch.no_grad():
            tried = log_density(x + halvings[:, None] * step)
        better = (tried > value + 1e-4 * halvings * gain).nonzero().flatten()
        if len(better) == 0:
            break
        x = x + halvings[better[0]] * step
        value = float(tried[better[0]])
    return visited, value


def inverse_curvature(
    log_density: LogDensity, x: Tensor, smallest: float, covariance: Tensor | None = None
) -> Tensor | None:
    """``|−H|⁻¹``, by the absolute eigenvalues in coordinates of unit curvature, none of them below ``smallest``."""
    hessian = exact_hessian(log_density, x)
    if hessian is None or not bool(torch.isfinite(hessian).all()):
        hessian = _difference_hessian(log_density, x, covariance)
    if not bool(torch.isfinite(hessian).all()):
        return None
    scale = hessian.diagonal().abs().clamp(min=1e-30).rsqrt()
    values, vectors = torch.linalg.eigh(-hessian * scale[:, None] * scale)
    root = scale[:, None] * vectors / values.abs().clamp(min=smallest).sqrt()
    return root @ root.T


def _difference_hessian(log_density: LogDensity, x: Tensor, covariance: Tensor | None) -> Tensor:
    """Central differences of the gradient, for densities without second derivatives."""
    step = 1e-4 * (1 + x.abs()) if covariance is None else 0.01 * covariance.diagonal().sqrt()
    points = torch.cat([x + torch.diag(step), x - torch.diag(step)])
    _, grad = value_and_grad(log_density, points)
    hessian = (grad[: len(x)] - grad[len(x) :]) / (2 * step[:, None])
    return 0.5 * (hessian + hessian.T)
