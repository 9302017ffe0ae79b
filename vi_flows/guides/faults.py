"""Whose fault it is: errors and infinite densities of a Pyro program by the name of the site that they come from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import MixtureSameFamily, biject_to, constraints

from vi_flows.guides.observations import PossibleWhereMasked, check_observations, is_possible
from vi_flows.guides.over_draws import OverDraws
from vi_flows.guides.sites import innermost, is_discrete, latent_sites, left_to_the_model
from vi_flows.guides.supports import computes_its_support, demands
from vi_flows.traces import Site, is_subsample, nodes
from vi_flows.transforms.regions import beyond, is_real, same_support

__all__ = [
    "check_distribution_parameters",
    "check_observed_supports",
    "check_shape_of_density",
    "compute_log_prob",
    "faults_named",
    "run_at",
    "sites_without_density",
]

Draw = Callable[[], Mapping[str, Tensor]]

TOLERATED = 0.01
"""The share of draws at which a parameter may lie outside its constraint: by rounding, far out in the tails."""

OBSERVED_WAYS = {
    "LinearHMM": "have one, as poutine.reparam(model, {site: pyro.infer.reparam.LinearHMMReparam(…)}) does",
}
"""What Pyro has for observed sites without a density; its other reparameterizers are of latents."""


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
    except (NotImplementedError, ValueError) as fault:
        seen = _Sites()
        trace = Trace()
        # The program may be broken in another way, and its own error says how.
        # Distributions check their parameters, which may be the values at fault.
        with suppress(Exception), poutine.block(), torch.no_grad(), pyro.validation_enabled(False), seen:
            trace = poutine.trace(program).get_trace(*args, **kwargs)
        for name, fn in seen.latents.items():
            if repr(name) not in str(fault):  # Pyro has a way out of its own for spheres
                _check_map(name, fn)
        check_observations(trace)
        raise


class _Sites(Messenger):
    """The distributions of latent sites before anything is drawn from them, which not all of them can do."""

    def __init__(self) -> None:
        super().__init__()
        self.latents: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not is_subsample(msg) and not left_to_the_model(msg["fn"]):
            self.latents.setdefault(msg["name"], msg["fn"])


def _check_map(name: str, fn: Any) -> None:
    try:
        biject_to(fn.support)
    except NotImplementedError as error:
        why = str(error) or "it declares none"
        raise ValueError(
            f"latent site {name!r} ({type(fn).__name__}) has a support that no map from the real line leads to "
            f"({why}): sample what it is made of as sites of their own (a covariance from a dist.LKJCholesky and "
            f"scales, a mixture from its components), and compute {name} from them"
        ) from error


def check_observed_supports(model: Callable, draw: Draw, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse observations that leave their supports at some latents: ``Uniform(0, theta)`` or ``y - theta``.

    The posterior then ends within the supports of the latents, where a smooth density on them can't end.

    Args:
        model: a Pyro program.
        draw: gives values of its latent sites.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Raises:
        ValueError: some of 32 draws leave an observation outside of its support; names the site.
    """
    (first, start), (_, others) = (_run_at_draw(model, draw(), args, kwargs) for _ in range(2))
    # A bound may follow the latents beyond a threshold alone, which two draws need not show.
    computed = [name for name, site in start.items() if computes_its_support(site["fn"])]
    # Counts that a discrete latent rules out have probability 0, and leave the sum over it.
    counts = not any(is_discrete(site["fn"]) for _, site in latent_sites(first))
    leaving = [name for name, site in start.items() if _demands_moved(site, others.get(name), counts)]
    seen: dict[str, list[tuple[bool, bool]]] = {name: [] for name in start if name in computed or name in leaving}
    for _ in range(32 if seen else 0):
        _, sites = _run_at_draw(model, draw(), args, kwargs)
        for name in seen.keys() & sites.keys():
            site = sites[name]
            if name in leaving and not is_possible(site):
                raise _ends_within(name)
            seen[name].append((_moved(site, start[name]), name in computed and _is_impossible(site)))
    for name, flags in seen.items():
        if any(moved for moved, _ in flags) and any(none for _, none in flags):
            raise _ends_within(name)


