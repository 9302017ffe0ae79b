"""The maps between the real line and the supports of a program's sites, be these fixed or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions.constraints import Constraint, independent

from vi_flows.guides.alone import alone
from vi_flows.guides.over_draws import OverDraws
from vi_flows.guides.promoting import precision
from vi_flows.guides.stick_breaking import to_support

__all__ = ["FixedMaps", "MapsOfTheProgram", "SiteMaps"]

Pairs = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Values by site, and the log-determinants of their maps, which have the sites' batch dimensions or less."""


class SiteMaps(Protocol):
    """Both directions, for draws along any leading dimensions."""

    def constrain(self, latents: Mapping[str, Tensor]) -> Pairs:
        """Values in their supports and ``log|det|`` of the maps, from unconstrained values by site."""

    def unconstrain(self, values: Mapping[str, Tensor]) -> Pairs:
        """Unconstrained values and ``log|det|`` of the inverse maps, from values by site."""


@dataclass(frozen=True)
class FixedMaps:
    """Maps to supports that are the same whatever the values.

    Args:
        supports: by site.
    """

    supports: Mapping[str, Constraint]

    def constrain(self, latents: Mapping[str, Tensor]) -> Pairs:
        """See :class:`SiteMaps`."""
        values, ladjs = {}, {}
        for name, support in self.supports.items():
            values[name], ladjs[name] = _forward(support, latents[name])
        return values, ladjs

    def unconstrain(self, values: Mapping[str, Tensor]) -> Pairs:
        """See :class:`SiteMaps`."""
        latents, ladjs = {}, {}
        for name, support in self.supports.items():
            latents[name], ladjs[name] = _inverse(support, values[name])
        return latents, ladjs


class MapsOfTheProgram:
    r"""Maps to supports that depend on other sites, ``b ~ Uniform(0, 1 − a)``: the program gives them, draw by draw.

    The program runs with the values given, site after site, so that each support is the one at the values before it.
    The matrix of derivatives is block triangular in that order: its log-determinant is the sum of the sites' own.

    Args:
        program: a Pyro program.
        args: its positional arguments.
        kwargs: its keyword arguments.
        shapes: of each site's unconstrained value.
        event_shapes: of each site's value.
    """

    def __init__(
        self,
        program: Callable,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        shapes: Mapping[str, torch.Size],
        event_shapes: Mapping[str, torch.Size],
    ) -> None:
        self.program, self.args, self.kwargs = program, args, dict(kwargs)
        self.shapes, self.event_shapes = dict(shapes), dict(event_shapes)
        self._over_draws = OverDraws(program)

    def constrain(self, latents: Mapping[str, Tensor]) -> Pairs:
        """See :class:`SiteMaps`."""
        return self._along(_forward, latents, self.shapes)

    def unconstrain(self, values: Mapping[str, Tensor]) -> Pairs:
        """See :class:`SiteMaps`."""
        return self._along(_inverse, values, self.event_shapes)

    @alone()
    def _along(
        self,
        change: Callable[[Constraint, Tensor], tuple[Tensor, Tensor]],
        given: Mapping[str, Tensor],
        shapes: Mapping[str, torch.Size],
    ) -> Pairs:
        batch = torch.broadcast_shapes(*(given[name].shape[: given[name].dim() - len(s)] for name, s in shapes.items()))
        draws = {name: given[name].expand(batch + shape).reshape(-1, *shape) for name, shape in shapes.items()}

        dtype = next(iter(draws.values())).dtype

        def single(draw: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            visit = _Visit(draw, change)
            with poutine.block(), visit, precision(dtype):
                self.program(*self.args, **self.kwargs)
            lost = [name for name in shapes if name not in visit.results]
            if lost:
                raise ValueError(f"latent site {lost[0]!r} is not in every run of the model")
            return visit.results, visit.ladjs

        with pyro.validation_enabled(False):
            results, ladjs = self._over_draws(single, draws)
        return (
            {name: value.reshape(batch + value.shape[1:]) for name, value in results.items()},
            {name: value.reshape(batch + value.shape[1:]) for name, value in ladjs.items()},
        )


class _Visit(Messenger):
    """Gives each site its value and keeps what was asked for.

    Args:
        given: unconstrained values by site (``change`` maps them to the support), or values (``change`` maps back).
        change: :func:`_forward` or :func:`_inverse`.
    """

    def __init__(
        self, given: Mapping[str, Tensor], change: Callable[[Constraint, Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self.given, self.change = given, change
        self.results: dict[str, Tensor] = {}
        self.ladjs: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self.given or msg["is_observed"]:
            return
        self.results[name], self.ladjs[name] = self.change(msg["fn"].support, self.given[name])
        msg["value"] = self.results[name] if self.change is _forward else self.given[name]
        msg["done"] = True


def _forward(support: Constraint, latent: Tensor) -> tuple[Tensor, Tensor]:
    transform = to_support(support)
    value = transform(latent)
    return value, transform.log_abs_det_jacobian(latent, value)


def _inverse(support: Constraint, value: Tensor) -> tuple[Tensor, Tensor]:
    transform = to_support(support)
    latent = transform.inv(value)
    ladj = -transform.log_abs_det_jacobian(latent, value)
    # Inverses clamp at the edges of a support, and would take what lies beyond them for a point just within.
    base = support
    while isinstance(base, independent):
        base = base.base_constraint
    if base.event_dim == 0:
        inside = support.check(value)
    else:
        # Constraints on vectors (simplex, Cholesky factor) are checked to a precision that their own maps can miss.
        inside = (
            torch.isclose(transform(latent), value, rtol=1e-3, atol=1e-4).flatten(value.dim() - base.event_dim).all(-1)
        )
    kept = inside.reshape(inside.shape + (1,) * (latent.dim() - inside.dim()))
    return torch.where(kept, latent, torch.full_like(latent, math.nan)), ladj
