"""A Gaussian start for a flow guide: quasi-Newton paths through the log joint density."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from vi_flows.guides.start.gaussian_vi import antithetic_normal, exact_hessian, refine_gaussian, value_and_grad

__all__ = ["GaussianStart", "pathfinder"]

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
    max_dense_dim: int = 500,
    max_newton_dim: int = 200,
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
    best Gaussian of all, and so it does from the starts themselves, with a small and a curvature's covariance: a path
    may have run into the neck of a funnel or a mode of little mass. The highest ELBO of all wins.

    Args:
        log_density: unnormalised log density of unconstrained points ``(S, d) → (S,)``, differentiable; it is given
            points of the type and device of ``starts``. Wants float64.
        starts: starting points, shape ``(num_paths, d)``.
        num_draws: draws for each ELBO.
        max_iterations: of each L-BFGS run.
        max_candidates: points of each path whose ELBO is estimated.
        max_dense_dim: beyond that many dimensions the covariance stays diagonal.
        max_newton_dim: beyond that many dimensions there are no Newton steps and no refinement.
        max_refined: starts from which natural gradients set out, besides the winner of the paths.
        max_rounds: of six natural-gradient steps each.
        generator: source of the draws.

    Returns:
        The winner, or ``None`` if no path met a finite density.
    """
    dim = starts.shape[-1]
    noise = antithetic_normal(num_draws, dim, generator)
    dense, newton = dim <= max_dense_dim, dim <= max_newton_dim

    def density(x: Tensor) -> Tensor:
        return log_density(x.to(starts)).double().cpu()

    best: GaussianStart | None = None
    tops: list[float] = []
    outside: list[GaussianStart] = []
    for start in starts.double().cpu():
        path = _climb(density, start, max_iterations)
        for loc, covariance in _gaussians(path, dense, max_candidates):
            best = _better(best, _score(density, loc, covariance, noise))
        if not path or not newton:
            continue
        x = torch.as_tensor(path[-1][0])
        with torch.no_grad():
            top = float(density(x[None]))
        # Paths that met at one mode need one Newton run.
        if not any(abs(top - other) < 1e-3 for other in tops):
            visited, top = _newton(density, x, top)
            tops.append(top)
            for loc, covariance in visited[-max_candidates:]:
                best = _better(best, _score(density, loc, covariance, noise))
        if len(outside) < 2 * max_refined:
            outside.append(GaussianStart(start, 0.01 * torch.eye(dim, dtype=torch.float64), -math.inf))
            covariance = _inverse_curvature(density, start, 1e-2)
            if covariance is not None:
                shrink = covariance.diagonal().rsqrt().clamp(max=1.0)
                outside.append(GaussianStart(start, covariance * shrink[:, None] * shrink, -math.inf))
    if not newton:
        return best
    # Also from outside of all paths, which may have run into the neck of a funnel or a mode of little mass.
    noise = antithetic_normal(8 * num_draws, dim, generator)
    found = outside if best is None else [best, *outside]
    best = None if best is None else _score(density, best.loc, best.covariance, noise)
    for candidate in found:
        best = _better(best, _refine(density, candidate, noise, max_rounds, generator))
    return best


def _refine(
    log_density: LogDensity,
    start: GaussianStart,
    noise: Tensor,
    max_rounds: int,
    generator: torch.Generator | None,
) -> GaussianStart | None:
    """Rounds of natural gradients until the ELBO stops rising, then one of shrinking steps."""
    tril, info = torch.linalg.cholesky_ex(start.covariance)
    if int(info) != 0:
        return None
    best = GaussianStart(start.loc, start.covariance, -math.inf)
    rate, still = 1.0, 0
    for _ in range(max_rounds):
        refined = refine_gaussian(log_density, best.loc, tril, rate=rate, generator=generator)
        score = None if refined is None else _score(log_density, refined[0], refined[1] @ refined[1].T, noise)
        rise = -math.inf if score is None else score.elbo - best.elbo
        if rise > 0:
            best, tril = score, refined[1]
        # Steps that overshoot are taken back.
        if rise < 0:
            rate = rate / 2
        still = still + 1 if abs(rise) < 0.02 else 0
        if still == 3 or rate < 0.1:
            break
    refined = refine_gaussian(log_density, best.loc, tril, 24, shrink=True, generator=generator)
    if refined is not None:
        best = _better(best, _score(log_density, refined[0], refined[1] @ refined[1].T, noise))
    return best if math.isfinite(best.elbo) else None


