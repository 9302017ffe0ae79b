"""Gaussians along a path up a log density, and their ELBOs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vi_flows.guides.start.climbing import Path
from vi_flows.guides.start.gaussian_vi import points_at_once

__all__ = ["GaussianStart", "best_of", "elbos", "gaussians_along", "root_of", "scores"]

MOST_POINTS = 1024
"""In one pass, where several Gaussians are judged."""

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


def best_of(*candidates: GaussianStart | None) -> GaussianStart | None:
    """The one of the highest ELBO; ``None`` stands for none."""
    return max((c for c in candidates if c is not None), key=lambda c: c.elbo, default=None)


def root_of(covariance: Tensor) -> Tensor | None:
    """The Cholesky factor of a dense covariance, or ``None``."""
    if covariance.dim() == 1:
        return torch.diag(covariance.sqrt())
    tril, info = torch.linalg.cholesky_ex(covariance)
    return tril if int(info) == 0 else None


def gaussians_along(path: Path, dense: bool, max_candidates: int) -> list[tuple[Tensor, Tensor]]:
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


def scores(log_density: LogDensity, gaussians: list[tuple[Tensor, Tensor]], noise: Tensor) -> list[GaussianStart]:
    """Those of the Gaussians that have a finite Monte Carlo ELBO, with it."""
    return [start for start in elbos(log_density, gaussians, noise) if start is not None]


def elbos(log_density: LogDensity, gaussians: list[tuple[Tensor, Tensor]], noise: Tensor) -> list[GaussianStart | None]:
    """The Gaussians with their Monte Carlo ELBOs; ``None`` where that is not finite."""
    points, entropies, kept = [], [], []
    found: list[GaussianStart | None] = [None] * len(gaussians)
    for index, (loc, covariance) in enumerate(gaussians):
        if covariance.dim() == 1:
            x, log_det = loc + noise * covariance.sqrt(), 0.5 * covariance.log().sum()
        else:
            tril = root_of(covariance)
            if tril is None:
                continue
            x, log_det = loc + noise @ tril.T, tril.diagonal().log().sum()
        if bool(torch.isfinite(x).all()):
            points.append(x)
            entropies.append(log_det + 0.5 * loc.numel() * math.log(2 * math.pi) + 0.5 * noise.square().sum(-1).mean())
            kept.append(index)
    # Many at once: a pass through a small model costs as much for one point as for hundreds.
    size = points_at_once(noise.shape[-1])
    step = max(1, min(MOST_POINTS, size) // len(noise))
    with torch.no_grad():
        for i in range(0, len(points), step):
            parts = torch.cat(points[i : i + step]).split(size)
            log_p = torch.cat([log_density(part) for part in parts]).reshape(-1, len(noise)).mean(1)
            for index, mean, entropy in zip(kept[i:], log_p, entropies[i:], strict=False):
                if math.isfinite(elbo := float(mean + entropy)):
                    found[index] = GaussianStart(*gaussians[index], elbo)
    return found
