"""What short chains of the posterior do to a guide's draws: a check that needs no weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vi_flows.guides.posterior import varies
from vi_flows.guides.start.ascent import where_defined
from vi_flows.guides.start.gaussian_vi import value_and_grad

__all__ = ["Moved", "moved_by_chains"]

LogDensity = Callable[[Tensor], Tensor]

NOISE = 3.0
"""Standard errors by which a move must exceed what is allowed."""


@dataclass(frozen=True)
class Moved:
    """How far short chains that start at a guide's draws move means and spreads, at least.

    Attributes:
        shift: of a mean, in standard deviations of the draws: the largest over all coordinates, three standard errors
            taken off.
        stretch: of a standard deviation, as the size of the log of its ratio, likewise.
        where: the site that moves the furthest in units of its standard error.
        acceptance: mean acceptance probability of the chains.
        num_transitions: how long they were.
        memory: the largest correlation, over all coordinates, between where a chain began and where it ended.
    """

    shift: float
    stretch: float
    where: str
    acceptance: float
    num_transitions: int = 8
    memory: float = 1.0


def moved_by_chains(
    log_density: LogDensity,
    x: Tensor,
    constrain: Callable[[Tensor], Mapping[str, Tensor]],
    num_transitions: int = 8,
    num_leapfrog: int = 4,
    num_discarded: int = 0,
    seed: int = 0,
) -> Moved | None:
    r"""Hamiltonian chains of the posterior, one from each draw, and what they do to means and spreads.

    A kernel that leaves the posterior ``p`` invariant brings any law nearer to it; the guide's draws keep their moments
    under it if they are those of ``p``. Importance weights tell nothing of places that no draw reached, and little
    where their tail is heavy; chains walk there. Each chain is its own pair: ``δᵢ`` is the mean of ``f`` along it less
    ``f`` at its start, and the mean of ``δᵢ`` has a standard error from their spread, whatever their law. What it takes
    longer to move than these few steps stays unseen: other modes, long valleys.

    Trajectories are in coordinates where the draws have mean 0 and covariance ``I``; the step is halved until at least
    60 % are accepted.

    Args:
        log_density: the joint density of unconstrained points ``(S, d) → (S,)``, differentiable.
        x: draws of the guide, ``(S, d)``.
        constrain: from unconstrained points to the sites' values, draws first.
        num_transitions: of each chain.
        num_leapfrog: steps of a transition.
        num_discarded: transitions at the beginning of a chain that its mean leaves out.
        seed: of the momenta.

    Returns:
        The moves, or ``None`` where the draws have no spread or no step is accepted.
    """
    generator = torch.Generator().manual_seed(seed)
    start = x.double().cpu()
    center, dim = start.mean(0), x.shape[-1]
    root, info = torch.linalg.cholesky_ex((start - center).T @ (start - center) / len(start))
    if int(info) != 0:
        return None
    defined = where_defined(log_density)

    def whole(u: Tensor) -> Tensor:
        return defined((center + u @ root.T).to(x)).double().cpu()

    u = torch.linalg.solve_triangular(root, (start - center).T, upper=False).T
    value, grad = value_and_grad(whole, u)
    finite = value.isfinite() & grad.isfinite().all(-1)
    if int(finite.sum()) < 20:
        return None
    u, value, grad = u[finite], value[finite], grad[finite]
    step, accepted, kept, positions = 0.9 * dim**-0.25, 0.0, 0, []
    first = _flat(constrain((center + u @ root.T).to(x)))
    while kept < num_transitions:
        momentum = torch.randn(u.shape, dtype=torch.float64, generator=generator)
        # Steps of random length, so that no trajectory goes round in a circle.
        length = step * (0.6 + 0.4 * float(torch.rand((), generator=generator)))
        new, p, new_grad, new_value = u, momentum, grad, value
        for _ in range(num_leapfrog):
            p = p + 0.5 * length * new_grad
            new = new + length * p
            new_value, new_grad = value_and_grad(whole, new)
            p = p + 0.5 * length * new_grad
        change = new_value - value - 0.5 * p.square().sum(-1) + 0.5 * momentum.square().sum(-1)
        change = torch.where(change.isfinite() & new_grad.isfinite().all(-1), change, -torch.inf)
        rate = float(change.clamp(max=0.0).exp().mean())
        if kept == 0 and rate < 0.6 and step > 1e-3:
            step = step / 2
            continue
        good = change > torch.rand(len(u), dtype=torch.float64, generator=generator).log()
        u = torch.where(good[:, None], new, u)
        value, grad = torch.where(good, new_value, value), torch.where(good[:, None], new_grad, grad)
        accepted, kept = accepted + rate / num_transitions, kept + 1
        positions.append(_flat(constrain((center + u @ root.T).to(x))))
    if accepted <= 0.1:
        return None
    return replace(_moves(first, positions[num_discarded:], accepted), num_transitions=num_transitions)


def _flat(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double().cpu().reshape(len(value), -1) for name, value in values.items() if value.numel()}


def _moves(first: Mapping[str, Tensor], positions: list[dict[str, Tensor]], acceptance: float) -> Moved:
    shift, stretch, most, memory, where = 0.0, 0.0, 0.0, 0.0, ""
    for name, start in first.items():
        midst = start.median(0).values  # distances to a draw are exact, sums of numbers far from zero are rounded
        value = start - midst
        mean = value.mean(0)
        square = (value - mean).square()
        variance = square.mean(0).clamp(min=1e-300)
        later = torch.stack([position[name] - midst for position in positions])
        moved = (later.mean(0) - value) / variance.sqrt()
        grown = ((later - mean).square().mean(0) - square) / variance
        free = varies(value)
        count = len(value) ** 0.5
        far, far_se = moved.mean(0)[free], moved.std(0)[free] / count
        wide, wide_se = grown.mean(0)[free] - far.square(), grown.std(0)[free] / count
        if len(far) == 0:
            continue
        end = later[-1] - later[-1].mean(0)
        shared = ((value - mean) * end).mean(0)[free] / (variance[free] * end.square().mean(0)[free]).sqrt()
        memory = max(memory, float(shared.nan_to_num(1.0).max()))
        shift = max(shift, float((far.abs() - NOISE * far_se).max()))
        log_ratio = 0.5 * torch.log1p(torch.maximum(wide, torch.full_like(wide, -0.99)))
        log_se = 0.5 * wide_se / (1 + wide).clamp(min=0.01)
        stretch = max(stretch, float((log_ratio.abs() - NOISE * log_se).max()))
        size = float(torch.maximum(far.abs() / far_se, wide.abs() / wide_se).nan_to_num().max())
        if size > most:
            most, where = size, name
    return Moved(max(shift, 0.0), max(stretch, 0.0), where, acceptance, len(positions), memory)
