"""A model with a guide of it: what fitting and diagnosing ask of the two, for flow guides and for any other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from vi_flows.guides.alone import preserved_generators
from vi_flows.guides.at_once import run_at_once, run_in_double
from vi_flows.guides.auto_flow import AutoFlow
from vi_flows.guides.faults import check_observed_supports, sites_without_density
from vi_flows.guides.given import (
    check_density,
    check_model,
    check_program,
    check_whole_data,
    draw_of,
    parameters_of,
)
from vi_flows.guides.log_joint import LogJoint
from vi_flows.guides.remaining import Remaining, remaining_kl
from vi_flows.guides.start.gaussian_vi import points_at_once
from vi_flows.objectives import ELBO
from vi_flows.objectives.path_gradient import inverse_with_detached_parameters, supports_path_gradient

__all__ = ["Draws", "FlowPair", "Pair", "TracedPair", "Weighed", "chunks", "pair_of"]

ROUNDED = 0.01
"""A spread of rounding errors among draws, in nats, from which on training goes on in double precision."""

NUM_COMPARED = 32
"""Draws whose densities are compared for it."""

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Draws:
    """Joint draws of global latents on unconstrained coordinates, and the two densities there.

    Attributes:
        latents: shape ``(S, d)``.
        log_density: the model's log joint density of such points, ``(S, d) → (S,)``.
        log_q: the guide's, −∞ where the flow does not reach; ``None`` without an inverse.
        constrain: from such points to the sites' values.
        at_once: whether the model is evaluated for many draws in one pass.
        unresolved: the share of such points whose values are too coarse to tell where they came from, by site.
    """

    latents: Tensor
    log_density: LogDensity
    log_q: LogDensity | None
    constrain: Callable[[Tensor], dict[str, Tensor]]
    at_once: bool
    unresolved: Callable[[Tensor], dict[str, float]]


@dataclass(frozen=True)
class Weighed:
    """Fresh draws of a guide, weighed by the model.

    Attributes:
        log_weights: ``log p(x, z) − log q(z)``, shape ``(S,)``, or ``(S, …)`` with the plates that hold every site.
        draws: where they are joint draws of global latents.
    """

    log_weights: Tensor
    draws: Draws | None = None


class Pair(ABC):
    """A model, a guide of it, and the arguments of both.

    Args:
        model: a Pyro program.
        guide: its guide.
        args: the arguments of both.
        kwargs: the keyword arguments of both.
    """

    def __init__(self, model: Callable, guide: Callable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs

    @property
    def num_latents(self) -> int:
        """Dimensions of the guide's draws, as far as they are known: at least 1."""
        return 1

    @abstractmethod
    def check(self) -> list[Tensor]:
        """Whether the guide can answer for the model.

        Returns:
            The model's own parameters, where a trace of :meth:`loss_terms` does not show them.

        Raises:
            ValueError: it can't; see :func:`~vi_flows.guides.given.check_model`.
        """

    @abstractmethod
    def at_once(self) -> bool:
        """Whether the model is evaluated for many draws in one pass."""

    @abstractmethod
    def loss_terms(self, num_particles: int, objective: str) -> Callable[[], Tensor]:
        """A function that gives ``log q − log p``, one term a particle where the guide allows.

        Args:
            num_particles: of each call.
            objective: ``stl`` (path gradients, where the guide has them) or ``elbo``.
        """

    @abstractmethod
    def bound_terms(self, num_particles: int) -> Callable[[], Tensor]:
        """Likewise without derivatives, in double precision where the model allows: what an ELBO is reported from."""

    @abstractmethod
    def probe(self, num_draws: int) -> Callable[[bool], Remaining] | None:
        """Estimates what remains to be gained, from the same noise at every call or, asked for it, from fresh noise.

        ``None`` where it can't be known.
        """

    @abstractmethod
    def weigh(self, num_samples: int) -> Weighed:
        """Draw and weigh.

        Raises:
            ValueError: the guide can't answer for the model, its draws have no density, or the data are subsampled.
        """

    def without_density(self) -> str:
        """Sentences that say which sites have no finite log density at draws of the guide; empty where not known.

        Raises:
            ValueError: observations leave their supports there.
        """
        return ""

    def parameters(self, loss_terms: Callable[[], Tensor], own: list[Tensor]) -> list[Tensor]:
        """Those of the guide, and the model's ``own``, each once."""
        with poutine.trace(param_only=True) as tape, torch.no_grad():
            loss_terms()
        return list({id(p): p for p in [*parameters_of(self.guide, tape.trace), *own]}.values())


