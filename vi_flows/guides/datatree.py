"""A fitted guide as an ``xarray.DataTree`` in ArviZ's layout."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine import Trace
from torch import Tensor

import vi_flows
from vi_flows.evaluation.psis import psis
from vi_flows.guides.auto_flow import AutoFlow
from vi_flows.guides.given import check_model, preserved_generators
from vi_flows.guides.over_draws import OverDraws
from vi_flows.guides.resampling import resampled_indices
from vi_flows.guides.right_draws import DrawnAnew
from vi_flows.guides.sites import check_nothing_subsampled, is_fixed
from vi_flows.settings import check_counts
from vi_flows.traces import Site, is_subsample, nodes

if TYPE_CHECKING:
    from xarray import Dataset, DataTree

__all__ = ["datatree"]

AT_ONCE = 250
"""Draws that the model is run for in one pass."""

Arrays = dict[str, np.ndarray]


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
    - ``log_likelihood``: of every element of the observed sites, without the model's scales and masks.
    - ``posterior_predictive``: the observed sites drawn anew, one data set a draw.
    - ``observed_data``.
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
        ValueError: the model subsamples its data, or is none that the guide can answer for.
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
        prototype = poutine.trace(poutine.condition(model, data=guide.median())).get_trace(*args, **kwargs)
        check_nothing_subsampled(prototype, "give to_datatree the whole data (no subsample_size)")
        total = num_chains * num_draws
        log_density = guide.exact_log_density_of(model, *args, **kwargs)
        noise = guide.get_base_dist().sample((total,))
        x, ladj = guide.get_transform().forward_and_ladj(noise)
        log_q = guide.get_base_dist().log_prob(noise) - ladj
        log_p = torch.cat([log_density(part) for part in x.split(AT_ONCE)])
        values, _ = guide.constrain(x)
        hidden = sorted(_latents(prototype) - set(values))
        groups: dict[str, Mapping[str, Tensor]] = {"posterior": values, "unconstrained_posterior": guide.split(x)}
        if hidden:
            warnings.warn(
                f"the sites {hidden} are not in the guide: log_likelihood, posterior_predictive and deterministic "
                "values, which would need them, are left out",
                stacklevel=3,
            )
        else:
            joint, dtype = guide.exact_joint_of(model, *args, **kwargs)
            with joint.within():
                runs = _by_draw(
                    partial(_scored, model, args, kwargs), {name: value.to(dtype) for name, value in values.items()}
                )
            groups["posterior"] = {**values, **{k[1]: v for k, v in runs.items() if k[0] == "deterministic"}}
            groups["log_likelihood"] = {k[1]: v for k, v in runs.items() if k[0] == "log_likelihood"}
            groups["posterior_predictive"] = _by_draw(
                partial(_predicted, model, args, kwargs, list(_observed(prototype, values))), values
            )
        log_weights = log_p - log_q
        smoothed = psis(log_weights)
        chosen = resampled_indices(log_weights, total)
        groups["posterior_resampled"] = {name: value[chosen] for name, value in groups["posterior"].items()}
        groups["sample_stats"] = {"lp": log_p, "log_q": log_q, "log_weight": smoothed.log_weights}
    layout = _Layout(prototype, dims or {}, coords or {})
    shape = (num_chains, num_draws)
    tree: dict[str, Dataset] = {}
    for group, arrays in groups.items():
        drawn = {name: value.detach().cpu().numpy().reshape(*shape, *value.shape[1:]) for name, value in arrays.items()}
        if drawn:
            tree[group] = layout.dataset(drawn, ("chain", "draw"), named=group != "unconstrained_posterior")
    observed = {name: site["value"].detach().cpu().numpy() for name, site in _observed(prototype, values).items()}
    if observed:
        tree["observed_data"] = layout.dataset(observed, ())
    tree["sample_stats"]["k_hat"] = ((), float(smoothed.k_hat))
    tree["sample_stats"]["ess"] = ((), float(smoothed.ess))
    for dataset in tree.values():
        dataset.attrs |= {"inference_library": "vi_flows", "inference_library_version": vi_flows.__version__}
    return xarray.DataTree.from_dict(tree)


def _scored(
    model: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Mapping[str, Tensor]
) -> dict[tuple[str, str], Tensor]:
    """Log-likelihoods of the observed elements, and deterministic values, at one draw."""
    trace = poutine.trace(poutine.condition(model, data=dict(values))).get_trace(*args, **kwargs)
    found = {
        ("log_likelihood", name): site["fn"].log_prob(site["value"]) for name, site in _observed(trace, values).items()
    }
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
    """The observed sites, drawn anew at one draw."""
    drawn = poutine.condition(DrawnAnew()(model), data=dict(values))
    trace = poutine.trace(drawn).get_trace(*args, **kwargs)
    return {name: nodes(trace)[name]["value"] for name in names}


def _by_draw(
    run: Callable[[Mapping[str, Tensor]], dict[Any, Tensor]], values: Mapping[str, Tensor]
) -> dict[Any, Tensor]:
    """The results of ``run`` for every draw, many at once where the model allows."""
    size = len(next(iter(values.values())))
    parts: list[dict[Any, Tensor]] = []
    over_draws = OverDraws(randomness="different")
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
    return bool(site["infer"].get("_deterministic")) or (site["is_observed"] and is_fixed(site["fn"]))


def _latents(trace: Trace) -> set[str]:
    return {
        name
        for name, site in nodes(trace).items()
        if site["type"] == "sample" and not is_subsample(site) and not site["is_observed"]
    }


class _Layout:
    """Names of dimensions: given ones, those of the model's plates, or ArviZ's."""

    def __init__(self, trace: Trace, dims: Mapping[str, Sequence[str]], coords: Mapping[str, Sequence[Any]]) -> None:
        self.sites = nodes(trace)
        self.dims, self.coords = dims, coords

    def dataset(self, arrays: Arrays, sample_dims: tuple[str, ...], named: bool = True) -> Dataset:
        import xarray

        variables: dict[str, Any] = {}
        sizes: dict[str, int] = {}
        for name, value in arrays.items():
            shape = value.shape[len(sample_dims) :]
            names = self._names(name, len(shape)) if named else [f"{name}_dim_{i}" for i in range(len(shape))]
            for i, (dim, size) in enumerate(zip(names, shape, strict=True)):
                # A dimension of another length, or of a variable's name, is not that dimension.
                if sizes.setdefault(dim, size) != size or dim in arrays:
                    names[i] = f"{name}_dim_{i}"
            sizes |= dict(zip(names, shape, strict=True))
            variables[name] = ((*sample_dims, *names), value)
        used = {dim for names, _ in variables.values() for dim in names}
        index = {dim: np.arange(n) for dim, n in zip(sample_dims, next(iter(arrays.values())).shape, strict=False)}
        index |= {dim: np.arange(size) for dim, size in sizes.items() if dim in used}
        index |= {dim: np.asarray(labels) for dim, labels in self.coords.items() if dim in used}
        return xarray.Dataset(variables, coords=index)

    def _names(self, name: str, count: int) -> list[str]:
        if name in self.dims:
            if len(self.dims[name]) != count:
                raise ValueError(f"dims of {name!r}: {len(self.dims[name])} names for {count} dimensions")
            return list(self.dims[name])
        names = [f"{name}_dim_{i}" for i in range(count)]
        site = self.sites.get(name)
        if site is not None and site["type"] == "sample":
            batch = count - site["fn"].event_dim
            if site["infer"].get("_deterministic"):
                batch = count
            for frame in site["cond_indep_stack"]:
                if frame.vectorized and 0 <= batch + frame.dim < count:
                    names[batch + frame.dim] = frame.name
        return names
