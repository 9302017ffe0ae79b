"""The model that a guide is fitted to or diagnosed with: whether it is one that the guide can answer for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from vi_flows.guides.auto_flow import AutoFlow
from vi_flows.guides.faults import (
    check_distribution_parameters,
    check_observed_supports,
    check_shape_of_density,
    compute_log_prob,
    run_at,
)
from vi_flows.guides.observations import PossibleWhereMasked, check_observations
from vi_flows.guides.sites import check_nothing_subsampled, is_discrete, is_fixed, latent_sites
from vi_flows.guides.supports import check_latent_supports, check_support, within_fixed_bounds
from vi_flows.parameters import module_of
from vi_flows.traces import Site, nodes, stochastic_nodes
from vi_flows.transforms.regions import same_support

__all__ = [
    "check_density",
    "check_model",
    "check_program",
    "check_whole_data",
    "draw_of",
    "parameters_of",
]

NUM_DRAWS = 500
"""Draws at which the parameters of the model's distributions are looked at."""


def check_model(model: Callable, guide: AutoFlow, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Run the model once as it is, with validation, at the guide's central value, and compare its sites.

    A guide without parameters yet is built for the model given.

    Args:
        model: a Pyro program.
        guide: its guide.
        args: the model's arguments.
        kwargs: the model's keyword arguments.

    Returns:
        The model's own parameters, unconstrained.

    Raises:
        ValueError: the latent sites are not the guide's in name, shape or support; a latent is circular or
            declares too wide a support; an observation lies outside its support, or leaves it at draws of the guide,
            where the support of a latent site may be another one, too.
    """
    with poutine.block(), torch.no_grad(), pyro.validation_enabled(True):
        guide.set_up_for(model, *args, **kwargs)
        guide.follow(model, *args, **kwargs)
        noise = guide.get_base_dist().mode
        values, _ = guide.constrain(guide.get_transform().forward_and_ladj(noise)[0])
        prototype = guide.prototype_trace
        assert prototype is not None  # it is set up
        replayed = prototype.copy()
        for name, value in values.items():
            replayed.nodes[name] = {**prototype.nodes[name], "value": value}
        trace = poutine.trace(poutine.replay(model, trace=replayed)).get_trace(*args, **kwargs)
        _check_latents(prototype, trace, guide.dependent_sites)
        check_observations(trace)
        possible = PossibleWhereMasked(trace)
        compute_log_prob(trace, possible)
        # Once more with the same values of all that can be seen: subsampled indices and discrete sites, too.
        again = poutine.trace(poutine.replay(model, trace=trace)).get_trace(*args, **kwargs)
        compute_log_prob(again, possible)
        check_shape_of_density(trace)
        _check_same(trace, again)
        with torch.random.fork_rng(devices=[]):
            check_observed_supports(model, lambda: draw_of(guide), args, kwargs)
            draws = guide.sample_posterior(NUM_DRAWS)
            check_latent_supports(prototype, guide.dependent_sites, lambda v: run_at(model, v, args, kwargs), draws)
            check_distribution_parameters(model, draws, args, kwargs)
    return parameters_of(model, trace)


def draw_of(guide: AutoFlow) -> dict[str, Tensor]:
    """One value of each of its sites."""
    return {name: value[0] for name, value in guide.sample_posterior(1).items()}


def check_whole_data(model: Callable, guide: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse to weigh draws by a part of the data.

    Args:
        model: a Pyro program.
        guide: its guide.
        args: the model's arguments.
        kwargs: the model's keyword arguments.

    Raises:
        ValueError: the model subsamples a plate; names it.
    """
    with poutine.block(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        drawn = poutine.trace(guide).get_trace(*args, **kwargs)
        trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
    check_nothing_subsampled(trace, "diagnose it on the whole data (no subsample_size)")


def check_program(model: Callable, guide: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """The same for a guide that is not an :class:`~vi_flows.guides.AutoFlow`, at one draw of it, with validation.

    Args:
        model: a Pyro program.
        guide: a guide of it.
        args: the arguments of both.
        kwargs: the keyword arguments of both.

    Raises:
        ValueError: the two have not the same latent sites with the same shapes; an observation lies outside its
            support.
    """
    with poutine.block(), torch.no_grad(), pyro.validation_enabled(True):
        drawn = poutine.trace(guide).get_trace(*args, **kwargs)
        trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
        latents = {name: site for name, site in latent_sites(drawn) if not site["infer"].get("is_auxiliary")}
        given = dict(latent_sites(trace))
        for name, site in given.items():
            if name not in latents and not is_fixed(site["fn"]) and not site["infer"].get("is_auxiliary"):
                raise ValueError(
                    f"the model's latent site {name!r} is not in the guide and would be drawn from the prior: sample "
                    "it in the guide; a discrete one can be summed out in the model (dist.MixtureSameFamily), or by "
                    "an AutoConvFlow of the whole model"
                )
        for name, site in latents.items():
            if name not in given:
                raise ValueError(f"the guide's latent site {name!r} is observed or missing in the model")
            shape, value = given[name]["fn"].shape(), site["value"]
            if tuple(value.shape) != tuple(shape):
                raise ValueError(
                    f"latent site {name!r} has shape {tuple(shape)} in the model, and {tuple(value.shape)} in the guide"
                )
        check_observations(trace)
        possible = PossibleWhereMasked(trace)
        compute_log_prob(trace, possible)


def check_density(guide: Callable, model: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse guides that give a point where the model has a density: their draws can't be weighed.

    Args:
        guide: a guide.
        model: its model.
        args: the arguments of both.
        kwargs: the keyword arguments of both.

    Raises:
        ValueError: a latent site has the same value in two draws.
    """
    with poutine.block(), torch.no_grad():
        first, second = (poutine.trace(guide).get_trace(*args, **kwargs) for _ in range(2))
        given = dict(latent_sites(poutine.trace(poutine.replay(model, trace=first)).get_trace(*args, **kwargs)))
    for name, site in latent_sites(first):
        if name not in given or not is_fixed(site["fn"]) or is_fixed(given[name]["fn"]) or not site["value"].numel():
            continue
        if torch.equal(site["value"], nodes(second)[name]["value"]):
            raise ValueError(
                f"the guide's site {name!r} is a point, which has no density to weigh: diagnose a guide with a spread "
                "(for Pyro's AutoLaplaceApproximation, that of its laplace_approximation())"
            )


def parameters_of(program: Callable, trace: Trace) -> list[Tensor]:
    """The trainable parameters of a program, unconstrained, each once.

    Args:
        program: a module, whose parameters count, or a function.
        trace: of a run of it: its ``pyro.param`` statements count too.
    """
    found = {id(p): p for p in module_of(program).parameters()}
    for site in nodes(trace).values():
        if site["type"] == "param":
            value = site["value"]
            leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
            found.setdefault(id(leaf), leaf)
    return [p for p in found.values() if p.requires_grad]


def _sample_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    return ((name, site) for name, site in nodes(trace).items() if site["type"] == "sample")


def _check_same(trace: Trace, again: Trace) -> None:
    """Refuse a density that differs between two runs at the same values of all that can be seen."""
    random = []
    total, size = torch.zeros(()), torch.zeros(())
    for name, site in _sample_sites(trace):
        first = torch.as_tensor(site["unscaled_log_prob"])
        second = torch.as_tensor(again.nodes[name]["unscaled_log_prob"])
        if not torch.allclose(first, second, rtol=1e-5, equal_nan=True):
            random.append(name)
            total = total + (torch.as_tensor(site["log_prob_sum"]) - again.nodes[name]["log_prob_sum"])
            size = (
                size
                + torch.as_tensor(site["log_prob_sum"]).abs()
                + torch.as_tensor(again.nodes[name]["log_prob_sum"]).abs()
            )
    # Several that differ may make up for each other, as the sites of Pyro's ConjugateReparam do.
    if random and not (len(random) > 1 and bool(total.abs() <= 1e-5 * size)):
        names = ", ".join(map(repr, random))
        raise ValueError(
            f"the density of site {names} is random at fixed values of the guide's sites: the model draws sites that "
            "are hidden from the guide (poutine.block) or have no name (a distribution called without pyro.sample), "
            "has layers such as dropout, or draws its data anew. Pass the model itself, whose discrete sites are "
            "summed out, name what it draws, leave continuous ones to the guide, switch such layers to evaluation, and "
            "draw data once, outside of the model."
        )


def _check_latents(prototype: Trace, trace: Trace, dependent: Collection[str]) -> None:
    mine = dict(stochastic_nodes(prototype))
    given = {name: site for name, site in latent_sites(trace) if name in mine or not is_fixed(site["fn"])}
    # Discrete ones are summed out, or refused, by the log joint density.
    given = {name: site for name, site in given.items() if name in mine or not is_discrete(site["fn"])}
    extra = [name for name in given if name not in mine]
    if extra:
        raise ValueError(
            f"the model's continuous latent sites {', '.join(map(repr, extra))} are not in the guide and would be "
            "drawn from the prior: build the guide for the model with them"
        )
    lost = [name for name in mine if name not in given]
    if lost:
        raise ValueError(
            f"the guide's latent sites {lost} are observed or missing in the model given: build a new guide for this "
            "model and these data"
        )
    for name, site in given.items():
        # The value comes from the guide: the distribution says what the model wants.
        shape, had = site["fn"].shape(), mine[name]["fn"].shape()
        if shape != had:
            raise ValueError(
                f"latent site {name!r} has shape {tuple(shape)}, the guide was built for {tuple(had)}: build a new "
                "guide for these data"
            )
        if name not in dependent and not same_support(site["fn"].support, mine[name]["fn"].support):
            raise ValueError(
                f"the support of latent site {name!r} is not the one that the guide was built for: build a new guide "
                "with these arguments, or, if it was built with them, so that the support depends on other latents, "
                f"{within_fixed_bounds(name)}"
            )
        check_support(name, site["fn"])