class FlowPair(Pair):
    """A model with an :class:`~vi_flows.guides.AutoFlow`: draws and their densities come from the flow, for all
    particles at once."""

    guide: AutoFlow

    @property
    def num_latents(self) -> int:
        """The length of the unconstrained latent vector."""
        return max(1, self.guide.latent_dim)

    def check(self) -> list[Tensor]:
        """See :func:`~vi_flows.guides.given.check_model`."""
        return check_model(self.model, self.guide, self.args, self.kwargs)

    def at_once(self) -> bool:
        """Found by trying."""
        return self._at_once(self.guide.sample_posterior(2))

    @torch.no_grad()
    def _at_once(self, values: dict[str, Tensor]) -> bool:
        log_joint = LogJoint(self.model, self.args, self.kwargs)
        log_joint(values)
        return log_joint.vectorized

    def without_density(self) -> str:
        """Of 32 draws."""
        check_observed_supports(self.model, lambda: draw_of(self.guide), self.args, self.kwargs)
        values = self.guide.sample_posterior(32)
        names = sites_without_density(self.model, values, self.args, self.kwargs)
        infinite = ", ".join(repr(name) for name, value in values.items() if not bool(value.isfinite().all()))
        with torch.no_grad():
            x = self.guide.get_transform().forward_and_ladj(self.guide.get_base_dist().sample((1000,)))[0]
        shares = self.guide.unresolved(x)
        coarse = ", ".join(f"{name!r} ({share:.0%})" for name, share in shares.items() if share >= 0.01)
        said = f" It is not finite at the sites {names}." if names else ""
        if infinite:
            return (
                f"{said} Draws of {infinite} are infinite: the posterior has no finite mass there (a flat prior that "
                "the data do not bound?), and needs a proper prior."
            )
        if coarse:
            return (
                f"{said} Draws of {coarse} are so near a bound that {x.dtype} has no numbers for them: run the model "
                "in float64, or give the site a scale without that bound (log-odds, a logarithm)."
            )
        return said

    def _log_density(self) -> LogDensity:
        return self.guide.log_density_of(self.model, *self.args, **self.kwargs)

    def _exact_log_density(self) -> LogDensity:
        return self.guide.exact_log_density_of(self.model, *self.args, **self.kwargs)

    def loss_terms(self, num_particles: int, objective: str) -> Callable[[], Tensor]:
        """One term a particle; path gradients where the flow has an inverse and a continuous log-determinant.

        Where rounding changes the density from draw to draw, they are computed in double precision, too.
        """
        log_density, exact = self._log_density(), self._exact_log_density()
        with preserved_generators(0), torch.no_grad():
            x = self.guide.get_transform().forward_and_ladj(self.guide.get_base_dist().sample((NUM_COMPARED,)))[0]
            rounding = exact(x) - log_density(x).double()
        if float(rounding[rounding.isfinite()].std().nan_to_num()) > ROUNDED:
            log_density = exact
        return self._terms(log_density, num_particles, objective == "stl")

    def bound_terms(self, num_particles: int) -> Callable[[], Tensor]:
        """One term a particle, of independent draws: those of strata have no error to be read off their spread."""
        log_density = self._exact_log_density()
        flow, base = self.guide.get_transform(), self.guide.base_of_draws

        def terms() -> Tensor:
            draws = base.distribution()
            noise = draws.sample((num_particles,))
            x, ladj = flow.forward_and_ladj(noise)
            return draws.log_prob(noise) - ladj - log_density(x)

        return terms

    def _terms(self, log_density: LogDensity, num_particles: int, path: bool) -> Callable[[], Tensor]:
        flow, base = self.guide.get_transform(), self.guide.base_of_draws
        path = path and supports_path_gradient(flow)

        def loss_terms() -> Tensor:
            noise, weights = base.strata(num_particles)
            x, ladj = flow.forward_and_ladj(noise)
            if path and torch.is_grad_enabled():
                z, inverse_ladj = inverse_with_detached_parameters(flow, x)
                log_q = base.detached().log_prob(z) + inverse_ladj
            else:
                log_q = base.distribution().log_prob(noise) - ladj
            return weights * (log_q - log_density(x))

        return loss_terms

    def probe(self, num_draws: int) -> Callable[[bool], Remaining] | None:
        """``None`` where the log density is not a function of the latents."""
        log_density = self._exact_log_density()
        flow, base = self.guide.get_transform(), self.guide.base_of_draws
        noise = base.noise(num_draws)
        with torch.no_grad():
            # Subsampled data differ from run to run.
            x = flow.forward_and_ladj(base.place(noise[:2]))[0]
            first, second = log_density(x), log_density(x)
        if not torch.allclose(first, second, rtol=1e-5, equal_nan=True):
            return None

        @torch.no_grad()
        def probe(fresh: bool) -> Remaining:
            z = base.place(base.noise(num_draws) if fresh else noise)
            x, ladj = flow.forward_and_ladj(z)
            log_p = torch.cat([log_density(part) for part in x.split(points_at_once(x.shape[-1]))])
            return remaining_kl(log_p + ladj - base.distribution().log_prob(z), x)

        return probe

    def _real(self, log_weights: Tensor, x: Tensor) -> Tensor:
        """The weights themselves.

        Raises:
            ValueError: one is NaN or +∞; names the sites that are to blame.
        """
        broken = log_weights.isnan() | (log_weights == torch.inf)
        if bool(broken.any()):
            values = self.guide.constrain(x[broken])[0]
            names = sites_without_density(self.model, values, self.args, self.kwargs)
            raise ValueError(
                f"the model's log density is NaN or infinite at {int(broken.sum())} of {len(x)} draws of the guide"
                + (f", at the sites {names}" if names else "")
                + ": keep the latents to where it is defined, by their supports or by a map"
            )
        return log_weights

    def weigh(self, num_samples: int) -> Weighed:
        """Joint weights ``(S,)`` with the draws."""
        self.check()
        check_whole_data(self.model, self.guide, self.args, self.kwargs)
        log_density = self._exact_log_density()
        flow, base = self.guide.get_transform(), self.guide.get_base_dist()
        log_w, latents = [], []
        for size in chunks(num_samples, 1000):
            noise = base.sample((size,))
            x, ladj = flow.forward_and_ladj(noise)
            log_w.append(self._real(log_density(x) - base.log_prob(noise) + ladj, x))
            latents.append(x)

        def log_q(x: Tensor) -> Tensor:
            z, ladj = flow.inverse_and_ladj(x)
            # Some flows reach only a part of the space, and have no inverse beyond.
            reached = z.isfinite().all(-1) & ladj.isfinite()
            density = base.log_prob(torch.where(reached[:, None], z, 0.0)) + ladj
            return torch.where(reached, density, -torch.inf)

        def constrain(x: Tensor) -> dict[str, Tensor]:
            return self.guide.constrain(x)[0]

        x = torch.cat(latents)
        at_once = self._at_once(constrain(x[:2]))
        reached = log_q if flow.has_inverse else None
        return Weighed(torch.cat(log_w), Draws(x, log_density, reached, constrain, at_once, self.guide.unresolved))


