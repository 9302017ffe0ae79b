"""Are the observations of a Pyro program possible ones? Said by the name of the site, before anything is fitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vi_flows.guides.sites import unmasked
from vi_flows.settings import check_tensors
from vi_flows.traces import Site, is_subsample, nodes

__all__ = ["PossibleWhereMasked", "check_observations"]

COUNTS = (torch.distributions.Multinomial, dist.DirichletMultinomial)
"""Their declared support has counts that sum to less than ``total_count``, too, where they have no density."""

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
            in plates have more dimensions than the plates make.
    """
    for name, site in nodes(trace).items():
        if site["type"] == "sample" and site["is_observed"]:
            check_tensors(**{f"the value of observed site {name!r}": site["value"]})
            _check_rows(name, site)
            _check(name, site)


def _check_rows(name: str, site: Site) -> None:
    """Within plates, values of more dimensions than the distribution has would count each row against every other."""
    fn, value = site["fn"], site["value"]
    plates = {frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.vectorized}
    if is_subsample(site) or not plates:
        return
    batch = value.shape[: value.dim() - fn.event_dim]
    # A single number may stand for all rows; a row of its own may not.
    given = {dim: batch[dim] for dim in range(-len(batch), 0)}
    if len(batch) > len(fn.batch_shape) or any(given.get(dim, size) != size for dim, size in plates.items()):
        raise ValueError(
            f"observed site {name!r} has values of shape {tuple(value.shape)}, where the model's plates make "
            f"{tuple(fn.shape())}: give it values of that shape, or build the plates for as many rows"
        )


def _check(name: str, site: Site) -> None:
    kept, good = _judged(site)
    good = good | ~kept
    if bool(good.all()):
        return
    fn, value = unmasked(site)[0], site["value"]
    if isinstance(fn, COUNTS) and not bool((value.sum(-1) == torch.as_tensor(fn.total_count)).all()):
        raise ValueError(
            f"observed site {name!r} has counts with sums {value.sum(-1).flatten()[:3].tolist()}, outside the support "
            f"of {fn} with a total_count of {torch.as_tensor(fn.total_count).flatten()[:3].tolist()}"
        )
    if isinstance(fn, dist.Delta):
        raise ValueError(
            f"observed site {name!r} is a Delta, and its observation is not at its point: observe it with a density, "
            "such as dist.Normal around the point"
        )
    bad = value.expand(good.shape + value.shape[value.dim() - fn.event_dim :])[~good][0]
    raise ValueError(
        f"observed site {name!r} has a value outside the support {fn.support} of {fn}: {bad.tolist()}; correct it, or "
        f"mask it out{FROM_A_LATENT if torch.distributions.constraints.is_dependent(type(fn).support) else ''}"
    )


def _judged(site: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Which entries count, and which are possible; of the innermost distribution, so that parts can be masked."""
    fn, kept = unmasked(site)
    value = site["value"]
    try:
        good = fn.support.check(value)
    except NotImplementedError:
        good = torch.ones((), dtype=torch.bool)
    # A support of numbers for a distribution of vectors, as that of pyro.factor.
    good = good.flatten(value.dim() - fn.event_dim).all(-1) if good.dim() > value.dim() - fn.event_dim else good
    if isinstance(fn, dist.Delta):
        good = good & fn.log_prob(value).isfinite()
    if isinstance(fn, COUNTS):
        good = good & (value.sum(-1) == torch.as_tensor(fn.total_count))
    if value.is_floating_point():
        infinite = value.isinf()
        good = good & ~(infinite.flatten(value.dim() - fn.event_dim).any(-1) if fn.event_dim else infinite)
    return kept.to(good.device), good


class PossibleWhereMasked(Messenger):
    """Puts possible values where impossible ones (NaN for what is missing) are masked out.

    They count for nothing, but the gradient of a density at NaN is NaN, behind a mask, too.

    Args:
        trace: a run of the model, which is looked through for such values.
    """

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}
        for name, site in nodes(trace).items():
            if site["type"] == "sample" and site["is_observed"] and not is_subsample(site):
                kept, good = _judged(site)
                if not bool((kept | good).all()):
                    drawn = site["fn"].sample()
                    good = good.reshape(good.shape + (1,) * unmasked(site)[0].event_dim)
                    self.values[name] = torch.where(good, site["value"], drawn)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"] and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
