"""Newton paths up a log density, with exact Hessians where the model has them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vi_flows.guides.start.gaussian_vi import exact_hessian, value_and_grad

__all__ = ["inverse_curvature", "newton_path"]

LogDensity = Callable[[Tensor], Tensor]


def newton_path(
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
