"""What a sample site of a Pyro program is: its innermost distribution, whether it is discrete, whether it is fixed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine import Trace
from torch import Tensor

from vi_flows.traces import Site, is_subsample, nodes

__all__ = [
    "WRAPPERS",
    "can_be_enumerated",
    "check_is_pyros",
    "check_nothing_subsampled",
    "has_mask",
    "innermost",
    "is_composed",
    "is_counts",
    "is_discrete",
    "is_fixed",
    "latent_sites",
    "left_to_the_model",
    "unmasked",
]


def check_is_pyros(name: str, fn: Any) -> None:
    """Refuse a distribution of PyTorch's own, which knows neither plates nor masks.

    Args:
        name: of a sample site.
        fn: its distribution.

    Raises:
        ValueError: it is none of Pyro's; names the site.
    """
    if isinstance(fn, torch.distributions.Distribution) and not isinstance(fn, TorchDistributionMixin):
        kind = type(fn).__name__
        raise ValueError(f"site {name!r} is a torch.distributions.{kind}: use Pyro's, pyro.distributions.{kind}")


WRAPPERS = (dist.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)
"""What ``to_event``, ``mask`` and ``expand`` make, around their ``base_dist``."""


def innermost(fn: Any) -> Any:
    """The distribution within ``to_event``, ``mask`` and ``expand``."""
    *_, last = _layers(fn)
    return last


def _layers(fn: Any) -> Iterator[Any]:
    """A distribution, what it wraps, what that wraps, …."""
    yield fn
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
        yield fn


def is_counts(fn: Any) -> bool:
    """Whether it is of counts that add up to a total, ``Multinomial`` or ``DirichletMultinomial``.

    Their declared support has counts that sum to less than ``total_count``, too, where they have no density.
    """
    return isinstance(fn, torch.distributions.Multinomial | dist.DirichletMultinomial)


def is_composed(fn: Any) -> bool:
    """Whether it is a base distribution with transforms and no more: it declares the codomain of its last transform.

    The subclasses of PyTorch and Pyro declare their supports by hand.
    """
    return type(fn) in (dist.TransformedDistribution, torch.distributions.TransformedDistribution)


def is_fixed(fn: Any) -> bool:
    """Whether the model itself gives the value: a ``Delta``."""
    return isinstance(innermost(fn), dist.Delta)


def is_discrete(fn: Any) -> bool:
    """Whether the values are isolated points, be they enumerable or not."""
    if fn.has_enumerate_support:
        return True
    try:
        return bool(fn.support.is_discrete)
    except NotImplementedError:
        return False


def can_be_enumerated(fn: Any) -> bool:
    """Whether all values can be listed, one dimension of the batch at a time, as Pyro does."""
    if not fn.has_enumerate_support:
        return False
    try:
        fn.enumerate_support(expand=False)
    except NotImplementedError:
        return False
    return True


def left_to_the_model(fn: Any) -> bool:
    """Whether a guide of continuous latents leaves the site alone: a ``Delta``, or one that is to be summed out."""
    return is_fixed(fn) or is_discrete(fn)


def latent_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    """The sites that are sampled and not observed, without the indices of subsampled plates."""
    return (
        (name, site)
        for name, site in nodes(trace).items()
        if site["type"] == "sample" and not site["is_observed"] and not is_subsample(site)
    )


def check_nothing_subsampled(trace: Trace, way_out: str) -> None:
    """Refuse a part of the data where draws are to be weighed: weights that change at every run are none.

    Args:
        trace: of a run of the model.
        way_out: what to do instead, for the error's message.

    Raises:
        ValueError: the model subsamples a plate; names it.
    """
    for site in nodes(trace).values():
        for frame in site["cond_indep_stack"] if site["type"] == "sample" else ():
            if frame.full_size is not None and frame.full_size != frame.size:
                raise ValueError(
                    f"the model subsamples its data in plate {frame.name!r}, {frame.size} of {frame.full_size}: "
                    f"{way_out}"
                )


def unmasked(site: Mapping[str, Any]) -> tuple[Any, Tensor]:
    """The innermost distribution, and which entries of its batch have a density in the model."""
    fn, mask = site["fn"], site["mask"]
    kept = torch.as_tensor(True if mask is None else mask)
    for layer in _layers(fn):
        if isinstance(layer, dist.MaskedDistribution):
            kept = kept & torch.as_tensor(layer._mask)
        elif isinstance(layer, dist.Independent):
            kept = kept.reshape(kept.shape + (1,) * layer.reinterpreted_batch_ndims)
    return innermost(fn), kept


def has_mask(site: Mapping[str, Any]) -> bool:
    """Whether there is a mask around the site or its distribution, be it one that takes nothing out."""
    mask = site["mask"]
    within = any(isinstance(layer, dist.MaskedDistribution) for layer in _layers(site["fn"]))
    return within or (mask is not None and mask is not True)
