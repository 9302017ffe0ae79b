"""Can a model and a guide of one's own be run for many draws in one pass?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from vi_flows.guides.alone import preserved_generators
from vi_flows.guides.promoting import Within, double_precision
from vi_flows.guides.sites import latent_sites
from vi_flows.objectives import ELBO
from vi_flows.traces import is_subsample, nodes

__all__ = ["run_at_once", "run_in_double"]

NUM_DRAWS = 5
"""Runs that are compared: no likely size of a batch of the model's own."""


def run_at_once(model: Callable, guide: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a vectorised pass has the same densities as single runs at the same values.

    Pyro's vectorised particles are one more dimension on the left of all sites. A model that was not written for it
    (``x @ beta``, ``z.sum()``, a batch without a plate) fails, or mixes the particles up without a word.

    Args:
        model: a Pyro program.
        guide: a guide of it.
        args: the arguments of both.
        kwargs: the keyword arguments of both.
    """
    with preserved_generators(0), poutine.block(), torch.no_grad(), pyro.validation_enabled(False):
        single = poutine.trace(guide).get_trace(*args, **kwargs)
        shapes = {n: s["value"].shape for n, s in latent_sites(single) if not s["infer"].get("is_auxiliary")}
        bound = _Traces(NUM_DRAWS, vectorize_particles=True)
        try:
            weights = bound.log_weights(model, guide, *args, **kwargs)
            together = (weights.log_likelihood + weights.log_prior).reshape(NUM_DRAWS, -1).sum(-1)
            drawn = dict(latent_sites(bound.guide_trace))
            values = {name: drawn[name]["value"].reshape(NUM_DRAWS, *shape) for name, shape in shapes.items()}
        except (RuntimeError, ValueError, IndexError, KeyError, AssertionError, NotImplementedError):
            return False
        # Single runs of a subsampled model would draw other rows: they get those of the vectorised pass.
        rows = {n: s["value"] for n, s in nodes(bound.model_trace).items() if s["type"] == "sample" and is_subsample(s)}
        together = together * weights.common_scale
        apart = torch.stack(
            [_density(model, rows | {n: v[i] for n, v in values.items()}, args, kwargs) for i in range(5)]
        )
        return torch.allclose(together, apart, rtol=1e-4, atol=1e-3, equal_nan=True)


def run_in_double(model: Callable, guide: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Within:
    """What a model and its guide run in to be of double precision, where they can be.

    Args:
        model: a Pyro program.
        guide: a guide of it.
        args: the arguments of both.
        kwargs: the keyword arguments of both.

    Returns:
        See :func:`~vi_flows.guides.promoting.double_precision`.
    """
    with preserved_generators(0), poutine.block(), torch.no_grad():
        drawn = dict(latent_sites(poutine.trace(guide).get_trace(*args, **kwargs)))
    values = {name: site["value"] for name, site in drawn.items()}
    dtypes = {value.dtype for value in values.values() if value.is_floating_point()}
    if len(dtypes) != 1:
        return nullcontext

    def evaluate(within: Within, dtype: torch.dtype) -> Tensor:
        given = {n: value.to(dtype) if value.is_floating_point() else value for n, value in values.items()}
        with pyro.validation_enabled(False), within():
            return torch.stack([_density(program, given, args, kwargs) for program in (model, guide)])

    return double_precision(evaluate, dtypes.pop())


class _Traces(ELBO):
    """Keeps the last traces."""

    model_trace: poutine.Trace
    guide_trace: poutine.Trace

    def _get_trace(self, *args: Any, **kwargs: Any) -> Any:
        traces = super()._get_trace(*args, **kwargs)
        self.model_trace, self.guide_trace = traces
        return traces


def _density(model: Callable, values: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    trace = poutine.trace(poutine.condition(model, data=dict(values))).get_trace(*args, **kwargs)
    return torch.as_tensor(trace.log_prob_sum())
