"""Are the observations of a Pyro program possible ones? Said by the name of the site, before anything is fitted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.hmm import HiddenMarkovModel  # without a duration, each has one step for all of time
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from vi_flows.guides.sites import (
    check_is_pyros,
    has_mask,
    innermost,
    is_composed,
    is_counts,
    is_discrete,
    is_fixed,
    unmasked,
)
from vi_flows.guides.supports import demands
from vi_flows.settings import check_tensors
from vi_flows.traces import Site, is_subsample, nodes
from vi_flows.transforms.regions import kept_to

__all__ = ["PossibleWhereMasked", "check_not_crossed", "check_observations", "counted", "is_possible"]

LEAVE_GAPS_OUT = (dist.NanMaskedNormal, dist.NanMaskedMultivariateNormal)
"""Their densities are those of the entries that are finite."""

FROM_A_LATENT = (
    "; if the support's bounds come from a latent, keep that to the data, for instance theta = y.max() + "
    "pyro.sample('excess', …) for y ~ Uniform(0, theta)"
)


def check_observations(trace: Trace) -> None:
    """Compare each observed site's value with its support, apart from what is masked out.

    Args:
        trace: a run of the model.

    Raises:
        ValueError: a value lies outside of its support; names the site, the support and the first such value. Or values
            in plates have more dimensions than the plates make, or a site's distribution is none of Pyro's.
    """
    for name, site in nodes(trace).items():
        if site["type"] == "sample":
            check_is_pyros(name, site["fn"])
        if site["type"] == "sample" and site["is_observed"]:
            check_tensors(**{f"the value of observed site {name!r}": site["value"]})
            _check_rows(name, site)
            _check(name, site)


def _check_rows(name: str, site: Site) -> None:
    """Rows of values that are not those of the distribution, or of its plates, would each count against every other."""
    fn, value = site["fn"], site["value"]
    if is_subsample(site):
        return
    check_not_crossed(name, fn, value)
    plates = {frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.vectorized}
    if not plates:
        return
    batch = value.shape[: value.dim() - fn.event_dim]
    # A single number may stand for all rows; a row of its own may not.
    given = {dim: batch[dim] for dim in range(-len(batch), 0)}
    if len(batch) > len(fn.batch_shape) or any(given.get(dim, size) != size for dim, size in plates.items()):
        raise ValueError(
            f"observed site {name!r} has values of shape {tuple(value.shape)}, where the model's plates make "
            f"{tuple(fn.shape())}: give it values of that shape, or build the plates for as many rows"
        )


def check_not_crossed(name: str, fn: Any, value: Tensor) -> None:
    """Refuse values and a distribution of which each must be stretched to meet the other: ``(N, 1)`` and ``(N,)``.

    Args:
        name: of an observed site.
        fn: its distribution.
        value: its observations.

    Raises:
        ValueError: every row of one would count against every row of the other; names the site and both shapes.
    """
    # Pyro's hidden Markov models may have a plain tuple for their events.
    if _are_crossed(torch.Size(fn.shape()), value.shape) and not isinstance(innermost(fn), HiddenMarkovModel):
        raise ValueError(
            f"observed site {name!r} has values of shape {tuple(value.shape)} for a distribution of shape "
            f"{tuple(fn.shape())}, so that every row of one would count against every row of the other: give both the "
            "same shape (y.squeeze(-1) for a column)"
        )


def _are_crossed(one: torch.Size, other: torch.Size) -> bool:
    """Whether each of two shapes must be stretched to meet the other; one alone may stand for all rows."""
    try:
        both = torch.broadcast_shapes(one, other)
    except RuntimeError:
        return False  # they don't meet at all, which the density says
    return both.numel() > max(one.numel(), other.numel())


def _check(name: str, site: Site) -> None:
    kept, good = _judged(site)
    good = good | ~kept
    if bool(good.all()):
        return
    fn, value = unmasked(site)[0], site["value"]
    if is_counts(fn) and not bool((value.sum(-1) == torch.as_tensor(fn.total_count)).all()):
        raise ValueError(
            f"observed site {name!r} has counts with sums {value.sum(-1).flatten()[:3].tolist()}, outside the support "
            f"of {fn} with a total_count of {torch.as_tensor(fn.total_count).flatten()[:3].tolist()}: give it that of "
            "the counts, total_count=int(counts.sum(-1).max()) where rows have totals of their own"
        )
    if isinstance(fn, dist.Delta):
        raise ValueError(
            f"observed site {name!r} is a Delta, and its observation is not at its point: observe it with a density, "
            "such as dist.Normal around the point"
        )
    bad = value.expand(good.shape + value.shape[value.dim() - fn.event_dim :])[~good][0]
    if is_composed(fn):
        raise ValueError(
            f"observed site {name!r} has a value that the transforms of {fn} take from nowhere in the support of its "
            f"base distribution: {bad.tolist()}; correct it, or mask it out{FROM_A_LATENT}"
        )
    raise ValueError(
        f"observed site {name!r} has a value outside the support {fn.support} of {fn}: {bad.tolist()}; correct it, or "
        f"mask it out{FROM_A_LATENT if torch.distributions.constraints.is_dependent(type(fn).support) else ''}"
    )


def is_possible(site: Mapping[str, Any]) -> bool:
    """Whether the value of an observed site, which was computed in the run, is within its support where it counts."""
    kept, good = _judged(site, kept_to)
    return bool((good | ~kept).all())


def counted(site: Mapping[str, Any]) -> Tensor:
    """Which elements of an observed site's density count: neither masked out, nor gaps that the density leaves out.

    Args:
        site: of a trace.

    Returns:
        Booleans that broadcast to the batch shape of its distribution; of vectors, whether any of its entries counts.
    """
    fn, kept = unmasked(site)
    if isinstance(fn, LEAVE_GAPS_OUT):
        there = site["value"].isfinite()
        kept = kept.to(there.device) & (there.any(-1) if fn.event_dim else there)
    event = site["fn"].event_dim - fn.event_dim
    return kept.flatten(-event).any(-1) if event else kept


def _add_up(fn: Any, totals: Tensor) -> Tensor:
    """Whether counts have the total that their distribution says; in rows of several totals, one of at most that.

    PyTorch's ``Multinomial`` has one ``total_count`` for all rows, which its density doesn't read.
    """
    most = torch.as_tensor(fn.total_count)
    if not isinstance(fn, torch.distributions.Multinomial):
        return totals == most
    differ = (totals != totals.flatten()[:1]).any()
    return (totals == most) | (differ & (totals <= most))


def _check_strictly(constraint: Any, value: Tensor) -> Tensor:
    found: Tensor = constraint.check(value)
    return found


def _judged(site: Mapping[str, Any], check: Callable[[Any, Tensor], Tensor] = _check_strictly) -> tuple[Tensor, Tensor]:
    """Which entries count, and which are possible; of the innermost distribution, so that parts can be masked."""
    fn, kept = unmasked(site)
    value = site["value"]
    good = torch.ones((), dtype=torch.bool)
    if isinstance(fn, LEAVE_GAPS_OUT):
        return kept, good
    # Some distributions declare no support, some transforms have no inverse.
    with suppress(NotImplementedError, KeyError):
        for constraint, entries, event in demands(fn, value):
            there = (check if entries is value else kept_to)(constraint, entries)
            # A support of numbers for a distribution of vectors, as that of pyro.factor.
            batch = entries.dim() - event
            good = good & (there.flatten(batch).all(-1) if there.dim() > batch else there)
    if isinstance(fn, dist.Delta):
        good = good & fn.log_prob(value).isfinite()
    if is_counts(fn):
        good = good & _add_up(fn, value.sum(-1))
    if value.is_floating_point():
        infinite = value.isinf()
        good = good & ~(infinite.flatten(value.dim() - fn.event_dim).any(-1) if fn.event_dim else infinite)
    return kept.to(good.device), good


class PossibleWhereMasked(Messenger):
    """Puts possible values where impossible ones (NaN for what is missing) are masked out.

    They count for nothing, but the gradient of a density at NaN is NaN, behind a mask, too. What is impossible is asked
    of each run: values may follow from latents, and a minibatch has other gaps than the one before.

    Args:
        trace: a run of the model, from whose masked distributions the values that stand in are drawn; the generator is
            left as it was.
        latents: names of sites that are given a value in the run, and no data.
    """

    def __init__(self, trace: Trace, latents: Collection[str] = ()) -> None:
        super().__init__()
        self.stand_ins: dict[str, Tensor] = {}
        for name, site in nodes(trace).items():
            # A point has one value, and none is needed for a density without a gradient.
            if site["type"] != "sample" or name in latents or not _may_be_masked(site) or is_fixed(site["fn"]):
                continue
            with suppress(NotImplementedError), torch.no_grad(), torch.random.fork_rng(devices=[]):
                self.stand_ins[name] = _off_its_bounds(site["fn"], site["fn"].sample())

    def amend(self, trace: Trace) -> None:
        """Change the values of a trace.

        Args:
            trace: a run of the model.
        """
        for site in nodes(trace).values():
            if site["type"] == "sample":
                self._pyro_sample(site)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] not in self.stand_ins or not _may_be_masked(msg):
            return
        kept, good = _judged(msg)
        event = (1,) * unmasked(msg)[0].event_dim
        counts = (good | kept).reshape(torch.broadcast_shapes(good.shape, kept.shape) + event)
        stand_in = _within_its_bounds(msg["fn"], self.stand_ins[msg["name"]])
        msg["value"] = torch.where(counts, msg["value"], stand_in.to(msg["value"]))


def _may_be_masked(site: Mapping[str, Any]) -> bool:
    """Whether there is a mask around an observation; what it leaves out may change from run to run."""
    return site["is_observed"] and not is_subsample(site) and has_mask(site)


def _off_its_bounds(fn: Any, value: Tensor) -> Tensor:
    """The value without the bounds of this run, which may move: on the real line, where a map leads there."""
    fn = innermost(fn)
    if is_composed(fn):
        for transform in reversed(fn.transforms):
            value = transform.inv(value)
        return _off_its_bounds(fn.base_dist, value)
    return value if is_discrete(fn) else biject_to(fn.support).inv(value)


def _within_its_bounds(fn: Any, value: Tensor) -> Tensor:
    fn = innermost(fn)
    if is_composed(fn):
        value = _within_its_bounds(fn.base_dist, value)
        for transform in fn.transforms:
            value = transform(value)
        return value
    return value if is_discrete(fn) else biject_to(fn.support)(value)
