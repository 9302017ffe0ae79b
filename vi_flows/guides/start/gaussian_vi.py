"""Full-rank Gaussian approximations by natural gradients, for the start of a flow guide."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "antithetic_normal",
    "exact_derivatives",
    "points_at_once",
    "polish_gaussian",
    "refine_gaussian",
    "refine_gaussians",
    "value_and_grad",
]

LogDensity = Callable[[Tensor], Tensor]


def points_at_once(dim: int) -> int:
    """How many points of that many dimensions a model is given at once: a batched matrix is large beside its points."""
    return max(100, 50_000 // dim)


def value_and_grad(log_density: LogDensity, x: Tensor) -> tuple[Tensor, Tensor]:
    """The log density and its gradient at each of a batch of points ``(S, d)``."""
    values, grads = [], []
    for part in x.detach().split(points_at_once(x.shape[-1])):
        with torch.enable_grad():
            part = part.clone().requires_grad_()
            value = log_density(part)
            # A density that is flat in all of the latents, or computed outside of PyTorch, has no graph.
            grad = torch.autograd.grad(value.sum(), part)[0] if value.requires_grad else torch.zeros_like(part)
        values.append(value.detach())
        grads.append(grad)
    return torch.cat(values), torch.cat(grads)


def exact_derivatives(log_density: LogDensity, x: Tensor, chunk: int = 64) -> tuple[Tensor, Tensor, Tensor] | None:
    """Value, gradient and Hessian at each of a few points.

    Args:
        log_density: of points ``(S, d) → (S,)``, differentiable.
        x: shape ``(K, d)``.
        chunk: about so many points are evaluated in one pass.

    Returns:
        Shapes ``(K,)``, ``(K, d)`` and ``(K, d, d)``; ``None`` where the density can't be differentiated twice.
    """
    number, dim = x.shape
    rows = []
    first: tuple[Tensor, Tensor] | tuple[()] = ()
    for part in torch.eye(dim, dtype=x.dtype).split(max(1, chunk // number)):
        points = x.detach()[:, None].expand(number, len(part), dim).reshape(-1, dim).clone().requires_grad_()
        try:
            with torch.enable_grad():
                value = log_density(points)
                (grad,) = torch.autograd.grad(value.sum(), points, create_graph=True)
                if not grad.requires_grad:
                    return None  # a custom function's backward pass may hide its own derivative
                (row,) = torch.autograd.grad((grad * part.repeat(number, 1)).sum(), points)
        except (RuntimeError, NotImplementedError):
            return None
        rows.append(row.detach().reshape(number, len(part), dim))
        first = first or (value.detach()[:: len(part)], grad.detach()[:: len(part)])
    hessian = torch.cat(rows, 1)
    return *first, 0.5 * (hessian + hessian.mT)


def antithetic_normal(num_draws: int, dim: int, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal draws in pairs ``z, −z``: shape ``(2⌈num_draws/2⌉, d)``, float64."""
    half = torch.randn((num_draws + 1) // 2, dim, dtype=torch.float64, generator=generator)
    return torch.cat([half, -half])


def refine_gaussian(
    log_density: LogDensity,
    loc: Tensor,
    tril: Tensor,
    num_iterations: int = 6,
    rate: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor] | None:
    """One Gaussian by the steps of :func:`refine_gaussians`.

    Args:
        log_density: of unconstrained points ``(S, d) → (S,)``, differentiable.
        loc: shape ``(d,)``, float64.
        tril: Cholesky factor, shape ``(d, d)``, float64.
        num_iterations: each takes ``max(64, 4(d + 1))`` gradients.
        rate: share of each Newton step that is taken.
        generator: source of the draws.

    Returns:
        A location and a Cholesky factor, or ``None`` if the scores were not finite.
    """
    return refine_gaussians(log_density, [(loc, tril)], [rate], num_iterations, generator)[0]


def refine_gaussians(
    log_density: LogDensity,
    gaussians: Sequence[tuple[Tensor, Tensor]],
    rates: Sequence[float],
    num_iterations: int = 6,
    generator: torch.Generator | None = None,
) -> list[tuple[Tensor, Tensor] | None]:
    r"""Move each ``N(loc, L Lᵀ)`` towards the Gaussian of the highest ELBO; one pass evaluates the draws of all.

    There ``E[∇log p] = 0`` and ``Σ⁻¹ = −E[∇² log p]`` (Opper and Archambeau 2009). In the coordinates
    ``x = loc + L z`` a linear regression of the scores on the noise, ``Lᵀ∇log p(loc + L z) ≈ b − A z``, estimates both
    expectations; it is exact where the target is Gaussian, however few the draws. Each iteration is a damped Newton
    step, whose length in standard deviations and change of scale are bounded.

    Args:
        log_density: of unconstrained points ``(S, d) → (S,)``, differentiable.
        gaussians: locations ``(d,)`` and Cholesky factors ``(d, d)``, float64.
        rates: the share of each Newton step that is taken, for every Gaussian.
        num_iterations: each takes ``max(64, 4(d + 1))`` gradients of every Gaussian.
        generator: source of the draws.

    Returns:
        For each a location and a Cholesky factor, or ``None`` if its scores were not finite.
    """
    found: list[tuple[Tensor, Tensor] | None] = list(gaussians)
    for _ in range(num_iterations):
        moving = [(index, *gaussian) for index, gaussian in enumerate(found) if gaussian is not None]
        if not moving:
            break
        noises = [_regressors(len(loc), generator) for _, loc, _ in moving]
        points = [loc + noise @ tril.T for noise, (_, loc, tril) in zip(noises, moving, strict=True)]
        grads = list(value_and_grad(log_density, torch.cat(points))[1].split([len(noise) for noise in noises]))
        del points
        for index, loc, tril in moving:
            # With hundreds of dimensions, each of these is as large as the model's whole memory.
            score, noise = grads.pop(0) @ tril, noises.pop(0)
            moved = _newton_step(loc, tril, noise, score, rates[index])
            found[index] = None if moved is None else moved[:2]
    return found


def polish_gaussian(
    log_density: LogDensity,
    loc: Tensor,
    tril: Tensor,
    max_iterations: int,
    generator: torch.Generator | None = None,
    kl: float = 0.0,
) -> tuple[Tensor, Tensor] | None:
    r"""Steps of decreasing length from near the Gaussian of the highest ELBO, over which their noise averages out.

    The steps are those of :func:`refine_gaussians`. With a residual of ``r`` a coordinate, ``n`` draws leave a variance
    of ``r²/n`` in each coefficient of the regression, hence a divergence of about ``(d/2 + d²/4) r²/n``. It ends where
    this is below 0.0005 nats and four standard deviations in one coordinate of the mean are below 0.016, or where it is
    a hundredth of what the best Gaussian has to gain.

    Args:
        log_density: of unconstrained points ``(S, d) → (S,)``, differentiable.
        loc: shape ``(d,)``, float64.
        tril: Cholesky factor, shape ``(d, d)``, float64.
        max_iterations: each takes ``max(64, 4(d + 1))`` gradients.
        generator: source of the draws.
        kl: nats that a Gaussian has to gain in any case, about.

    Returns:
        A location and a Cholesky factor, or ``None`` if the scores were not finite.
    """
    dim = len(loc)
    coefficients = dim / 2 + dim**2 / 4
    enough = max(min(1.6e-5, 5e-4 / coefficients), 0.01 * kl / coefficients)
    num_draws = 0
    for iteration in range(max_iterations):
        noise = _regressors(dim, generator)
        score = value_and_grad(log_density, loc + noise @ tril.T)[1] @ tril
        moved = _newton_step(loc, tril, noise, score, 2.0 / (iteration + 2))
        if moved is None:
            return None
        loc, tril, residual = moved
        num_draws += len(noise)
        # The shares 2/(i + 2) weigh the steps by their number, which is worth three quarters of an even average.
        if iteration >= 5 and residual**2 < enough * 0.75 * num_draws:
            break
    return loc, tril


def _regressors(dim: int, generator: torch.Generator | None) -> Tensor:
    return antithetic_normal(max(64, 4 * (dim + 1)), dim, generator)


def _newton_step(
    loc: Tensor, tril: Tensor, noise: Tensor, score: Tensor, share: float
) -> tuple[Tensor, Tensor, float] | None:
    """A share of the Newton step from scores ``Lᵀ∇log p`` at ``loc + L noise``; and the size of their residuals."""
    dim = len(loc)
    good = torch.isfinite(score).all(-1)
    if int(good.sum()) < 2 * (dim + 1):
        return None
    if not bool(good.all()):
        noise, score = noise[good], score[good]
    # Single draws in a far tail must not decide: scores of the optimum have the length of the noise, √d.
    size = torch.linalg.vector_norm(score, dim=-1)
    limit = 5 * size.median().clamp(min=dim**0.5)
    score *= (limit / size.clamp(min=1e-300)).clamp(max=1.0)[:, None]
    # Normal equations of the design (1, noise).
    gram, cross = loc.new_empty(dim + 1, dim + 1), loc.new_empty(dim + 1, dim)
    gram[0, 0], gram[0, 1:], cross[0] = len(noise), noise.sum(0), score.sum(0)
    gram[1:, 0], gram[1:, 1:], cross[1:] = gram[0, 1:], noise.T @ noise, noise.T @ score
    coefficients = torch.linalg.solve(gram, cross)
    b, a = coefficients[0], -coefficients[1:]
    if not bool(torch.isfinite(coefficients).all()):
        return None
    values, vectors = torch.linalg.eigh(0.5 * (a + a.T))
    values = values.clamp(min=0.25)
    step = vectors @ ((vectors.T @ b) / values)
    # How far the linear fit can be trusted: without bound where the scores are linear.
    residual = score.sub_(b).add_(noise @ a).square_().mean().sqrt()
    linear = (noise @ a.T).square_().mean().sqrt()
    radius = dim**0.5 * max(1.0, 0.5 * float(linear / residual.clamp(min=1e-300)))
    step = step * min(1.0, radius / float(step.norm().clamp(min=1e-300)))
    loc = loc + share * tril @ step
    # exp of −½ share log A: symmetric in the coordinates of the noise.
    root = (vectors * values.clamp(max=4.0).pow(-0.5 * share)) @ vectors.T
    tril = _lower(tril @ root)
    if not bool(torch.isfinite(tril).all() and torch.isfinite(loc).all()):
        return None
    return loc, tril, float(residual)


def _lower(factor: Tensor) -> Tensor:
    """The Cholesky factor of ``F Fᵀ``, by a QR decomposition, which keeps the accuracy of ``F``."""
    r = torch.linalg.qr(factor.T).R
    return r.T * r.diagonal().sign()
