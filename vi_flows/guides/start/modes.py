"""A mixture of Gaussians over the modes of a density, where there are several."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vi_flows.guides.remaining import remaining_kl
from vi_flows.guides.start.ascent import ascend, between, overdispersed, where_defined
from vi_flows.guides.start.climbing import NEAR, climb, climb_all
from vi_flows.guides.start.gaussian_vi import antithetic_normal, points_at_once, refine_gaussian
from vi_flows.guides.start.gaussians import GaussianStart
from vi_flows.guides.start.mixture import MixtureStart
from vi_flows.guides.start.newton import inverse_curvatures
from vi_flows.guides.start.pathfinder import NEAR_KL

__all__ = ["mixture_start"]

LogDensity = Callable[[Tensor], Tensor]

MAX_DIM = 200
"""No Hessians beyond: one Gaussian is all there is."""

NUM_PATHS = 400
"""From far outside, at first; the centre's mirror image starts one more."""

MORE_PATHS = (200, 400, 640)
"""Then, as long as they find modes that are not known yet: those of a ring are a continuum, and each look at the ends
of paths stops where some in a row are known."""

ENDS_AT_ONCE = 100
"""Of the first paths: where some in a row are known a look at ends stops, and those of one mode crowd in front."""

MAX_MODES = 64
"""Components at most."""

BESIDE = 1e-3
"""Standard deviations from a middle without a gradient to where a climb from it sets out, in a direction that no
symmetry of the axes leaves as it is."""

VALLEY = 1.0
"""Nats: two modes are apart where the density falls that far between them, on the straight line."""

DENT = 0.03
"""Nats: and where modes are apart, a place counts as one more from that fall on: a bent ridge is covered by pieces."""

PATIENCE = 3
"""So many climbs in a row that end at modes which are known are enough."""

NEAREST = 4
"""So many of the known modes an end is looked at from."""

MOST_CLIMBS = 8
"""Side by side, where nearly every one finds a mode."""

FEW = 8
"""Up to so many components are refined by natural gradients before the fit."""

SMALL = 0.01
"""A mode with that share of the heaviest one's mass is left out."""

RISE = 0.005
"""Nats: a mixture whose ELBO is not higher by so much is not worth its components."""

WAY_POINTS = 32
"""Between two places, where the density is looked at."""

MOST_POINTS = 4000
"""Of such ways, at once."""

MISSED_RATIO = 10.0
"""A place is missed where the density is this many times that of the Gaussian, or more."""


def mixture_start(log_density: LogDensity, start: GaussianStart, generator: torch.Generator) -> MixtureStart | None:
    r"""Gaussians at all modes that paths from far outside find, where these are several.

    Several paths from overdispersed starts, as in multi-path Pathfinder (Zhang, Carpenter, Gelman and Vehtari 2022):
    400 that set out from far outside of the Gaussian at hand climb side by side. Ends that are one mode with what is
    known already are dropped; two modes are apart where on the straight line between them the density falls by at least
    a nat. A posterior of one mode costs these paths, and there is no mixture. Where there are more modes, more and more
    paths are sent until they find no other, and every mode gets a Gaussian with the curvature there, narrower than the
    way to its neighbour, and the weight of the highest ELBO.

    Each of a few components then moves by natural gradients towards ``log p(x) + log r_k(x)`` with its responsibilities
    ``r_k`` (Arenz, Zhong and Neumann 2018), which raises the mixture's ELBO. The mixture is taken where its ELBO is
    above that of the Gaussian.

    Args:
        log_density: unnormalised log density of unconstrained points ``(S, d) → (S,)``, differentiable, float64.
        start: the best single Gaussian.
        generator: source of the draws.
    """
    dim = start.loc.numel()
    if dim > MAX_DIM:
        return None
    density = where_defined(log_density)
    covariance = torch.diag(start.covariance) if start.covariance.dim() == 1 else start.covariance
    root, info = torch.linalg.cholesky_ex(covariance)
    if int(info) != 0:
        return None

    def whole(u: Tensor) -> Tensor:
        return density(start.loc + u @ root.T)

    found = _modes(whole, start.loc, root, generator)
    if found is None:
        return None
    mixture = _local(whole, *found, generator)
    if mixture is None:
        return None
    mixture = _refined(whole, mixture, generator)
    if mixture is None:
        return None
    log_det = root.diagonal().log().sum()
    noise = antithetic_normal(2000, dim, generator)
    with torch.no_grad():
        single = whole(noise) + 0.5 * noise.square().sum(-1) + 0.5 * dim * math.log(2 * math.pi)
    rise = mixture.elbo - float(single.mean())
    if not rise > max(RISE, 2 * float(single.std()) / len(noise) ** 0.5):
        return None
    return MixtureStart(
        mixture.log_weights, start.loc + mixture.locs @ root.T, root @ mixture.trils, mixture.elbo + float(log_det)
    )


