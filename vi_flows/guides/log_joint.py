"""The log joint density of a Pyro program at many values of its latent variables at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from vi_flows.guides.alone import alone
from vi_flows.guides.enumeration import SummedOut
from vi_flows.guides.masks import MaskedLatents, has_masked_latents
from vi_flows.guides.observations import PossibleWhereMasked
from vi_flows.guides.over_draws import OverDraws
from vi_flows.guides.promoting import Within, double_precision
from vi_flows.guides.sites import is_discrete, is_fixed, latent_sites
from vi_flows.traces import nodes

__all__ = ["LogJoint", "in_double"]

NUM_CHECKS = 4
"""How many random values of the discrete sites a sum over them is compared at."""


class LogJoint:
    r"""``log p(x, z)`` of a model with its arguments, for a batch of values of its latent sites.

    The whole batch is one pass through the model where :func:`torch.func.vmap` can take it
    (:class:`~vi_flows.guides.over_draws.OverDraws`), which needs no plate, no batch dimension and no care on the
    model's side; otherwise the model runs once per value. Scales (subsampling,
    ``poutine.scale``) and masks count as they do in Pyro's ELBO, but for masked latent coordinates that the rest of the
    model does not use: they get their prior (:class:`~vi_flows.guides.masks.MaskedLatents`). Discrete latents without a
    value are summed out (:class:`~vi_flows.guides.enumeration.SummedOut`).

    Args:
        model: a Pyro program.
        args: the model's positional arguments.
        kwargs: the model's keyword arguments.
        vectorize: whether to try ``vmap``.
        within: gives what the model runs in, as another precision (:class:`~vi_flows.guides.promoting.Promoting`).

    Raises:
        ValueError: when called: the model's sites are not those that have values.
        EnumerationError: when called: a discrete latent can't be summed out.
    """

    def __init__(
        self,
        model: Callable,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        vectorize: bool = True,
        within: Within = nullcontext,
    ) -> None:
        self.model = model
        self.args, self.kwargs, self.within = args, dict(kwargs or {}), within
        self._over_draws = OverDraws(model, vectorize)
        self._values: dict[str, Tensor] = {}
        self._given = poutine.condition(model, data=self._values)
        self._summed_out: SummedOut | None = None
        self._masked: MaskedLatents | None = None
        self._seen = False

    @property
    def vectorized(self) -> bool:
        """Whether one pass has been enough for all values, so far."""
        return self._over_draws.at_once

    @alone()
    def __call__(self, values: Mapping[str, Tensor]) -> Tensor:
        """The log joint density of each value.

        Args:
            values: constrained values by site, each of shape ``(S,) + site shape``.

        Returns:
            Shape ``(S,)``.
        """
        values = dict(values)
        # Handlers around the caller must not see these evaluations; validation asks questions vmap can't answer.
        with poutine.block(), pyro.validation_enabled(False), self.within():
            if not self._seen:
                self._look(values)
            result = self._over_draws(self._single, values)
        self._values.clear()
        return result

    def _look(self, values: Mapping[str, Tensor]) -> None:
        """Run the model once, to find the discrete and the masked sites among its latents."""
        with torch.no_grad():
            trace = self._run({name: value[0] for name, value in values.items()})
            possible = PossibleWhereMasked(trace, values)
            if possible.stand_ins:
                self._given = possible(self._given)
                trace = self._run({name: value[0] for name, value in values.items()})
            if any(is_discrete(site["fn"]) for _, site in latent_sites(trace)):
                self._summed_out = SummedOut(self._given, self.args, self.kwargs, trace)
                self._summed_out.check_latents(values)
                for index in range(1, NUM_CHECKS):
                    # Single values of the discrete sites may agree by chance.
                    some = {name: value[index % len(value)] for name, value in values.items()}
                    self._summed_out.check(self._run(some))
        self._seen = True
        if has_masked_latents(trace, values):
            masked = MaskedLatents(partial(self._over_draws, self._single), self._run, values)
            if self._summed_out is None:
                self._masked = masked
            else:
                self._summed_out.amend = masked.put_back

    def _run(self, values: Mapping[str, Tensor]) -> Trace:
        self._values.clear()
        self._values.update(values)
        return poutine.trace(self._given).get_trace(*self.args, **self.kwargs)

    def _single(self, values: Mapping[str, Tensor]) -> Tensor:
        if self._summed_out is None:
            trace = self._run(values)
            _check_shapes(values, trace)
            total = trace.log_prob_sum()
        else:
            self._values.update(values)
            trace = self._summed_out.trace()
            total = self._summed_out.of(trace)
        _check_names(values, trace)
        if self._masked is not None:
            total = total + self._masked.log_prob(trace)
        # A model whose every site is masked out gives a plain zero.
        return total if isinstance(total, Tensor) else next(iter(values.values())).new_tensor(total)


def _check_shapes(values: Mapping[str, Tensor], trace: Trace) -> None:
    """A value of another shape would be refused by PyTorch without a name, or broadcast without a word."""
    for name, value in values.items():
        if name in trace.nodes and (shape := nodes(trace)[name]["fn"].shape()) != value.shape:
            raise ValueError(
                f"latent site {name!r} has the shape {tuple(shape)} in some runs of the model and {tuple(value.shape)} "
                "in others: sample as many values as there can be always, and use a part of them"
            )


def _check_names(values: Mapping[str, Tensor], trace: Trace) -> None:
    lost = [name for name in values if name not in trace.nodes]
    extra = [n for n, s in latent_sites(trace) if not is_fixed(s["fn"]) and s["infer"].get("_enumerate_dim") is None]
    if lost or extra:
        raise ValueError(
            f"the model's latent sites change from run to run: {lost + extra} are not in every one of them. A guide "
            "needs the same sites whatever their values: sample all of them always, and choose between their values "
            "with torch.where"
        )


def in_double(
    model: Callable,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    pull_back: Callable[[LogJoint], Callable[[Tensor], Tensor]],
    probe: Tensor,
    plain: LogJoint,
) -> LogJoint:
    """The density in double precision, where the model can be evaluated there.

    Single precision rounds what it adds up: log densities of ten million trials are off by 23 nats, and probabilities
    below 1e-7 are cut off by PyTorch's own distributions.

    Args:
        model: a Pyro program.
        args: its arguments.
        kwargs: its keyword arguments.
        pull_back: from a density of the sites to that of unconstrained latent vectors.
        probe: such vectors, on which it is tried.
        plain: the density in the model's own precision.

    Returns:
        ``plain`` itself where the model can't be (:func:`~vi_flows.guides.promoting.double_precision`).
    """

    def joint(within: Within) -> LogJoint:
        return LogJoint(model, args, kwargs, plain.vectorized, within)

    def evaluate(within: Within, dtype: torch.dtype) -> Tensor:
        return pull_back(plain if within is nullcontext else joint(within))(probe.to(dtype))

    within = double_precision(evaluate, probe.dtype)
    return plain if within is nullcontext else joint(within)