class TracedPair(Pair):
    """A model with any guide that Pyro can trace: a function, an autoguide, a list of them."""

    def check(self) -> list[Tensor]:
        """See :func:`~vi_flows.guides.given.check_program`; all parameters are found by tracing."""
        check_program(self.model, self.guide, self.args, self.kwargs)
        return []

    def at_once(self) -> bool:
        """Whether Pyro's vectorized particles have the densities of single ones."""
        return run_at_once(self.model, self.guide, self.args, self.kwargs)

    def loss_terms(self, num_particles: int, objective: str) -> Callable[[], Tensor]:
        """Pyro's ``Trace_ELBO``, one number for all particles, with the whole derivative whatever the objective."""
        elbo = Trace_ELBO(num_particles=num_particles, vectorize_particles=num_particles > 1 and self.at_once())
        return lambda: elbo.differentiable_loss(self.model, self.guide, *self.args, **self.kwargs)

    def bound_terms(self, num_particles: int) -> Callable[[], Tensor]:
        """One number for all particles."""
        loss_terms = self.loss_terms(num_particles, "elbo")
        within = run_in_double(self.model, self.guide, self.args, self.kwargs)

        def bound_terms() -> Tensor:
            with within():
                return loss_terms()

        return bound_terms

    def probe(self, num_draws: int) -> None:
        """Not known of a guide whose density is known at its own draws alone."""
        return None

    def weigh(self, num_samples: int) -> Weighed:
        """With the plates that hold every site, and without draws."""
        self.check()
        check_whole_data(self.model, self.guide, self.args, self.kwargs)
        check_density(self.guide, self.model, self.args, self.kwargs)
        parts, at_once = [], self.at_once()
        within = run_in_double(self.model, self.guide, self.args, self.kwargs)
        for size in chunks(num_samples, 250):
            bound = ELBO(size, vectorize_particles=at_once and size > 1)
            with within():
                weights = bound.log_weights(self.model, self.guide, *self.args, **self.kwargs)
            parts.append(weights.log_weights())
        return Weighed(torch.cat(parts))


def pair_of(model: Callable, guide: Callable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pair:
    """The one place that looks at what kind of guide it is given.

    Args:
        model: a Pyro program.
        guide: a guide of it: any callable.
        args: the arguments of both.
        kwargs: the keyword arguments of both.

    Raises:
        TypeError: one of them can't be called with the arguments.
    """
    for name, program in (("model", model), ("guide", guide)):
        if isinstance(program, type) or not callable(program):
            got = f"the class {program.__name__}" if isinstance(program, type) else type(program).__name__
            raise TypeError(f"the {name} must be a function or a module of Pyro statements, got {got}")
    return (FlowPair if isinstance(guide, AutoFlow) else TracedPair)(model, guide, args, kwargs)


def chunks(total: int, size: int) -> list[int]:
    """``total`` in parts of ``size``, the last one of what is left."""
    return [size] * (total // size) + ([total % size] if total % size else [])
