"""A Gaussian start for a flow guide: quasi-Newton paths through the log joint density."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

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
    generator: torch.Generator | None = None,
) -> GaussianStart | None:
    r"""The best Gaussian along quasi-Newton paths to the modes, by ELBO.

    Follows Pathfinder (Zhang, Carpenter, Gelman and Vehtari 2022): L-BFGS climbs the log density from each start, each
    visited point with the inverse-Hessian estimate of its path gives a Gaussian ``N(x + H∇log p, H)``, and the one with
    the highest Monte Carlo ELBO wins. So a funnel, whose mode lies at infinity, is still met at its typical set. Where
    a Hessian by finite differences at the winner gives a better ELBO, it replaces the path's estimate.

    Args:
        log_density: unnormalised log density of unconstrained points ``(S, d) → (S,)``, differentiable.
        starts: starting points, shape ``(num_paths, d)``.
        num_draws: draws for each ELBO.
        max_iterations: of each L-BFGS run.
        max_candidates: points of each path whose ELBO is estimated.
        max_dense_dim: beyond that many dimensions the covariance stays diagonal.
        generator: source of the draws.

    Returns:
        The winner, or ``None`` if no path met a finite density.
    """
    dim = starts.shape[-1]
    noise = torch.randn(num_draws, dim, dtype=torch.float64, generator=generator)
    dense = dim <= max_dense_dim
    best: GaussianStart | None = None
    for start in starts:
        path = _climb(log_density, start, max_iterations)
        for loc, covariance in _gaussians(path, dense, max_candidates):
            best = _better(best, _score(log_density, loc, covariance, noise, start))
    if best is not None and dense:
        for _ in range(2):
            local = _laplace(log_density, best.loc, best.covariance.diagonal().sqrt())
            if local is None:
                break
            best = _better(best, _score(log_density, *local, noise, best.loc))
    return best


def _better(a: GaussianStart | None, b: GaussianStart | None) -> GaussianStart | None:
    if a is None or b is None:
        return b if a is None else a
    return b if b.elbo > a.elbo else a


def _value_and_grad(log_density: LogDensity, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        value = log_density(x)
        (grad,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), grad


def _climb(log_density: LogDensity, start: Tensor, max_iterations: int) -> list[tuple[np.ndarray, np.ndarray]]:
    path: list[tuple[np.ndarray, np.ndarray]] = []
    seen: dict[bytes, np.ndarray] = {}

    def negative(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = _value_and_grad(log_density, torch.as_tensor(x[None], dtype=start.dtype, device=start.device))
        g = -grad[0].double().cpu().numpy()
        if not (bool(torch.isfinite(value[0])) and np.isfinite(g).all()):
            # A wall: the line search backs off from it.
            return 1e100, np.zeros_like(x)
        seen[x.tobytes()] = g
        return -float(value[0]), g

    def record(x: np.ndarray) -> None:
        grad = seen.get(x.tobytes())
        if grad is not None:
            path.append((x.copy(), grad))

    x0 = start.double().cpu().numpy()
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


def _score(
    log_density: LogDensity, loc: Tensor, covariance: Tensor, noise: Tensor, like: Tensor
) -> GaussianStart | None:
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
        log_p = log_density(x.to(like)).double().cpu()
    log_q = -0.5 * noise.square().sum(-1) - scale.log().sum() - 0.5 * loc.numel() * np.log(2 * np.pi)
    terms = log_p - log_q
    elbo = float(terms.mean())
    return GaussianStart(loc, covariance, elbo) if np.isfinite(elbo) else None


def _laplace(log_density: LogDensity, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor] | None:
    """Newton step and inverse Hessian by central differences of the gradient, in steps of a tenth of the scale."""
    dim = loc.numel()
    step = 0.1 * scale
    points = torch.cat([loc + torch.diag(step), loc - torch.diag(step), loc[None]])
    _, grad = _value_and_grad(log_density, points)
    grad = grad.double().cpu()
    hessian = (grad[:dim] - grad[dim : 2 * dim]) / (2 * step[:, None])
    precision = -0.5 * (hessian + hessian.T) * scale[:, None] * scale
    if not bool(torch.isfinite(precision).all()):
        return None
    values, vectors = torch.linalg.eigh(precision)
    values = values.clamp(min=0.05)  # flat or wrongly curved directions keep at most √20 of the scale they had
    covariance = (vectors / values) @ vectors.T * scale[:, None] * scale
    return loc + covariance @ grad[-1], covariance