def _ends_within(name: str) -> ValueError:
    return ValueError(
        f"the support of observed site {name!r} depends on the latents, or its value does, and at some of the guide's "
        "draws the observation lies outside, so that the posterior ends where no guide's density does: give the latent "
        "a support that keeps to the data, for instance theta = y.max() + pyro.sample('excess', …) for y ~ Uniform(0, "
        "theta)"
    )


def compute_log_prob(trace: Trace, possible: PossibleWhereMasked) -> None:
    """Compute the log densities of a trace's sites.

    Args:
        trace: a run of the model.
        possible: what stands where a mask hides values without a density.

    Raises:
        ValueError: a site has none at its value; names it.
    """
    possible.amend(trace)
    try:
        trace.compute_log_prob()
    except (RuntimeError, TypeError, IndexError) as error:
        _name_its_site(trace, error)
        raise


def _name_its_site(trace: Trace, error: Exception) -> None:
    """Raise PyTorch's error of a density (whole numbers where it needs others, for instance) with the site's name."""
    for name, site in nodes(trace).items():
        if site["type"] != "sample":
            continue
        fn, value = site["fn"], site["value"]
        try:
            fn.log_prob(value, *site["args"], **site["kwargs"])
        except type(error) as fault:
            kind = type(innermost(fn)).__name__
            is_whole = isinstance(value, Tensor) and not value.is_floating_point()
            what = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            if isinstance(fault, NotImplementedError):
                raise ValueError(
                    f"site {name!r} ({kind}) can be drawn but has no density ({fault}): write it by distributions that "
                    + OBSERVED_WAYS.get(kind, "have one")
                ) from fault
            raise ValueError(
                f"site {name!r} ({kind}) has no density at its value, {what}: {error}"
                + ("; give it floating-point numbers (.float())" if is_whole else "")
            ) from fault


def check_shape_of_density(trace: Trace) -> None:
    """Refuse sites whose ``log_prob`` has not one entry an element of the batch: it would be counted several times.

    Args:
        trace: a run of the model, with its log densities.

    Raises:
        ValueError: names the site and the two shapes.
    """
    for name, site in nodes(trace).items():
        if site["type"] != "sample" or is_subsample(site):
            continue
        fn, value = site["fn"], site["value"]
        batch = torch.broadcast_shapes(fn.batch_shape, value.shape[: value.dim() - fn.event_dim])
        got = torch.as_tensor(site["unscaled_log_prob"]).shape
        # Without an event of its own, a Delta's log_density may be of fewer elements.
        if len(got) > len(batch) or torch.broadcast_shapes(got, batch) != batch:
            raise ValueError(
                f"site {name!r} ({type(innermost(fn)).__name__}) has a log_prob of shape {tuple(got)} for a batch of "
                f"shape {tuple(batch)}: its density would be counted more than once. Sample its parts as sites of "
                "their own, or give it a log_prob that sums over the event"
            )


