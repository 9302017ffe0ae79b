"""Is there mass that no draw of a guide reached? Paths to the modes from far outside of the guide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from vi_flows.guides.posterior import varies
from vi_flows.guides.start.ascent import AROUND, ascend, overdispersed, scaled_normal, where_defined
from vi_flows.guides.start.climbing import NEAR, climb
from vi_flows.guides.start.gaussian_vi import value_and_grad
from vi_flows.guides.start.newton import inverse_curvature

__all__ = ["MAX_DIM", "Missed", "missed_mass"]

LogDensity = Callable[[Tensor], Tensor]
Values = Mapping[str, Tensor]

MISSED_RATIO = 10.0
"""A place is missed where the posterior's density is this many times the guide's, or more."""

LOG_MISSED = math.log(MISSED_RATIO)

MAX_MODES = 12
"""How many modes are weighed."""

DF = 5.0
"""Degrees of freedom of a t around a mode."""

PROBES = 16
"""Directions, at most, in which the curvature at an end is looked at before it is climbed from."""

DISPLACED = 0.01
"""Spreads of a mode, by which a point is displaced: a density changes little, a rounding error by its whole size."""

MAX_DIM = 200
"""No Hessians beyond: nothing is looked for."""


@dataclass(frozen=True)
class Missed:
    """The heaviest mode that the guide does not reach, and how many there are.

    Attributes:
        share: of the posterior's mass that lies around it, estimated, out of all that is known.
        number: of modes that the guide does not reach, of those that were looked at.
        together: the share of all of them.
        distance: from the guide's mean, in the guide's standard deviations (Mahalanobis).
        latent: the mode, unconstrained, shape ``(d,)``.
        latents: points around all of them, unconstrained, shape ``(N, d)``.
        masses: of these points, where the guide's draws have 1 together, shape ``(N,)``.
    """

    share: float
    number: int
    together: float
    distance: float
    latent: Tensor
    latents: Tensor
    masses: Tensor

    def moves(self, draws: Values, around: Values) -> dict[str, tuple[float, float]]:
        """What the missed mass does to means and spreads, by site.

        Args:
            draws: the guide's, of the sites' values, in double precision.
            around: values at :attr:`latents`.

        Returns:
            The largest move of a mean, in standard deviations of the draws, and the largest log ratio of the
            standard deviations, by size, over the coordinates of each site that vary.
        """
        total = 1 + self.masses.sum()
        found = {}
        for name, values in draws.items():
            free = varies(values)
            if not bool(free.any()):
                continue
            midst = values[:, free].median(0).values  # distances to a draw are exact
            here, there = (value[:, free] - midst for value in (values, around[name]))
            there = there.nan_to_num(0.0, 0.0, 0.0)  # beyond the largest number of its type: nobody knows how far
            mean, sd = here.mean(0), here.std(0, correction=0)
            added = self.masses @ there
            moved = (mean + added) / total
            variance = ((here - moved).square().mean(0) + self.masses @ (there - moved).square()) / total
            found[name] = float(((moved - mean) / sd).abs().max()), float((variance.sqrt() / sd).log().abs().max())
        return found


def missed_mass(
    log_density: LogDensity,
    log_q: LogDensity,
    x: Tensor,
    log_evidence: float,
    num_paths: int = 200,
    num_draws: int = 500,
    seed: int = 0,
    hints: Sequence[Tensor] = (),
) -> Missed | None:
    r"""Climb to modes from places far outside of the guide, and weigh what lies around those that it misses.

    In coordinates where the guide has mean 0 and covariance ``I``, paths set out from standard normal draws times 1 to
    100 and their mirror images, from others times 0.5 to 5 (a mode among those of a guide of several is not seen from
    far outside), near the origin of the unconstrained space, and from the mirror image of the guide's mean in that
    origin; they climb side by side, one pass of the model a step. Where one ends with a posterior
    density above ten times the guide's, a multivariate t (5 degrees of freedom) takes the curvature there. Draws of
    all such t, weighed by the mixture of them, sum to the mass in places of that kind. A t is no wider than the mode
    is far away, for the guide's own draws see what is wider. (So a plateau does not count for all of its width where
    the map of a support has run out of numbers, as that of a simplex has where an entry is 10⁻³⁸.) A unimodal
    posterior costs the paths alone. Far out a density may be all rounding error (a covariance that is singular to the
    last digit): of each place and of three right beside it the lowest density counts.

    Args:
        log_density: the joint density of unconstrained points ``(S, d) → (S,)``.
        log_q: the guide's, likewise.
        x: draws of the guide, ``(S, d)``.
        log_evidence: as the guide's own draws have it.
        num_paths: paths from far outside, rounded up to a multiple of ten; twice as many set out among and around the
            guide's draws, which end soon where the guide is right.
        num_draws: of each t.
        seed: of the starts and the draws.
        hints: points ``(d,)`` that paths set out from as well, such as the draws of the largest weights, which may lie
            on the flank of a mode that is too narrow for others to meet it.

    Returns:
        The mode of most mass among those that are missed, their number and what they have together, or ``None`` where
        there is none or none holds mass.
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

    far = overdispersed(dim, num_paths, center, root, generator)
    starts = torch.cat([far, scaled_normal(2 * num_paths, dim, AROUND, generator)])

    def reached(u: Tensor, value: Tensor) -> Tensor:
        """Among the guide's draws, where it is as dense as the posterior: such a path ends at no other mode."""
        inside = u.norm(dim=-1) < dim**0.5 + 1
        if bool(inside.any()):
            with torch.no_grad():
                inside[inside.clone()] = value[inside] - log_evidence - whole(log_q, u[inside]) <= LOG_MISSED
        return inside

    ends = ascend(lambda u: whole(log_density, u), starts, arrived=reached)
    if len(hints):
        places = torch.stack([hint.double().cpu() for hint in hints]) - center
        starts = torch.linalg.solve_triangular(root, places.T, upper=False).T
        ends = torch.cat([ends, ascend(lambda u: whole(log_density, u), starts)])
    ends = ends[excess(ends) > LOG_MISSED]
    if len(ends) == 0:
        return None

    def lowest(u: Tensor, tril: Tensor) -> Tensor:
        noise = torch.randn(3, *u.shape, dtype=u.dtype, generator=generator)
        points = torch.cat([u[None], u + DISPLACED * noise @ tril.T])
        return whole(log_density, points.flatten(0, 1)).nan_to_num(nan=-torch.inf).reshape(4, -1).amin(0)

    tops: list[Tensor] = []
    trils: list[Tensor] = []
    for top in _tops(lambda u: whole(log_density, u), ends):
        covariance = inverse_curvature(lambda u: whole(log_density, u), top, 1e-10)
        tril = None if covariance is None else _within(covariance, max(1.0, float(top.norm())))
        if tril is None or bool(lowest(top[None], tril) - log_evidence - whole(log_q, top[None]) < LOG_MISSED):
            continue
        tops.append(top)
        trils.append(tril)
    if not tops:
        return None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        df = torch.tensor(DF).double()
        around = [dist.MultivariateStudentT(df, top, tril) for top, tril in zip(tops, trils, strict=True)]
        u = torch.stack([one.sample((num_draws,)) for one in around], 1)  # (S, K, d)
        density = torch.stack([lowest(u[:, k], tril) for k, tril in enumerate(trils)], 1) - log_evidence
        missed = density - whole(log_q, u.flatten(0, 1)).reshape(density.shape) > LOG_MISSED
        # Of the mixture of all t's: a place that two of them reach counts once.
        log_t = _log_t(u.flatten(0, 1), torch.stack(tops), torch.stack(trils)).logsumexp(-1).reshape(density.shape)
        weight = density - log_t + _log_det(root)
    masses = torch.where(missed & weight.isfinite(), weight.exp(), 0.0) / num_draws
    mass, held = masses.sum(0), masses > 0
    if not bool(held.any()):  # tops alone stand out, and nothing around them
        return None
    shares = torch.where(mass < torch.inf, mass / (1 + mass.sum()), 1.0)
    together = float(shares.sum().clamp(max=1.0))
    best = int(mass.argmax())
    return Missed(
        float(shares[best]), len(tops), together, float(tops[best].norm()), center + root @ tops[best],
        center + u[held] @ root.T, masses[held],
    )  # fmt: skip


