"""Where a site begins: Pyro's median of its prior, or the origin where the prior is flat."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor
from torch.distributions import transform_to

__all__ = ["init_to_median_or_origin", "init_to_origin"]


def init_to_median_or_origin(site: dict[str, Any] | None = None) -> Any:
    """Pyro's ``init_to_median``, and the origin of the unconstrained space for improper (flat) priors."""
    if site is None:
        return init_to_median_or_origin
    fn = site["fn"]
    while isinstance(fn, dist.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    if isinstance(fn, dist.ImproperUniform):
        return init_to_origin(site)
    return init_to_median(site)


def init_to_origin(site: dict[str, Any]) -> Tensor:
    """The image of zero under the map to the support; needs no sample from the prior."""
    shape = site["fn"].batch_shape + site["fn"].event_shape
    transform = transform_to(site["fn"].support)
    value = transform(torch.zeros(transform.inverse_shape(shape)))
    return value.expand(shape).clone()