def check_distribution_parameters(
    model: Callable, values: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Refuse programs whose distributions get impossible parameters at draws of the guide: ``Bernoulli(1.2)``.

    Without validation such a parameter gives some number or other (probabilities are clamped), or NaN; Pyro's own loop
    refuses it.

    Args:
        model: a Pyro program.
        values: draws of its latent sites, along the first dimension.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Raises:
        ValueError: at any draw beyond a bound, or at more than one in a hundred (rounding far out in the tails takes a
            scale to 0, a matrix out of the definite ones); names the site, the parameter and a value.
    """

    def possible(draw: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
        found = _parameters(run_at(model, draw, args, kwargs))
        return {key: torch.stack([c.check(v).all(), ~beyond(c, v).any()]) for key, (v, c) in found.items()}

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what vmap says of checks that it does one by one
            found = OverDraws(model)(possible, values)
    except (RuntimeError, ValueError, NotImplementedError):
        return  # some draw has no run at all, which its own error says where it matters
    for (name, parameter), (good, near) in ((key, flags.unbind(-1)) for key, flags in found.items()):
        if bool(near.all()):
            if float((~good).float().mean()) <= TOLERATED:
                continue
        else:
            good = near
        draw = {site: value[int(good.long().argmin())] for site, value in values.items()}
        try:
            with poutine.block(), torch.no_grad(), pyro.validation_enabled(True):
                poutine.trace(poutine.condition(model, data=draw)).get_trace(*args, **kwargs)
        except ValueError as error:
            value, constraint = _parameters(run_at(model, draw, args, kwargs))[name, parameter]
            bad = constraint.check(value)
            first = value.expand(bad.shape + value.shape[bad.dim() :])[~bad][0]
            raise ValueError(
                f"site {name!r} has a parameter {parameter} outside of {constraint} at some of the guide's draws "
                f"({first.tolist()}): its latents reach values that the model has no density for. Give them supports "
                "or a map (exp, softplus, sigmoid) that keep the parameter within"
            ) from error


def sites_without_density(
    model: Callable, values: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str:
    """Which sites have no finite log density at draws of the latents, in words; empty if none has.

    Args:
        model: a Pyro program.
        values: draws of its latent sites, along the first dimension; up to 32 are looked at.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    counts: dict[str, int] = {}
    size = min(32, len(next(iter(values.values()))))
    for index in range(size):
        draw = {name: value[index] for name, value in values.items()}
        for name, site in nodes(run_at(model, draw, args, kwargs)).items():
            if site["type"] == "sample" and not is_subsample(site):
                finite = torch.isfinite(torch.as_tensor(site["fn"].log_prob(site["value"]))).all()
                counts[name] = counts.get(name, 0) + int(not bool(finite))
    return ", ".join(f"{name!r} ({count} of {size} draws)" for name, count in counts.items() if count)


def run_at(model: Callable, values: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Trace:
    """A run of a model, without validation, at values of its latents."""
    known = poutine.condition(model, data=dict(values))
    with poutine.block(), torch.no_grad(), pyro.validation_enabled(False):
        return poutine.trace(known).get_trace(*args, **kwargs)


def _parameters(trace: Trace) -> dict[tuple[str, str], tuple[Tensor, Any]]:
    """Values and constraints by site and parameter, as the distributions' own validation has them."""
    found = {}
    for name, site in nodes(trace).items():
        if site["type"] != "sample" or is_subsample(site):
            continue
        fn = innermost(site["fn"])
        parts = [fn] if not isinstance(fn, MixtureSameFamily) else [fn.mixture_distribution, fn.component_distribution]
        for part in map(innermost, parts):
            for parameter, constraint in part.arg_constraints.items():
                value = vars(part).get(parameter)
                if isinstance(value, Tensor) and not constraints.is_dependent(constraint):
                    found[name, parameter] = value, constraint
    return found


def _run_at_draw(
    model: Callable, values: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Trace, dict[str, Site]]:
    """A run at values of the latents, and its observed sites, among which Pyro counts those that were given values."""
    trace = run_at(model, values, args, kwargs)
    sites = ((n, s) for n, s in nodes(trace).items() if s["type"] == "sample" and not is_subsample(s))
    return trace, {n: s for n, s in sites if s["is_observed"] and n not in values}


def _moved(site: Site, other: Site | None) -> bool:
    """Whether the site has another support in another run."""
    with suppress(NotImplementedError):
        return other is not None and not same_support(site["fn"].support, other["fn"].support)
    return False


def _is_impossible(site: Site) -> bool:
    with pyro.validation_enabled(False):  # which would raise PyTorch's own error
        return bool((site["fn"].log_prob(site["value"]) == -torch.inf).any())


def _demands_moved(site: Site, other: Site | None, counts: bool) -> bool:
    """Whether the value, or what it is mapped back to, has other bounds in another run, or is another one."""
    if other is None:
        return False
    with suppress(NotImplementedError, KeyError):
        pairs = zip(demands(site["fn"], site["value"]), demands(other["fn"], other["value"]), strict=True)
        for (constraint, value, _), (constraint_there, there, _) in pairs:
            if is_real(constraint) or (constraint.is_discrete and not counts):
                continue
            same = value.shape == there.shape and bool(((value == there) | (value.isnan() & there.isnan())).all())
            if not same or not same_support(constraint, constraint_there):
                return True
    return False