def _tops(density: LogDensity, ends: Tensor) -> list[Tensor]:
    """The modes that ends of paths lead to, those first that may hold most.

    Ends in the order of :func:`_log_masses` and in their own take turns: neither narrow peaks nor bumps far out nor a
    wrong estimate hides a mode.
    """
    turns = torch.stack([_log_masses(density, ends).argsort(descending=True), torch.arange(len(ends))], 1).flatten()
    seen: list[Tensor] = []
    tops: list[Tensor] = []
    for end in ends[list(dict.fromkeys(turns.tolist()))]:
        if len(tops) >= MAX_MODES:
            break
        if any(float((end - other).norm()) < 0.5 for other in seen):
            continue
        path = climb(density, end, 200, NEAR)
        if not path:
            continue
        top = torch.as_tensor(path[-1][0])
        if not any(float((top - other).norm()) < 0.1 for other in seen):
            tops.append(top)
        seen.extend([end, top])
    return tops


def _log_masses(density: LogDensity, ends: Tensor) -> Tensor:
    """Laplace's, up to a constant: ``log p(x) − ½ log det(−H)``, no wider than the end is far away.

    Beyond :data:`PROBES` dimensions the curvature in so many directions, orthonormal ones at random, stands for all.
    """
    dim = ends.shape[-1]
    number = min(dim, PROBES)
    noise = torch.randn(dim, number, dtype=ends.dtype, generator=torch.Generator().manual_seed(0))
    probes = torch.linalg.qr(noise).Q.T
    places = torch.stack([ends[:, None] + 1e-3 * probes, ends[:, None] - 1e-3 * probes])
    grad = value_and_grad(density, places.flatten(0, 2))[1].reshape(places.shape)
    curvature = (probes @ (grad[1] - grad[0]).mT / 2e-3).nan_to_num(0.0, 0.0, 0.0)
    values = torch.linalg.eigvalsh(0.5 * (curvature + curvature.mT))
    values = torch.maximum(values, ends.norm(dim=-1, keepdim=True).clamp(min=1.0) ** -2)
    with torch.no_grad():
        return density(ends) - 0.5 * dim / number * values.log().sum(-1)


def _log_t(u: Tensor, centers: Tensor, scales: Tensor) -> Tensor:
    """Of points ``(N, d)`` by each t, ``(N, K)``; Pyro's ``log_prob`` copies a factor for every point."""
    dim = u.shape[-1]
    y = torch.linalg.solve_triangular(scales, (u - centers[:, None]).mT, upper=False)
    constant = math.lgamma(0.5 * (DF + dim)) - math.lgamma(0.5 * DF) - 0.5 * dim * math.log(DF * math.pi)
    log_det = scales.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
    return (constant - log_det - 0.5 * (DF + dim) * (y.square().sum(1) / DF).log1p()).T


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