def _modes(density: LogDensity, center: Tensor, root: Tensor, generator: torch.Generator) -> tuple[Tensor, bool] | None:
    """Tops apart from each other, and whether the first is the Gaussian's own, which reaches none of the others."""
    dim = len(center)
    noise = antithetic_normal(200, dim, generator)
    with torch.no_grad():
        log_w = density(noise) + 0.5 * noise.square().sum(-1) + 0.5 * dim * math.log(2 * math.pi)
    left = remaining_kl(log_w, noise)
    near = left.kl + 2 * left.kl_se < NEAR_KL
    log_mass = float(torch.logsumexp(log_w.nan_to_num(nan=-torch.inf), 0)) - math.log(len(noise))
    threshold = math.log(MISSED_RATIO) + log_mass - 0.5 * dim * math.log(2 * math.pi)

    def missed(u: Tensor) -> Tensor:
        with torch.no_grad():
            return density(u) + 0.5 * u.square().sum(-1) > threshold

    def reached(u: Tensor, value: Tensor) -> Tensor:
        """Where the Gaussian's draws lie, or nearer to its middle, and it is as dense there as the posterior."""
        square = u.square().sum(-1)
        return (square < (dim**0.5 + 3) ** 2) & (value + 0.5 * square <= threshold)

    at_home = False
    tops: list[Tensor] = []
    for number in (NUM_PATHS, *MORE_PATHS):
        starts = overdispersed(dim, number, center, root, generator)
        if len(tops) > 1:
            starts = torch.cat([starts, between(torch.stack(tops), number, generator)])
        middle = torch.zeros_like(starts[:1])
        if near:  # then what the Gaussian reaches is one mode
            ends = ascend(density, starts, arrived=reached)
            ends = ends[missed(ends)]
        else:  # the Gaussian's own middle climbs beside them
            home, ends = ascend(density, torch.cat([middle, starts])).tensor_split([1])
        if len(ends):
            with torch.no_grad():
                ends = ends[density(ends).isfinite()]
        if len(ends) == 0:
            return None
        if near and not tops:
            if len(_heavy(density, middle[0], ends)) == 0:
                return None
            home = ascend(density, middle)
        if not tops:
            # Not where the density has no gradient, as at the centre of a ring: then the middle has not moved.
            heavy, moved = ends[_heavy(density, home[0], ends)], bool(home.any())
            if moved and not (len(heavy) and bool((_least_fall(density, home, heavy) > VALLEY).any())):
                return None
            # From beside it, then: a climb would stay on a saddle between two modes, too, or in a crater.
            path = climb(density, torch.linspace(1, 2, dim, dtype=torch.float64) * (0.0 if moved else BESIDE), 40)
            tops = [torch.as_tensor(path[-1][0]) if path else ends[0]]
            at_home = bool(path) and (moved or bool(tops[0].norm() < 1))
        known = len(tops)
        heavy = _heavy(density, tops[0], ends)
        parts = NUM_PATHS // ENDS_AT_ONCE if known == 1 else 1
        for part in range(parts):
            tops = _apart(density, tops, ends[heavy[part::parts]])
        if len(tops) < 2:
            return None
        if len(tops) >= MAX_MODES or len(tops) == known:
            break
    stacked = torch.stack(tops)
    return stacked, at_home and bool(missed(stacked[1:]).all())


def _heavy(density: LogDensity, top: Tensor, ends: Tensor) -> Tensor:
    """The indices of ends that can have mass, beginning with the highest.

    In coordinates where the known mode has a spread of one, another one that is apart from it has at most a third of
    its distance, ``r / 3`` in every direction. So where ``log p(end) + d log(r / 3)`` is below the known one's height
    by more than the log of the smallest share, the path is still far from a mode, or its mode is too small.
    """
    with torch.no_grad():
        height, value = density(top[None]), density(ends)
    volume = len(top) * ((ends - top).norm(dim=-1) / 3).clamp(min=1.0).log()
    order = value.argsort(descending=True)
    return order[(value + volume > height + math.log(SMALL))[order]]


