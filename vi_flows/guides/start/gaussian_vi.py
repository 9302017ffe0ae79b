"""Full-rank Gaussian approximations by natural gradients, for the start of a flow guide."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["antithetic_normal", "exact_hessian", "points_at_once", "refine_gaussian", "value_and_grad"]

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


def exact_hessian(log_density: LogDensity, x: Tensor, chunk: int = 64) -> Tensor | None:
    """The Hessian at one point ``(d,)``; ``None`` where the density can't be differentiated twice."""
    dim = x.numel()
    rows = []
    for part in torch.eye(dim, dtype=x.dtype).split(chunk):
        points = x.detach().expand(len(part), dim).clone().requires_grad_()
        try:
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(log_density(points).sum(), points, create_graph=True)
                if not grad.requires_grad:
                    return None  # a custom function's backward pass may hide its own derivative
                (row,) = torch.autograd.grad((grad * part).sum(), points)
        except (RuntimeError, NotImplementedError):
            return None
        rows.append(row.detach())
    hessian = torch.cat(rows)
    return 0.5 * (hessian + hessian.T)


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
    shrink: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor] | None:
    r"""Move ``N(loc, L Lᵀ)`` towards the Gaussian of the highest ELBO.

    There ``E[∇log p] = 0`` and ``Σ⁻¹ = −E[∇² log p]`` (Opper and Archambeau 2009). In the coordinates
    ``x = loc + L z`` a linear regression of the scores on the noise, ``Lᵀ∇log p(loc + L z) ≈ b − A z``, estimates both
    expectations; it is exact where the target is Gaussian, however few the draws. Each iteration is a damped Newton
    step, whose length in standard deviations and change of scale are bounded.

    Args:
        log_density: of unconstrained points ``(S, d) → (S,)``, differentiable.
        loc: shape ``(d,)``, float64.
        tril: Cholesky factor, shape ``(d, d)``, float64.
        num_iterations: each takes ``max(64, 4(d + 1))`` gradients.
        rate: share of each Newton step that is taken.
        shrink: steps of decreasing length, so that the noise of the regressions averages out.
        generator: source of the draws.

    Returns:
        A location and a Cholesky factor, or ``None`` if the scores were not finite.
    """
    dim = loc.numel()
    num_draws = max(64, 4 * (dim + 1))
    for iteration in range(num_iterations):
        noise = antithetic_normal(num_draws, dim, generator)
        _, grad = value_and_grad(log_density, loc + noise @ tril.T)
        score = grad @ tril
        del grad  # with hundreds of dimensions, each of these is as large as the model's whole memory
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
        share = rate * 2.0 / (iteration + 2) if shrink else rate
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
    return loc, tril


def _lower(factor: Tensor) -> Tensor:
    """The Cholesky factor of ``F Fᵀ``, by a QR decomposition, which keeps the accuracy of ``F``."""
    r = torch.linalg.qr(factor.T).R
    return r.T * r.diagonal().sign()
