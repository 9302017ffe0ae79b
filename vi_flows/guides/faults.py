"""Whose fault it is: errors and infinite densities of a Pyro program by the name of the site that they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import biject_to

from vi_flows.guides.observations import check_observations
from vi_flows.guides.sites import latent_sites, left_to_the_model
from vi_flows.guides.supports import same_support
from vi_flows.traces import is_subsample, nodes

__all__ = ["check_observed_supports", "faults_named", "sites_without_density"]

Draw = Callable[[], Mapping[str, Tensor]]


@contextmanager
def faults_named(program: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Replace errors of a program's first runs that name no site, where one of its sites is the reason.

    Args:
        program: a Pyro program.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Raises:
        ValueError: no map leads from the real line to the support of a latent site, or an observed value lies outside
            of its support; any other error is raised as it is.
    """
    try:
        yield
    except (NotImplementedError, ValueError):
        try:
            # Distributions check their parameters, which may be the values at fault.
            with poutine.block(), torch.no_grad(), pyro.validation_enabled(False):
                trace = poutine.trace(program).get_trace(*args, **kwargs)
        except Exception:  # the program is broken in another way, and its own error says how
            trace = Trace()
        for name, site in latent_sites(trace):
            if not left_to_the_model(site["fn"]):
                _check_map(name, site["fn"])
        check_observations(trace)
        raise


def _check_map(name: str, fn: Any) -> None:
    try:
        biject_to(fn.support)
    except NotImplementedError as error:
        raise ValueError(
            f"latent site {name!r} ({type(fn).__name__}) has a support that no map from the real line leads to "
            f"({error}): sample what it is made of as sites of their own (a covariance from a dist.LKJCholesky and "
            f"scales, a mixture from its components), and compute {name} from them"
        ) from error


def check_observed_supports(model: Callable, draw: Draw, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse observations whose supports move with the latents and leave them: ``y ~ Uniform(0, theta)``.

    The posterior then ends within the supports of the latents, where a smooth density on them can't end.

    Args:
        model: a Pyro program.
        draw: gives values of its latent sites.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Raises:
        ValueError: some of 32 draws leave an observation outside of its support; names the site.
    """
    first, second = (_run(model, draw(), args, kwargs) for _ in range(2))
    moving = [name for name, fn in _observed(first).items() if _moved(fn, _observed(second).get(name))]
    for _ in range(32 if moving else 0):
        trace = _run(model, draw(), args, kwargs)
        for name in moving:
            site = nodes(trace)[name]
            if bool((site["fn"].log_prob(site["value"]) == -torch.inf).any()):
                raise ValueError(
                    f"the support of observed site {name!r} depends on the latents, and at some of the guide's draws "
                    "the observation lies outside, so that the posterior ends where no guide's density does: give the "
                    "latent a support that keeps to the data, for instance "
                    "theta = y.max() + pyro.sample('excess', …) for y ~ Uniform(0, theta)"
                )


def sites_without_density(model: Callable, draw: Draw, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Which sites have no finite log density at draws of the latents, in words; empty if none has.

    Args:
        model: a Pyro program.
        draw: gives values of its latent sites.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    counts: dict[str, int] = {}
    for _ in range(32):
        for name, site in nodes(_run(model, draw(), args, kwargs)).items():
            if site["type"] == "sample" and not is_subsample(site):
                finite = torch.isfinite(torch.as_tensor(site["fn"].log_prob(site["value"]))).all()
                counts[name] = counts.get(name, 0) + int(not bool(finite))
    return ", ".join(f"{name!r} ({count} of 32 draws)" for name, count in counts.items() if count)


def _run(model: Callable, values: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Trace:
    known = poutine.condition(model, data=dict(values))
    with poutine.block(), torch.no_grad(), pyro.validation_enabled(False):
        return poutine.trace(known).get_trace(*args, **kwargs)


def _observed(trace: Trace) -> dict[str, Any]:
    sites = nodes(trace).items()
    return {n: s["fn"] for n, s in sites if s["type"] == "sample" and s["is_observed"] and not is_subsample(s)}


def _moved(fn: Any, other: Any) -> bool:
    try:
        return other is not None and not same_support(fn.support, other.support)
    except NotImplementedError:
        return False
