"""The supports of latent sites: whether they depend on other latents, and whether they are what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.constraints import Constraint

from vi_flows.guides.sites import innermost, is_composed
from vi_flows.traces import nodes, stochastic_nodes
from vi_flows.transforms.regions import bounds_of, is_real, same_support

__all__ = [
    "DependentSupportError",
    "check_support",
    "demands",
    "sites_with_dependent_support",
]

SHIFT = 0.7
"""How far the other latents are moved, in unconstrained space: far enough that a bound which follows them shows it."""


class DependentSupportError(ValueError):
    """The bounds of a latent site depend on other latents, so that no fixed map takes the real line to them."""


def sites_with_dependent_support(
    prototype: Trace, model: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[str]:
    """Names of the latent sites whose bounds move when the latents do, such as ``Uniform(0, 1 − alpha)``.

    The model runs once more with every latent of the prototype moved by the same step in unconstrained space, and the
    supports of the two runs are compared.

    Args:
        prototype: a trace of the model.
        model: a Pyro program.
        args: the model's arguments.
        kwargs: the model's keyword arguments.

    Returns:
        The names; none where the model can't be run at the moved values.
    """
    moved = prototype.copy()
    for name, site in stochastic_nodes(prototype):
        transform = biject_to(site["fn"].support)
        value = transform(transform.inv(site["value"]) + SHIFT)
        nodes(moved)[name] = {**site, "value": value}
    # Validation would refuse what is to be found out.
    with poutine.block(), pyro.validation_enabled(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            second = poutine.trace(poutine.replay(model, trace=moved)).get_trace(*args, **kwargs)
        except (ArithmeticError, RuntimeError, ValueError):
            return []
    return [
        name
        for name, site in stochastic_nodes(prototype)
        if name in second.nodes and not same_support(site["fn"].support, nodes(second)[name]["fn"].support)
    ]


@transform_to.register(constraints.MixtureSameFamilyConstraint)
def _onto_that_of_mixtures(constraint: Any) -> Any:
    """By which Pyro starts; it need not be one to one, as that to a simplex is not."""
    return transform_to(constraint.base_constraint)


@biject_to.register(constraints.MixtureSameFamilyConstraint)
def _of_mixtures(constraint: Any) -> Any:
    """The map to what the components of a ``MixtureSameFamily`` have in common, which PyTorch has none for."""
    if any(bound.dim() for bound in bounds_of(constraint)):
        raise NotImplementedError("its components have supports of their own")
    return biject_to(constraint.base_constraint)


def demands(fn: Any, value: Tensor) -> Iterator[tuple[Constraint, Tensor, int]]:
    """What must hold for a value to have a density, all the way back to the base of a composed distribution.

    A composed one declares its last transform's codomain, and maps values that come from none of its base's
    distribution to where that may have a density by its formula, but none in truth.

    Args:
        fn: a distribution.
        value: which may be in its support.

    Yields:
        Constraints, the values that have to keep to them, and how many dimensions of these are of the event.
    """
    fn = innermost(fn)
    event = fn.event_dim
    while is_composed(fn):
        for transform in reversed(fn.transforms):
            yield transform.codomain, value, event
            value = transform.inv(value)
            event += transform.domain.event_dim - transform.codomain.event_dim
        fn = innermost(fn.base_dist)
    yield fn.support, value, event


def check_support(name: str, fn: Any) -> None:
    """Refuse what no map from the real line covers once, and densities that end within the declared support.

    Raises:
        ValueError: names the site and the way out.
    """
    fn = innermost(fn)
    around = innermost(fn.base_dist) if isinstance(fn, dist.SineSkewed) else fn
    if isinstance(around, torch.distributions.VonMises | dist.VonMises3D | dist.SineBivariateVonMises):
        raise ValueError(
            f"latent site {name!r} is circular, which no map from the real line covers once: sample a vector v of two "
            f"standard normals, take its angle {name} = torch.atan2(v[..., 1], v[..., 0]), which is uniform, and bring "
            f"the density in by pyro.factor('{name}_prior', fn.log_prob({name}) + math.log(2 * math.pi))"
        )
    if not is_composed(fn):
        return
    to_support = biject_to(fn.support)
    # Far out on the line, and not so far where a support's edge would be met by rounding.
    sizes = (1.0, 30.0, 1000.0) if is_real(fn.support) else (0.3, 1.0, 3.0)
    shape = to_support.inverse_shape(fn.shape())
    directions = torch.randn((32, *shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = to_support(torch.cat([size * directions for size in sizes]).to(fn.sample().dtype))
    try:
        for transform in reversed(fn.transforms):
            points = transform.inv(points)
        good = fn.base_dist.support.check(points)
    except NotImplementedError:
        return
    if not bool((good | points.isinf().reshape(*good.shape, -1).any(-1)).all()):
        raise ValueError(
            f"latent site {name!r} declares the support {fn.support}, but its density ends within it: sample the "
            f"untransformed site and compute {name} from it with pyro.deterministic"
        )
