"""The supports of latent sites: whether they depend on other latents, and whether they are what they say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from itertools import chain, repeat
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
    "check_latent_supports",
    "check_support",
    "computes_its_support",
    "demands",
    "sites_with_dependent_support",
    "within_fixed_bounds",
]

SHIFTS = (0.7, -0.7, 2.0, -2.0, 6.0, -6.0)
"""How far all latents are moved together, in unconstrained space: so far that a bound which follows them shows it."""

NUM_DRAWS = 64
"""Runs at values of the prior and at draws of a guide, which meet what happens beyond a threshold."""


class DependentSupportError(ValueError):
    """The bounds of a latent site depend on other latents, so that no fixed map takes the real line to them."""


def within_fixed_bounds(name: str) -> str:
    """The way out for a latent site whose bounds nothing keeps to."""
    return (
        f"sample the site within fixed bounds and compute the rest, for instance {name} = upper * "
        f"pyro.sample('{name}_fraction', dist.Uniform(0, 1))"
    )


def sites_with_dependent_support(
    prototype: Trace, model: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[str]:
    """Names of the latent sites whose bounds move when the latents do, such as ``Uniform(0, 1 − alpha)``.

    The model runs again with every latent of the prototype moved by the same step in unconstrained space, and the
    supports of the two runs are compared. Where some distribution computes its bounds, there are further steps and 64
    runs at values that the model itself draws: a bound may follow a latent beyond a threshold alone.

    Args:
        prototype: a trace of the model.
        model: a Pyro program.
        args: the model's arguments.
        kwargs: the model's keyword arguments.

    Returns:
        The names; none of those in runs that fail at the moved values.
    """
    sites = list(stochastic_nodes(prototype))
    found: set[str] = set()
    computed = any(computes_its_support(site["fn"]) for _, site in sites)
    # Without the latents, which the model draws then; what it subsamples stays.
    drawn = prototype.copy()
    for name, _ in sites:
        drawn.remove_node(name)
    starts = (_moved(prototype, shift) for shift in (SHIFTS if computed else SHIFTS[:1]))
    # Validation would refuse what is to be found out.
    with poutine.block(), pyro.validation_enabled(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        for start in chain(starts, repeat(drawn, NUM_DRAWS if computed else 0)):
            with suppress(ArithmeticError, RuntimeError, ValueError):
                run = nodes(poutine.trace(poutine.replay(model, trace=start)).get_trace(*args, **kwargs))
                found.update(
                    n for n, site in sites if n in run and not same_support(site["fn"].support, run[n]["fn"].support)
                )
    return [name for name, _ in sites if name in found]


def check_latent_supports(
    prototype: Trace,
    dependent: Collection[str],
    run: Callable[[Mapping[str, Tensor]], Trace],
    values: Mapping[str, Tensor],
) -> None:
    """Refuse latent sites taken for ones of fixed support that have another one at draws of the guide.

    Args:
        prototype: the trace that the guide was built for.
        dependent: the sites whose supports are known to depend on others.
        run: runs the model at values of its latents.
        values: draws of them, along the first dimension; up to 64 are looked at.

    Raises:
        DependentSupportError: one of them has another support; names the site and the way out.
    """
    sites = [(n, s) for n, s in stochastic_nodes(prototype) if n not in dependent and computes_its_support(s["fn"])]
    size = min(NUM_DRAWS, len(next(iter(values.values()))))
    for index in range(size if sites else 0):
        there = nodes(run({name: value[index] for name, value in values.items()}))
        for name, site in sites:
            if name in there and not same_support(site["fn"].support, there[name]["fn"].support):
                raise DependentSupportError(
                    f"the support of latent site {name!r} depends on other latents, and the guide, which was built "
                    f"where it did not show, takes it for fixed: {within_fixed_bounds(name)}"
                )


def computes_its_support(fn: Any) -> bool:
    """Whether the support is of the object: a class that states one has the same for all of its parameters."""
    stated = inspect.getattr_static(type(innermost(fn)), "support", None)
    return not isinstance(stated, Constraint) or constraints.is_dependent(stated)


def _moved(prototype: Trace, shift: float) -> Trace:
    moved = prototype.copy()
    for name, site in stochastic_nodes(prototype):
        transform = biject_to(site["fn"].support)
        nodes(moved)[name] = {**site, "value": transform(transform.inv(site["value"]) + shift)}
    return moved


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
