"""What a guide must know of its model's first run before it builds parameters for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from pyro.poutine import Trace, block, trace
from torch import nn
from torch.distributions import biject_to

from vi_flows.guides.site_maps import MapsOfTheProgram
from vi_flows.guides.sites import is_discrete, is_fixed, latent_sites, left_to_the_model
from vi_flows.guides.supports import DependentSupportError, within_fixed_bounds
from vi_flows.traces import stochastic_nodes

__all__ = [
    "NoLatentError", "SubsampledLatentError", "check_densities", "check_maps", "check_plates", "check_precision",
    "latent_names", "maps_of_dependent_sites", "nothing_to_learn", "takes_no_arguments",
]  # fmt: skip


class SubsampledLatentError(ValueError):
    """A latent site lives in a subsampled plate, where one vector of latents can't stand for all of the data."""


class NoLatentError(ValueError):
    """A model leaves nothing to a guide of continuous latents."""


def nothing_to_learn(program: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any], guide: str) -> str:
    """A sentence that says why a model leaves nothing to a guide of continuous latents, and what to do.

    Args:
        program: the model.
        args: its arguments.
        kwargs: its keyword arguments.
        guide: the name of the guide's class.
    """
    with block(), torch.no_grad():
        sites = dict(latent_sites(trace(program).get_trace(*args, **kwargs)))
    discrete = [name for name, site in sites.items() if is_discrete(site["fn"]) and not is_fixed(site["fn"])]
    empty = [name for name, site in sites.items() if not left_to_the_model(site["fn"])]
    if empty:
        return f"the model's continuous latent sites {_listed(empty)} have no entries: nothing is left for {guide}"
    if discrete:
        return (
            f"the model's latent sites {_listed(discrete)} are discrete and would be summed out: nothing is left for "
            f"{guide}; pyro.infer.infer_discrete and TraceEnum_ELBO give their exact posterior"
        )
    given = (
        f"all that it doesn't observe ({_listed(sites)}) is given by a Delta" if sites else "it observes all its sites"
    )
    return f"the model has no latent sites, {given}: nothing is left for {guide}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def check_plates(prototype: Trace, guide: str) -> None:
    """Refuse latents in subsampled plates.

    Args:
        prototype: a trace of the model.
        guide: the name of the guide's class, for the message.

    Raises:
        SubsampledLatentError: there is one.
    """
    for name, site in stochastic_nodes(prototype):
        for frame in site["cond_indep_stack"]:
            if frame.full_size is not None and frame.full_size != frame.size:
                raise SubsampledLatentError(
                    f"latent site {name!r} lives in the subsampled plate {frame.name!r} ({frame.size} of "
                    f"{frame.full_size}): {guide} would learn one value for a place in the "
                    "minibatch, whatever data stand there. Amortise the site instead: hide it from this guide, "
                    f"poutine.block(model, hide=[{name!r}]), and sample it in the same plate of your own guide "
                    "from a vi_flows.guides.AmortizedFlowGuide of the data (combine both with AutoGuideList); or "
                    "run the plate without subsampling."
                )


def check_precision(prototype: Trace) -> None:
    """Refuse latents of half precision, for which PyTorch has no triangular solve, and whose spreads round to nothing.

    Args:
        prototype: a trace of the model.

    Raises:
        ValueError: there is one; names it.
    """
    for name, site in stochastic_nodes(prototype):
        if site["value"].dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"latent site {name!r} is of type {site['value'].dtype}: a guide needs float32 or float64; give the "
                "prior's parameters in float32, and turn the value into another type where the model uses it"
            )


def check_maps(prototype: Trace, unconstrained_shapes: Mapping[str, torch.Size]) -> None:
    """Refuse supports whose map from the real line can't be used for many draws side by side.

    Args:
        prototype: a trace of the model.
        unconstrained_shapes: of every site on the real line.

    Raises:
        ValueError: there is one; names its site.
    """
    for name, site in stochastic_nodes(prototype):
        for size in (1, 2):  # a map along the first dimension may take one of the two for its own
            try:
                values = biject_to(site["fn"].support)(site["value"].new_zeros(size, *unconstrained_shapes[name]))
                reason = f"{size} come out as a tensor of shape {tuple(values.shape)}"
                good = values.shape == (size, *site["value"].shape)
            except (AssertionError, IndexError, RuntimeError, ValueError) as error:
                good, reason = False, f"{type(error).__name__}: {error}"
            if not good:
                raise ValueError(
                    f"the map to the support of latent site {name!r} can't be used for draws along a first dimension "
                    f"({reason}): count the dimensions of its constraints and transforms from the right (dim=-1)"
                )


def check_densities(prototype: Trace) -> None:
    """Refuse densities that can be evaluated only at values which the distribution itself drew: a guide draws others.

    Args:
        prototype: a trace of the model.

    Raises:
        ValueError: there is one, such as that of a planar transform, which has no inverse; names its site.
    """
    for name, site in stochastic_nodes(prototype):
        try:
            # A copy, which no transform remembers the origin of. A value outside of its support is another check's.
            with suppress(ValueError):
                site["fn"].log_prob(site["value"].clone())
        except (KeyError, NotImplementedError) as error:
            raise ValueError(
                f"the density of latent site {name!r} can't be evaluated at a value that was not drawn from it "
                f"({type(error).__name__}: {error.args[0] if error.args else 'no more is said'}): where a transform "
                f"without an inverse makes it, sample what is transformed and compute {name} by pyro.deterministic"
            ) from error


def maps_of_dependent_sites(
    prototype: Trace,
    dependent: Sequence[str],
    unconstrained_shapes: dict[str, torch.Size],
    program: Callable,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> MapsOfTheProgram:
    """The maps to the supports of all sites where those of ``dependent`` follow other sites.

    Args:
        prototype: a trace of the model.
        dependent: names of sites.
        unconstrained_shapes: of every site on the real line.
        program: the model.
        args: its arguments.
        kwargs: its keyword arguments.

    Raises:
        DependentSupportError: a support follows a site that is summed out or hidden: it differs from run to run.
    """
    shapes = {name: site["value"].shape for name, site in stochastic_nodes(prototype)}
    maps = MapsOfTheProgram(program, args, kwargs, unconstrained_shapes, shapes)
    latents = {name: torch.zeros(shape) for name, shape in unconstrained_shapes.items()}
    with torch.random.fork_rng(devices=[]):
        runs = [maps.constrain(latents)[0] for _ in range(8)]
    for name in dependent:
        if not all(torch.equal(run[name], runs[0][name]) for run in runs):
            raise DependentSupportError(
                f"the support of latent site {name!r} depends on a site that is summed out or hidden, so that no "
                f"map keeps to it: {within_fixed_bounds(name)}"
            )
    return maps


def latent_names(run: Trace) -> set[str]:
    """The sites of a run that are left to a guide of continuous latents."""
    return {name for name, site in latent_sites(run) if not left_to_the_model(site["fn"])}


def takes_no_arguments(model: Callable) -> bool:
    """Whether a program can only be called without arguments, so far as its signature tells."""
    target = model.forward if isinstance(model, nn.Module) else model
    try:
        return not inspect.signature(target).parameters
    except (TypeError, ValueError):
        return False
