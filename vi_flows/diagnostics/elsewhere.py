"""Is there mass that no draw of a guide reached? Paths to the modes from far outside of the guide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from vi_flows.guides.start.ascent import ascend, overdispersed, where_defined
from vi_flows.guides.start.climbing import climb
from vi_flows.guides.start.newton import inverse_curvature

__all__ = ["MAX_DIM", "Missed", "missed_mass"]

LogDensity = Callable[[Tensor], Tensor]

MISSED_RATIO = 10.0
"""A place is missed where the posterior's density is this many times the guide's, or more."""

MAX_MODES = 10
"""How many ends of paths, and tops that they lead to, are looked at."""

LONGEST = 1 / 3
"""Of a path's step, as a share of its distance from the guide: a mode is passed at a third of its distance at most."""

DISPLACED = 0.01
"""Spreads of a mode, by which a point is displaced: a density changes little, a rounding error by its whole size."""

MAX_DIM = 200
"""No Hessians beyond: nothing is looked for."""


@dataclass(frozen=True)
class Missed:
    """A mode that the guide does not reach.

    Attributes:
        share: of the posterior's mass that lies around it, estimated, out of all that is known.
        distance: from the guide's mean, in the guide's standard deviations (Mahalanobis).
        latent: the mode, unconstrained, shape ``(d,)``.
    """

    share: float
    distance: float
    latent: Tensor


def missed_mass(
    log_density: LogDensity,
    log_q: LogDensity,
    x: Tensor,
    log_evidence: float,
    num_paths: int = 100,
    num_draws: int = 500,
    seed: int = 0,
    hints: Sequence[Tensor] = (),
) -> Missed | None:
    r"""Climb to modes from places far outside of the guide, and weigh what lies around those that it misses.

    In coordinates where the guide has mean 0 and covariance ``I``, paths set out from 3, 10, 30 and 100 times standard
    normal draws and their mirror images, near the origin of the unconstrained space, and from the mirror image of the
    guide's mean in that origin; they climb side by side, one pass of the model a step. Where one ends with a posterior
    density above ten times the guide's, a multivariate t (5 degrees of freedom) with the curvature there gives draws
    whose weights sum to the mass in places of that kind; it is no wider than the mode is far away, for the guide's own
    draws see what is wider. (So a plateau does not count for all of its width where the map of a support has run out
    of numbers, as that of a simplex has where an entry is 10⁻³⁸.) A unimodal posterior costs the paths alone. Far out
    a density may be all rounding error (a covariance that is singular to the last digit): of each place and of three
    right beside it the lowest density counts.

    Args:
        log_density: the joint density of unconstrained points ``(S, d) → (S,)``.
        log_q: the guide's, likewise.
        x: draws of the guide, ``(S, d)``.
        log_evidence: as the guide's own draws have it.
        num_paths: paths; rounded up to a multiple of ten.
        num_draws: of each t.
        seed: of the starts and the draws.
        hints: points ``(d,)`` that paths set out from as well, such as the draws of the largest weights, which may lie
            on the flank of a mode that is too narrow for others to meet it.

    Returns:
        The mode of most mass among those that are missed, or ``None``.
    """
    dim, log_density = x.shape[-1], where_defined(log_density)
    if dim > MAX_DIM or num_paths < 1:
        return None
    generator = torch.Generator().manual_seed(seed)
    draws = x.double().cpu()
    center = draws.mean(0)
    root, info = torch.linalg.cholesky_ex((draws - center).T @ (draws - center) / len(draws))
    if int(info) != 0:
        root = torch.diag(draws.std(0).clamp(min=1e-12))

    def whole(fn: LogDensity, u: Tensor) -> Tensor:
        return fn((center + u @ root.T).to(x)).double().cpu()

    def excess(u: Tensor) -> Tensor:
        """``log`` of the posterior's density over the guide's."""
        with torch.no_grad():
            return (whole(log_density, u) - log_evidence - whole(log_q, u)).nan_to_num(nan=-torch.inf)

    best: Missed | None = None
    starts = overdispersed(dim, num_paths, center, root, generator)
    if len(hints):
        places = torch.stack([hint.double().cpu() for hint in hints])
        starts = torch.cat([starts, torch.linalg.solve_triangular(root, (places - center).T, upper=False).T])
    ends = ascend(lambda u: whole(log_density, u), starts, longest=LONGEST)
    missed = excess(ends) > torch.tensor(MISSED_RATIO).log()
    seen: list[Tensor] = []
    for end in ends[missed]:
        if len(seen) >= MAX_MODES:
            break
        if any(float((end - other).norm()) < 0.5 for other in seen):
            continue
        path = climb(lambda u: whole(log_density, u), end, 200)
        if not path:
            continue
        top = torch.as_tensor(path[-1][0])
        seen.append(end)
        if any(float((top - other).norm()) < 0.1 for other in seen[:-1]):
            continue
        seen.append(top)
        covariance = inverse_curvature(lambda u: whole(log_density, u), top, 1e-10)
        tril = None if covariance is None else _within(covariance, max(1.0, float(top.norm())))
        if tril is None:
            continue

        def lowest(u: Tensor, tril: Tensor = tril) -> Tensor:
            noise = torch.randn(3, *u.shape, dtype=u.dtype, generator=generator)
            points = torch.cat([u[None], u + DISPLACED * noise @ tril.T])
            return whole(log_density, points.flatten(0, 1)).nan_to_num(nan=-torch.inf).reshape(4, -1).amin(0)

        if bool(lowest(top[None]) - log_evidence - whole(log_q, top[None]) < torch.tensor(MISSED_RATIO).log()):
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            around = dist.MultivariateStudentT(torch.tensor(5.0).double(), top, tril)
            u = around.sample((num_draws,))
        with torch.no_grad():
            density = lowest(u) - log_evidence
            weight = density - around.log_prob(u) + _log_det(root)
            missed = density - whole(log_q, u) > torch.tensor(MISSED_RATIO).log()
        mass = float(torch.where(missed & weight.isfinite(), weight.exp(), 0.0).mean())
        share = 1.0 if mass == float("inf") else mass / (1 + mass)
        if best is None or share > best.share:
            best = Missed(share, float(top.norm()), center + root @ top)
    return best


def _within(covariance: Tensor, distance: float) -> Tensor | None:
    """The Cholesky factor of a covariance with ``1 / distance²`` added to its inverse; ``None`` where it has none."""
    root, info = torch.linalg.cholesky_ex(covariance)
    if int(info) != 0:
        return None
    precision = torch.cholesky_inverse(root)
    precision.diagonal().add_(distance**-2)
    root, info = torch.linalg.cholesky_ex(precision)
    return torch.linalg.cholesky_ex(torch.cholesky_inverse(root))[0] if int(info) == 0 else None


def _log_det(root: Tensor) -> Tensor:
    return root.diagonal().log().sum()