def _better(a: GaussianStart | None, b: GaussianStart | None) -> GaussianStart | None:
    if a is None or b is None:
        return b if a is None else a
    return b if b.elbo > a.elbo else a


def _climb(log_density: LogDensity, start: Tensor, max_iterations: int) -> list[tuple[np.ndarray, np.ndarray]]:
    path: list[tuple[np.ndarray, np.ndarray]] = []
    seen: dict[bytes, np.ndarray] = {}

    def negative(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = value_and_grad(log_density, torch.as_tensor(x[None]))
        g = -grad[0].numpy()
        if not (bool(torch.isfinite(value[0])) and np.isfinite(g).all()):
            # A wall: the line search backs off from it.
            return 1e100, np.zeros_like(x)
        seen[x.tobytes()] = g
        return -float(value[0]), g

    def record(x: np.ndarray) -> None:
        grad = seen.get(x.tobytes())
        if grad is not None:
            path.append((x.copy(), grad))

    x0 = start.numpy()
    if negative(x0)[0] >= 1e100:
        return []
    record(x0)
    minimize(negative, x0, jac=True, method="L-BFGS-B", callback=record,
             options={"maxiter": max_iterations, "maxcor": 20, "ftol": 1e-10, "gtol": 1e-6})  # fmt: skip
    return path


def _gaussians(
    path: list[tuple[np.ndarray, np.ndarray]], dense: bool, max_candidates: int
) -> list[tuple[Tensor, Tensor]]:
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


def _score(log_density: LogDensity, loc: Tensor, covariance: Tensor, noise: Tensor) -> GaussianStart | None:
    if covariance.dim() == 1:
        scale = covariance.sqrt()
        x = loc + noise * scale
    else:
        tril, info = torch.linalg.cholesky_ex(covariance)
        if int(info) != 0:
            return None
        scale = tril.diagonal()
        x = loc + noise @ tril.T
    if not bool(torch.isfinite(x).all()):
        return None
    with torch.no_grad():
        log_p = log_density(x)
    log_q = -0.5 * noise.square().sum(-1) - scale.log().sum() - 0.5 * loc.numel() * np.log(2 * np.pi)
    elbo = float((log_p - log_q).mean())
    return GaussianStart(loc, covariance, elbo) if np.isfinite(elbo) else None


def _newton(
    log_density: LogDensity, x: Tensor, value: float, max_iterations: int = 40
) -> tuple[list[tuple[Tensor, Tensor]], float]:
    """Points with inverse Hessians (of the eigenvalues' sizes) along a Newton path with halved steps, and its top."""
    visited: list[tuple[Tensor, Tensor]] = []
    halvings = 0.5 ** torch.arange(12, dtype=x.dtype)
    for _ in range(max_iterations):
        grad = value_and_grad(log_density, x[None])[1][0]
        covariance = _inverse_curvature(log_density, x, 1e-12, visited[-1][1] if visited else None)
        if covariance is None or not bool(torch.isfinite(grad).all()):
            break
        visited.append((x, covariance))
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


def _inverse_curvature(
    log_density: LogDensity, x: Tensor, smallest: float, covariance: Tensor | None = None
) -> Tensor | None:
    """``|−H|⁻¹``, by the absolute eigenvalues in coordinates of unit curvature, none of them below ``smallest``."""
    hessian = exact_hessian(log_density, x)
    if hessian is None:
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
