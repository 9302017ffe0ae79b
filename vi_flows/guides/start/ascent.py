"""Paths from far outside up to the modes of a density, side by side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vi_flows.guides.start.gaussian_vi import value_and_grad

__all__ = ["AROUND", "FAR", "LONGEST", "ascend", "between", "overdispersed", "scaled_normal", "where_defined"]

LogDensity = Callable[[Tensor], Tensor]

FAR = (1.0, 100.0)
"""How many times the known spread the starts have: every scale between these, evenly by its logarithm."""

AROUND = (0.5, 5.0)
"""Likewise, of the spread that several known modes have together."""

LONGEST = 0.2
"""Of a path's step, as a share of its distance from the middle: a longer one jumps over modes on its way."""


def where_defined(log_density: LogDensity) -> LogDensity:
    """The density with −∞ where the model can't be evaluated: far out a matrix of its may have no Cholesky factor.

    Neither is ``+∞`` or NaN a density: numbers that underflow give them far out, and the one would outweigh all else.
    """

    def evaluate(points: Tensor) -> Tensor:
        try:
            value = log_density(points)
            return torch.where(value < torch.inf, value, -torch.inf)
        except (RuntimeError, ValueError):  # LinAlgError is a RuntimeError
            if len(points) <= 1:
                return points.sum(-1) * 0.0 - torch.inf
            return torch.cat([evaluate(half) for half in points.tensor_split(2)])

    return evaluate


def overdispersed(dim: int, number: int, center: Tensor, root: Tensor, generator: torch.Generator) -> Tensor:
    """Starts in coordinates ``u`` with ``x = center + root u``.

    They are standard normal draws times 1 to 100 and their mirror images, points near the origin of the unconstrained
    space, and the mirror image of ``center`` in that origin. A mode narrower than the known one draws paths from a
    place of its own size alone, so that scales with gaps between them would pass by it.

    Args:
        dim: ``d``.
        number: of starts, rounded up to a multiple of ten; one more comes with the mirror image.
        center: shape ``(d,)``.
        root: lower triangular, shape ``(d, d)``.
        generator: source of the draws.
    """
    each = (number + 9) // 10
    far = scaled_normal(4 * each, dim, FAR, generator)
    near = 4 * torch.rand(2 * each, dim, dtype=torch.float64, generator=generator) - 2
    # Models that don't know a sign have their other mode at the mirror image.
    places = torch.cat([near, -center[None]])
    return torch.cat([far, -far, torch.linalg.solve_triangular(root, (places - center).T, upper=False).T])


def between(tops: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Starts where known modes lie, and around all of them: others are seen from there that are not from far outside.

    Args:
        tops: shape ``(K, d)``.
        number: of starts.
        generator: source of the draws.
    """
    dim = tops.shape[-1]
    away = tops - tops.mean(0)
    # With fewer modes than dimensions, the directions that they leave out get the mean spread.
    covariance = away.T @ away / len(tops) + away.square().sum() / len(tops) / dim * torch.eye(dim, dtype=tops.dtype)
    return tops.mean(0) + scaled_normal(number, dim, AROUND, generator) @ torch.linalg.cholesky(covariance).T


def scaled_normal(number: int, dim: int, scales: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Standard normal draws, each times a scale of its own, evenly by its logarithm.

    Args:
        number: of draws.
        dim: ``d``.
        scales: the least and the largest.
        generator: source of the draws.
    """
    noise = torch.randn(number, dim, dtype=torch.float64, generator=generator)
    share = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    return scales[0] * (scales[1] / scales[0]) ** share[:, None] * noise


def _nowhere(u: Tensor, value: Tensor) -> Tensor:
    return torch.zeros_like(value, dtype=torch.bool)


def ascend(
    log_density: LogDensity,
    u: Tensor,
    num_steps: int = 60,
    longest: float = LONGEST,
    arrived: Callable[[Tensor, Tensor], Tensor] = _nowhere,
) -> Tensor:
    """All paths at once: gradient steps with the lengths of Barzilai and Borwein (1988), halved where they descend.

    Where the density has no gradient there is no path, and the start is the end.

    Args:
        log_density: of points ``(S, d)``.
        u: the starts, around the origin, in coordinates where what is known has a spread of one.
        num_steps: of each path.
        longest: step, as a multiple of the distance from the origin.
        arrived: of points ``(S, d)`` and their values ``(S,)``, which paths have gone far enough and take part in no
            more passes, ``(S,)``.
    """
    value, grad = value_and_grad(log_density, u)
    # The rest would take part in every pass; and where the model can't be evaluated, that takes several of them.
    ends, alive = u.clone(), (grad.nan_to_num(0.0, 0.0, 0.0) != 0).any(-1)
    index = alive.nonzero().flatten()
    u, value, grad = u[alive], value[alive], grad[alive]
    length = u.norm(dim=-1).clamp(min=1.0) / grad.norm(dim=-1).clamp(min=1e-12) / 10
    for _ in range(num_steps):
        if bool((going := ~arrived(u, value)).logical_not().any()):
            ends[index[~going]] = u[~going]
            index, u, value, grad, length = (part[going] for part in (index, u, value, grad, length))
        if not bool((grad.nan_to_num().norm(dim=-1) > 1e-2).any()):
            break
        step = (length[:, None] * grad).nan_to_num(0.0, 0.0, 0.0)
        # From far outside, a long step would jump over a mode of small width on its way.
        size = step.norm(dim=-1)
        step = step * (longest * u.norm(dim=-1).clamp(min=1.0) / size.clamp(min=1e-12)).clamp(max=1.0)[:, None]
        tried, slope = value_and_grad(log_density, u + step)
        good = (tried >= value) & slope.isfinite().all(-1)
        change = (step * (grad - slope)).sum(-1)
        longer = torch.where(change > 0, step.square().sum(-1) / change.clamp(min=1e-300), 2 * length)
        length = torch.where(good, longer, length / 4)
        u = torch.where(good[:, None], u + step, u)
        grad = torch.where(good[:, None], slope, grad)
        value = torch.where(good, tried, value)
    ends[index] = u
    return ends