def _apart(density: LogDensity, tops: list[Tensor], ends: Tensor) -> list[Tensor]:
    """The tops, and those of the ends, climbed to theirs, that are apart from all of them.

    A pass through a small model costs as much for many points as for one. So the ways to several ends are looked at in
    one pass, those beyond the deepest valley climb first, so that the pieces of one long ridge do not use up the
    climbs, and where every climb finds a mode of its own, more and more of them set out side by side.
    """
    tops = list(tops)
    in_vain, together, rest, near = 0, 1, ends, ends[:0]
    while len(rest) and len(tops) < MAX_MODES and in_vain < PATIENCE:
        size = max(1, min(MOST_POINTS, points_at_once(ends.shape[-1])) // (min(NEAREST, len(tops)) * (WAY_POINTS + 2)))
        falls, order = _least_fall(density, torch.stack(tops), rest[:size]).sort(descending=True)
        ahead = order[falls > _depth(tops)]
        if len(tops) == 1:  # should there be a second mode, then what is near the first may be one more place
            near = torch.cat([near, rest[order[(falls <= VALLEY) & (falls > DENT)]]])
        chosen, rest = rest[ahead[:together]], torch.cat([rest[ahead[together:]], rest[size:]])
        if len(chosen) == 0:
            continue
        paths = climb_all(density, chosen, 100, NEAR)
        found = torch.stack([torch.as_tensor(p[-1][0]) if p else end for p, end in zip(paths, chosen, strict=True)])
        number = len(found)
        known = _least_fall(density, torch.stack(tops), found)
        # An end that one of these tops is seen from is not climbed to from there.
        both = torch.cat([found, chosen])
        among = _fall(density, found.repeat_interleave(2 * number, 0), both.repeat(number, 1)).reshape(number, -1)
        new: list[int] = []
        for j in range(number):
            if len(tops) >= MAX_MODES or in_vain >= PATIENCE:
                break
            if new and not bool(among[new, number + j].amin() > _depth(tops)):
                continue
            if bool(known[j] > _depth(tops)) and (not new or bool(among[new, j].amin() > _depth(tops))):
                new.append(j)
                tops.append(found[j])
                in_vain = 0
            else:
                in_vain += 1
        together = min(2 * together, MOST_CLIMBS) if len(new) == number else 1
        if len(tops) > 1:
            rest, near = torch.cat([rest, near]), near[:0]
    return tops


def _depth(tops: list[Tensor]) -> float:
    return VALLEY if len(tops) == 1 else DENT


def _least_fall(density: LogDensity, tops: Tensor, ends: Tensor) -> Tensor:
    """For each end, the least :func:`_fall` from the nearest tops."""
    near = torch.cdist(ends, tops).topk(min(NEAREST, len(tops)), largest=False).indices
    falls = _fall(density, tops[near.flatten()], ends.repeat_interleave(near.shape[1], 0))
    return falls.reshape(near.shape).amin(1)


def _fall(density: LogDensity, tops: Tensor, ends: Tensor) -> Tensor:
    """By how much the density falls on the way from each top to its end, from the lower of the two: ``(P,)``."""
    share = torch.linspace(0, 1, WAY_POINTS + 2, dtype=torch.float64)[:, None, None]
    way = tops + share * (ends - tops)
    with torch.no_grad():
        value = density(way.reshape(-1, ends.shape[-1])).reshape(way.shape[:-1])
    return torch.minimum(value[0], value[-1]) - value.amin(0)


def _local(density: LogDensity, tops: Tensor, alone: bool, generator: torch.Generator) -> MixtureStart | None:
    """Gaussians at the tops, with Laplace's weights; where the first is ``alone``, it is the coordinates' own."""
    number, dim = tops.shape
    apart = torch.cdist(tops, tops) + torch.diag(torch.full((number,), torch.inf, dtype=torch.float64))
    limit = (apart.amin(1) / (3.0 if number <= FEW else 1.5)).square()
    kept, trils = [], []
    for index, (top, curvature) in enumerate(zip(tops, inverse_curvatures(density, tops, 1e-10), strict=True)):
        if index == 0 and alone:
            tril, loc = torch.eye(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
        else:
            if curvature is None:
                continue
            values, vectors = torch.linalg.eigh(curvature)
            values = values.clamp(min=1e-12).clamp(max=float(limit[index]))
            root, info = torch.linalg.cholesky_ex((vectors * values) @ vectors.T)
            if int(info) != 0:
                continue
            tril, loc = root, top
            if number <= FEW:
                tril, loc = _settled(density, loc, tril, generator)
        kept.append(loc)
        trils.append(tril)
    if len(kept) < 2:
        return None
    locs, scales = torch.stack(kept), torch.stack(trils)
    with torch.no_grad():
        weights = density(locs) + scales.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return MixtureStart(weights.log_softmax(0), locs, scales, -math.inf)


def _settled(
    density: LogDensity, loc: Tensor, tril: Tensor, generator: torch.Generator, num_rounds: int = 4
) -> tuple[Tensor, Tensor]:
    """The triangle and the location after rounds of natural gradients, as long as the ELBO rises."""
    noise = antithetic_normal(256, len(loc), generator)
    best = -math.inf
    here = loc, tril
    for _ in range(num_rounds):
        with torch.no_grad():
            elbo = float(density(here[0] + noise @ here[1].T).mean() + here[1].diagonal().log().sum())
        if not elbo > best + 0.01:
            break
        loc, tril, best = *here, elbo
        moved = refine_gaussian(density, loc, tril, generator=generator)
        if moved is None:
            break
        here = moved
    return tril, loc


def _refined(density: LogDensity, mixture: MixtureStart, generator: torch.Generator) -> MixtureStart | None:
    """Weights by importance sampling, and natural-gradient steps of few components; ``None`` where one is left."""
    pruned = _weighed(density, mixture, generator)
    if pruned is None:
        return None
    best = pruned
    for _ in range(4 if len(best.locs) <= FEW else 0):
        locs, trils = best.locs.clone(), best.trils.clone()
        for k in range(len(locs)):

            def target(x: Tensor, k: int = k, held: MixtureStart = best) -> Tensor:
                return density(x) + held.parts(x).log_softmax(-1)[:, k]

            moved = refine_gaussian(target, locs[k], trils[k], 3, generator=generator)
            if moved is not None:
                locs[k], trils[k] = moved
        tried = _weighed(density, MixtureStart(best.log_weights, locs, trils, -math.inf), generator)
        if tried is None or not tried.elbo > best.elbo:
            break
        best, rise = tried, tried.elbo - best.elbo
        if rise < 0.01:
            break
    return best


def _weighed(density: LogDensity, mixture: MixtureStart, generator: torch.Generator) -> MixtureStart | None:
    """With the weights of the highest ELBO for these components, those of little weight left out.

    There ``π_k ∝ exp E_k[log p − log q + log π_k]``, solved by a few steps of that map on the same draws.
    """
    number, dim = mixture.locs.shape
    noise = antithetic_normal(max(64, 2000 // number), dim, generator)
    while True:
        x = mixture.draw(noise)
        with torch.no_grad():
            log_p = density(x.reshape(-1, dim)).reshape(x.shape[:-1])
        good = log_p.isfinite().all(-1)
        if not bool(good.all()):
            if int(good.sum()) < 2:
                return None
            mixture = _chosen(mixture, good)
            continue
        log_w = mixture.log_weights
        parts = MixtureStart(torch.zeros_like(log_w), mixture.locs, mixture.trils, 0.0).parts(x.reshape(-1, dim))
        parts = parts.reshape(*x.shape[:-1], -1)
        for _ in range(20):
            gain = (log_p - torch.logsumexp(parts + log_w, -1)).mean(-1)
            log_w = (log_w + gain).log_softmax(0)
        elbo = float((log_w.exp() * (log_p - torch.logsumexp(parts + log_w, -1)).mean(-1)).sum())
        heavy = log_w > log_w.max() + math.log(SMALL)
        if int(heavy.sum()) < 2:
            return None
        if bool(heavy.all()):
            return MixtureStart(log_w, mixture.locs, mixture.trils, elbo)
        mixture = _chosen(MixtureStart(log_w, mixture.locs, mixture.trils, elbo), heavy)


def _chosen(mixture: MixtureStart, which: Tensor) -> MixtureStart:
    return MixtureStart(
        mixture.log_weights[which].log_softmax(0), mixture.locs[which], mixture.trils[which], mixture.elbo
    )
