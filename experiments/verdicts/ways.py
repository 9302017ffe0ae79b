"""How a guide is made: by default settings, and in ways that are bound to go wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions.transforms as T
import torch
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor
from torch.distributions import constraints

from experiments.verdicts.known import Known
from vi_flows.guides import AutoConvFlow, AutoFlow, fit

BOUND = 1.2


class Bounded(T.Transform):
    """``z ↦ 1.2 tanh(z / 1.2)``: a guide with it has no draws beyond."""

    domain = constraints.real
    codomain = constraints.interval(-BOUND, BOUND)
    bijective = True
    sign = +1

    def _call(self, x: Tensor) -> Tensor:
        return BOUND * (x / BOUND).tanh()

    def _inverse(self, y: Tensor) -> Tensor:
        return BOUND * (y / BOUND).atanh()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``log(1 − tanh²)``."""
        u = x / BOUND
        return 2 * (torch.log(torch.tensor(2.0).to(u)) - u - torch.nn.functional.softplus(-2 * u))


def _bounded(dim: int) -> T.Transform:
    return T.IndependentTransform(Bounded(), 1)


def _identity(dim: int) -> T.Transform:
    return T.AffineTransform(0.0, 1.0, event_dim=1)


@dataclass(frozen=True)
class Way:
    """One way to a guide.

    Attributes:
        title: of the table.
        make: from a posterior, and whether to look for a start, to a guide without a fit.
        train: fits it.
        after: from which other way's guide it is made, by :attr:`spoil`, in place of a fit.
        spoil: what is done to it.
    """

    title: str
    make: Callable[[Known, bool], AutoFlow]
    train: Callable[[Known, AutoFlow, int], Any] | None = None
    after: str | None = None
    spoil: Callable[[AutoFlow], None] | None = None


def _default(known: Known, start: bool) -> AutoFlow:
    return AutoConvFlow(known.model, prototype_args=known.args, **({} if start else {"warm_start": False}))


def _train(known: Known, guide: AutoFlow, seed: int, **options: Any) -> Any:
    return fit(known.model, guide, *known.args, seed=seed, progress=False, **options)


def _scaled(factor: float) -> Callable[[AutoFlow], None]:
    @torch.no_grad()
    def spoil(guide: AutoFlow) -> None:
        center = guide.location_scale.loc.clone()
        guide.location_scale.log_scale += torch.tensor(factor).log()
        guide.location_scale.loc.copy_(center)

    return spoil


@torch.no_grad()
def _moved(guide: AutoFlow) -> None:
    guide.location_scale.loc[0] += 0.6 * guide.location_scale.log_scale[0].exp()


def _unstarted(known: Known, start: bool) -> AutoFlow:
    return AutoConvFlow(known.model, prototype_args=known.args, warm_start=False)


def _in_one_mode(known: Known, start: bool) -> AutoFlow:
    assert known.modes is not None
    values, spread = known.modes
    return AutoConvFlow(
        known.model, prototype_args=known.args, init_loc_fn=init_to_value(values=values), init_scale=spread
    )


def _cut(known: Known, start: bool) -> AutoFlow:
    return AutoFlow(known.model, _bounded, prototype_args=known.args, **({} if start else {"warm_start": False}))


@dataclass(frozen=True)
class _NoSteps:
    num_steps: int = 0


@torch.no_grad()
def _uncompensated(known: Known, guide: AutoFlow, seed: int) -> _NoSteps:
    """The start widens what the bound takes away; take that back."""
    guide.location_scale.log_scale += math.log(float(Bounded()(torch.randn(100_000)).std()))
    return _NoSteps()


WAYS: dict[str, Way] = {
    "default": Way("default settings", _default, _train),
    "few steps": Way("30 steps from a start at the prior", _unstarted, lambda *a: _train(*a, num_steps=30)),
    "mean field": Way(
        "mean field",
        lambda known, start: AutoFlow(known.model, _identity, affine="diagonal", prototype_args=known.args),
        lambda *a: _train(*a, num_steps=500),
    ),
    "one mode": Way("one mode of several", _in_one_mode, lambda *a: _train(*a, num_steps=500)),
    "narrow": Way("scaled by 0.6", _default, after="default", spoil=_scaled(0.6)),
    "wide": Way("scaled by 1.6", _default, after="default", spoil=_scaled(1.6)),
    "moved": Way("moved by 0.6 sd in one direction", _default, after="default", spoil=_moved),
    "bounded": Way("without draws beyond 1.2 sd", _cut, _uncompensated),
}


def ways_of(known: Known, cheap: bool) -> list[str]:
    """Those that a posterior is tried in: the bad ones where a fit takes seconds.

    Args:
        known: the posterior.
        cheap: whether it does.
    """
    names = ["default"]
    if cheap:
        names += [name for name in WAYS if name not in ("default", "one mode")]
    return names + (["one mode"] if known.modes is not None else [])
