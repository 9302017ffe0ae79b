"""Newton paths up a log density, with exact Hessians where the model has them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vi_flows.guides.start.gaussian_vi import exact_derivatives, value_and_grad

__all__ = ["inverse_curvature", "inverse_curvatures", "newton_path"]

LogDensity = Callable[[Tensor], Tensor]


PATIENCE = 4
"""So many steps in a row that do not raise the mass of the Gaussian there, as Laplace has it, lead into a neck."""


def newton_path(
    log_density: LogDensity, x: Tensor, max_kept: int, max_iterations: int = 40
) -> tuple[list[tuple[Tensor, Tensor]], float]:
    """Of a Newton path with halved steps: its last points with inverse Hessians (eigenvalues' sizes), and its top.

    It ends at the mode, or where ``log p(x) + ½ log|C|`` has been higher several steps before: the density of a funnel
    has no bound, and rises in its neck as the volume falls.

    Args:
        log_density: of points ``(S, d) → (S,)``, differentiable.
        x: where it begins, shape ``(d,)``.
        max_kept: points.
        max_iterations: each is one pass for the derivatives, and one for the halvings of the step.
    """
    visited: list[tuple[Tensor, Tensor]] = []
    halvings = 0.5 ** torch.arange(12, dtype=x.dtype)
    top, most, since = -torch.inf, -torch.inf, 0
    for _ in range(max_iterations):
        value, grad, covariance = _curvature(log_density, x, 1e-12, visited[-1][1] if visited else None)
        if covariance is None or not bool(torch.isfinite(grad).all()):
            break
        top = value
        visited = [*visited, (x, covariance)][-max_kept:]
        mass = value + 0.5 * float(torch.linalg.slogdet(covariance).logabsdet)
        most, since = (mass, 0) if mass > most else (most, since + 1)
        step = covariance @ grad
        gain = float(grad @ step)
        if since >= PATIENCE or not 1e-9 < gain < float("inf"):
            break
        with torch.no_grad():
            tried = log_density(x + halvings[:, None] * step)
        better = (tried > value + 1e-4 * halvings * gain).nonzero().flatten()
        if len(better) == 0:
            break
        x = x + halvings[better[0]] * step
    return visited, top


def inverse_curvature(log_density: LogDensity, x: Tensor, smallest: float) -> Tensor | None:
    """``|−H|⁻¹``, by the absolute eigenvalues in coordinates of unit curvature, none of them below ``smallest``.

    Args:
        log_density: of points ``(S, d) → (S,)``, differentiable.
        x: shape ``(d,)``.
        smallest: of those eigenvalues.

    Returns:
        Shape ``(d, d)``; ``None`` where there are no finite second derivatives.
    """
    return _curvature(log_density, x, smallest)[2]


def inverse_curvatures(log_density: LogDensity, x: Tensor, smallest: float) -> list[Tensor | None]:
    """:func:`inverse_curvature` of several points, in a few passes.

    Args:
        log_density: likewise.
        x: shape ``(K, d)``.
        smallest: likewise.
    """
    found = exact_derivatives(log_density, x)
    if found is None:
        return [inverse_curvature(log_density, point, smallest) for point in x]
    return [
        _inverse(hessian, smallest)
        if bool(hessian.isfinite().all())
        else inverse_curvature(log_density, point, smallest)
        for point, hessian in zip(x, found[2], strict=True)
    ]


def _curvature(
    log_density: LogDensity, x: Tensor, smallest: float, covariance: Tensor | None = None
) -> tuple[float, Tensor, Tensor | None]:
    """The value, the gradient, and the inverse curvature; ``covariance``: of a point nearby, for the differences."""
    found = exact_derivatives(log_density, x[None])
    if found is None or not bool(torch.isfinite(found[2]).all()):
        value, grad, hessian = _differences(log_density, x, covariance)
    else:
        value, grad, hessian = (part[0] for part in found)
    return float(value), grad, _inverse(hessian, smallest)


def _inverse(hessian: Tensor, smallest: float) -> Tensor | None:
    if not bool(torch.isfinite(hessian).all()):
        return None
    scale = hessian.diagonal().abs().clamp(min=1e-30).rsqrt()
    values, vectors = torch.linalg.eigh(-hessian * scale[:, None] * scale)
    root = scale[:, None] * vectors / values.abs().clamp(min=smallest).sqrt()
    return root @ root.T


def _differences(log_density: LogDensity, x: Tensor, covariance: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Central differences of the gradient, for densities without second derivatives; with value and gradient."""
    step = 1e-4 * (1 + x.abs()) if covariance is None else 0.01 * covariance.diagonal().sqrt()
    points = torch.cat([x[None], x + torch.diag(step), x - torch.diag(step)])
    value, grad = value_and_grad(log_density, points)
    hessian = (grad[1 : len(x) + 1] - grad[len(x) + 1 :]) / (2 * step[:, None])
    return value[0], grad[0], 0.5 * (hessian + hessian.T)
