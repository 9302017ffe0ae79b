"""A fitted guide as an ``xarray.DataTree`` in ArviZ's layout."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine import Trace
from torch import Tensor

import vi_flows
from vi_flows.evaluation.psis import psis
from vi_flows.guides.alone import preserved_generators
from vi_flows.guides.auto_flow import AutoFlow
from vi_flows.guides.given import check_model
from vi_flows.guides.layout import SAMPLE_DIMS, Layout
from vi_flows.guides.observations import PossibleWhereMasked, counted
from vi_flows.guides.over_draws import OverDraws
from vi_flows.guides.resampling import resampled_indices
from vi_flows.guides.right_draws import DrawnAnew, can_be_drawn
from vi_flows.guides.sites import check_nothing_subsampled, is_fixed
from vi_flows.settings import check_counts
from vi_flows.traces import Site, is_deterministic, is_subsample, nodes

if TYPE_CHECKING:
    from xarray import Dataset, DataTree

__all__ = ["datatree"]

AT_ONCE = 250
"""Draws that the model is run for in one pass."""

NAMELESS = ("unconstrained_posterior", "sample_stats")
"""Groups whose arrays have not the dimensions of the model's sites."""


def datatree(
    model: Callable,
    guide: Callable,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    num_draws: int = 1000,
    num_chains: int = 4,
    seed: int | None = 0,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> DataTree:
    """Draws of a guide, and what the model says of them, in ArviZ's groups.

    - ``posterior``: the guide's draws, and the model's ``pyro.deterministic`` values. They are independent; they are
      laid out as chains for ArviZ's sake alone.
    - ``unconstrained_posterior``: the same draws on the real line.
    - ``posterior_resampled``: importance resampling of them by Pareto-smoothed weights
      (:func:`~vi_flows.guides.resampling.resampled_indices`).
    - ``log_likelihood``: of every element of the observed sites, without the model's scales. Elements that are masked
      out, or gaps of a ``NanMaskedNormal``, are left out, and rows of them with their labels, so that ``arviz.loo``
      counts what the model counts (it can't leave out NaN); where the others are no block, they are one dimension
      ``y_kept``. What a mask takes out at some draws only has a log-likelihood of zero there.
    - ``posterior_predictive``: the observed sites drawn anew, one data set a draw, in the shape of the observed one,
      with what is masked out; ``tree.sel(rows=tree["log_likelihood"]["rows"])`` has the rows that count in all groups.
    - ``observed_data``, with what is masked out.
    - ``sample_stats``: ``lp``, ``log_q`` (the log joint density and the guide's, on the real line; nats),
      ``log_weight`` (smoothed, normalised), and the scalars ``k_hat`` and ``ess``.

    Dimensions have the names of the model's plates where they are those of one; ArviZ's (``theta_dim_0``) else.

    Args:
        model: the Pyro program that was fitted.
        guide: a fitted :class:`~vi_flows.guides.AutoFlow`.
        args: arguments of the model; the whole data.
        kwargs: keyword arguments of the model.
        num_draws: of each chain.
        num_chains: chains.
        seed: of the draws; the global generators are left as they were.
        dims: names of a site's dimensions, instead of the plates'.
        coords: labels of a dimension.

    Raises:
        ImportError: xarray, of the extra ``arviz``, is not installed.
        TypeError: the guide is none whose joint draws can be weighed.
        ValueError: the model subsamples its data, or is none that the guide can answer for; ``dims`` or ``coords``
            name what is not there, or as many as are not there; a site has a name that xarray can't hold.
    """
    try:
        import xarray
    except ImportError as error:
        raise ImportError("to_datatree needs xarray: pip install 'vi_flows[arviz]'") from error
    if not isinstance(guide, AutoFlow):
        raise TypeError(f"to_datatree weighs joint draws of a flow guide (AutoFlow), not of {type(guide).__name__}")
    check_counts(1, num_draws=num_draws, num_chains=num_chains)
    kwargs = dict(kwargs or {})
    with preserved_generators(seed), torch.no_grad(), poutine.block():
        check_model(model, guide, args, kwargs)
        median = guide.median()
        prototype = poutine.trace(poutine.condition(model, data=median)).get_trace(*args, **kwargs)
        check_nothing_subsampled(prototype, "give to_datatree the whole data (no subsample_size)")
        layout = Layout(prototype, dims or {}, coords or {})
        hidden = sorted(_latents(prototype) - set(median))
        layout.check_names(n for n, s in layout.sites.items() if n not in hidden and not isinstance(s["fn"], Unit))
        total = num_chains * num_draws
        log_density = guide.exact_log_density_of(model, *args, **kwargs)
        noise = guide.get_base_dist().sample((total,))
        x, ladj = guide.get_transform().forward_and_ladj(noise)
        log_q = guide.get_base_dist().log_prob(noise) - ladj
        log_p = torch.cat([log_density(part) for part in x.split(AT_ONCE)])
        values, _ = guide.constrain(x)
        groups: dict[str, Mapping[str, Tensor]] = {"posterior": values, "unconstrained_posterior": guide.split(x)}
        if hidden:
            warnings.warn(
                f"the sites {hidden} are not in the guide: log_likelihood, posterior_predictive and deterministic "
                "values, which would need them, are left out",
                stacklevel=3,
            )
        else:
            joint, dtype = guide.exact_joint_of(model, *args, **kwargs)
            # Validation refuses the gaps that a mask is there for.
            with joint.within(), pyro.validation_enabled(False):
                runs = _by_draw(
                    model,
                    partial(_scored, PossibleWhereMasked(prototype, values)(model), args, kwargs),
                    {name: value.to(dtype) for name, value in values.items()},
                )
            counting = {k[1]: v.any(0).cpu().numpy() for k, v in runs.items() if k[0] == "counted"}
            groups["posterior"] = {**values, **{k[1]: v for k, v in runs.items() if k[0] == "deterministic"}}
            groups["log_likelihood"] = {
                name: runs["log_likelihood", name] for name, some in counting.items() if some.any()
            }
            observations = _observed(prototype, values)
            undrawn = [n for n, site in observations.items() if not can_be_drawn(site["fn"], site["value"])]
            if undrawn:
                warnings.warn(
                    f"the distributions of {undrawn} have no draws in Pyro: posterior_predictive leaves them out, and "
                    "what follows from them is drawn given their observations",
                    stacklevel=3,
                )
            names = [name for name in observations if name not in undrawn]
            groups["posterior_predictive"] = _by_draw(
                model, partial(_predicted, DrawnAnew(undrawn)(model), args, kwargs, names), values
            )
        log_weights = log_p - log_q
        smoothed = psis(log_weights)
        chosen = resampled_indices(log_weights, total)
        groups["posterior_resampled"] = {name: value[chosen] for name, value in groups["posterior"].items()}
        groups["sample_stats"] = {"lp": log_p, "log_q": log_q, "log_weight": smoothed.log_weights}
    shape = (num_chains, num_draws)
    tree: dict[str, Dataset] = {}
    for group, arrays in groups.items():
        drawn = {name: value.detach().cpu().numpy().reshape(*shape, *value.shape[1:]) for name, value in arrays.items()}
        if group == "log_likelihood" and drawn:
            tree[group] = layout.dataset(drawn, SAMPLE_DIMS, events=False, counted=counting)
        elif drawn:
            tree[group] = layout.dataset(drawn, SAMPLE_DIMS, named=group not in NAMELESS)
    observed = {name: site["value"].detach().cpu().numpy() for name, site in _observed(prototype, values).items()}
    if observed:
        tree["observed_data"] = layout.dataset(observed, ())
    layout.check_coords()
    tree["sample_stats"]["k_hat"] = ((), float(smoothed.k_hat))
    tree["sample_stats"]["ess"] = ((), float(smoothed.ess))
    for dataset in tree.values():
        dataset.attrs |= {"inference_library": "vi_flows", "inference_library_version": vi_flows.__version__}
    return xarray.DataTree.from_dict(tree)


def _scored(
    model: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Mapping[str, Tensor]
) -> dict[tuple[str, str], Tensor]:
    """Log-likelihoods of the observed elements, which of them count, and deterministic values, at one draw."""
    trace = poutine.trace(poutine.condition(model, data=dict(values))).get_trace(*args, **kwargs)
    found: dict[tuple[str, str], Tensor] = {}
    for name, site in _observed(trace, values).items():
        log_prob = site["fn"].log_prob(site["value"])
        found["counted", name] = counted(site).to(log_prob.device).expand(log_prob.shape)
        found["log_likelihood", name] = torch.where(found["counted", name], log_prob, torch.zeros_like(log_prob))
    return found | {
        ("deterministic", name): site["value"]
        for name, site in nodes(trace).items()
        if site["type"] == "sample" and _is_computed(site)
    }


def _predicted(
    model: Callable,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    names: Sequence[str],
    values: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The observed sites at one draw, by a model that draws them."""
    trace = poutine.trace(poutine.condition(model, data=dict(values))).get_trace(*args, **kwargs)
    return {name: nodes(trace)[name]["value"] for name in names}


def _by_draw(
    model: Callable, run: Callable[[Mapping[str, Tensor]], dict[Any, Tensor]], values: Mapping[str, Tensor]
) -> dict[Any, Tensor]:
    """The results of ``run`` for every draw, many at once where the model allows."""
    size = len(next(iter(values.values())))
    parts: list[dict[Any, Tensor]] = []
    over_draws = OverDraws(model, randomness="different")
    for start in range(0, size, AT_ONCE):
        parts.append(over_draws(run, {name: value[start : start + AT_ONCE] for name, value in values.items()}))
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _observed(trace: Trace, latents: Iterable[str]) -> dict[str, Site]:
    """Observed sites with data: not the latents given to the run, nor a ``pyro.factor``, which has none."""
    return {
        name: site
        for name, site in nodes(trace).items()
        if site["type"] == "sample"
        and site["is_observed"]
        and name not in latents
        and not _is_computed(site)
        and not isinstance(site["fn"], Unit)
    }


def _is_computed(site: Site) -> bool:
    """Whether the model computes the value: ``pyro.deterministic``, or a reparametrisation's observed ``Delta``."""
    return is_deterministic(site) or (site["is_observed"] and is_fixed(site["fn"]))


def _latents(trace: Trace) -> set[str]:
    return {
        name
        for name, site in nodes(trace).items()
        if site["type"] == "sample" and not is_subsample(site) and not site["is_observed"]
    }
