"""Bounds whose gradients leave the score of the guide out, and the Rényi bound."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.score_parts import ScoreParts
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from vi_flows.objectives.bounds import ELBO, IWAE
from vi_flows.objectives.path_gradient import (
    GradientGate,
    dreg_factor,
    gradients_through,
    transforms_of,
    with_detached_parameters,
)
from vi_flows.objectives.traced import TracedBound, TracedWeights
from vi_flows.parameters import module_of
from vi_flows.settings import check_types
from vi_flows.traces import Site, nodes
from vi_flows.transforms.from_pyro import jump_in

__all__ = ["DReG", "RenyiBound", "StickingTheLanding"]


def _latent(trace: Trace) -> dict[str, Site]:
    """The sites of a guide with gradients to pass."""
    found = nodes(trace).items()
    return {n: s for n, s in found if s["type"] == "sample" and not s["is_observed"] and s["value"].is_floating_point()}


def _rescore(guide: Callable, trace: Trace, args: tuple, kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Log-densities of the guide's sites at the values of ``trace``, with gradients through these values alone."""
    names: list[str] = []
    latent = _latent(trace)

    def score(values: Sequence[Tensor]) -> list[Tensor]:
        points = trace.copy()
        for (name, site), value in zip(latent.items(), values, strict=True):
            nodes(points)[name] = {**site, "value": value}

        def run() -> list[Tensor]:
            again = poutine.trace(poutine.replay(guide, trace=points)).get_trace(*args, **kwargs)
            again.compute_log_prob()  # here and not later: flows read their parameters when they score
            terms = {name: site["log_prob"] for name, site in nodes(again).items() if site["type"] == "sample"}
            names.extend(terms)
            return list(terms.values())

        # Pyro warns of parameters without gradients.
        with poutine.block(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not registered in the param store")
            # For the buffers of a module, which are to see the data once.
            return with_detached_parameters(module_of(guide), run)

    terms = gradients_through([site["value"] for site in latent.values()], score)
    return dict(zip(names, terms, strict=True))


def _check_continuous(trace: Trace, objective: str) -> None:
    """Refuse flows whose score does not have mean zero (:func:`supports_path_gradient`)."""
    for name, site in _latent(trace).items():
        for transform in transforms_of(site["fn"]):
            jumping = jump_in(transform)
            if jumping is not None:
                raise ValueError(
                    f"{objective} needs densities that are continuous in the draws, and the log-determinant of the "
                    f"{type(jumping).__name__} at guide site {name!r} jumps (as that of a leaky ReLU does): use a "
                    "smooth activation such as tanh, or ELBO or IWAE"
                )


class _PathGradient(TracedBound):
    """A bound of weights whose ``log q`` keeps gradients through the draws only."""

    def log_weights(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> TracedWeights:
        """Draw from the guide and weigh; the guide is scored a second time at its own draws.

        Raises:
            NotImplementedError: a flow of the guide has no inverse.
            ValueError: a guide site is not reparameterised, or the density of its flow jumps.
        """
        self._gates: list[GradientGate] = []
        return super().log_weights(model, guide, *args, **kwargs)

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[Trace, Trace]:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        _check_continuous(guide_trace, type(self).__name__)
        gate = GradientGate()
        # What the weights read are copies of the draws; the draws among themselves stay as they are.
        gated = guide_trace.copy()
        for name, site in _latent(guide_trace).items():
            nodes(gated)[name] = {**site, "value": gate(site["value"], site["fn"].event_dim)}
        model_trace = poutine.trace(poutine.replay(model, trace=gated)).get_trace(*args, **kwargs)
        try:
            again = _rescore(guide, gated, args, kwargs)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"{type(self).__name__} scores the guide's draws again with detached parameters, which needs flows "
                f"with an inverse: {error}"
            ) from error
        guide_trace, model_trace = prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)
        model_trace.compute_log_prob()
        for name, site in nodes(guide_trace).items():
            if site["type"] == "sample":
                site["log_prob"] = again[name]
                # Reparameterised sites have no score-function term; the others are refused by the caller.
                score = 0 if site["fn"].has_rsample else 1
                site["score_parts"] = ScoreParts(site["log_prob"], score, 0)  # type: ignore[arg-type]  # Pyro passes 0, too
        self._gates.append(gate)
        return model_trace, guide_trace


class StickingTheLanding(_PathGradient, ELBO):
    r"""The ELBO, with the gradient that leaves out ``∇_φ log q_φ(z)`` at fixed ``z``, whose mean is zero.

    Where ``q`` is the exact posterior, every single draw has gradient zero (Roeder, Wu and Duvenaud 2017). All
    densities of the guide must be continuous in the draws: a ConvFlow with a leaky ReLU, whose log-determinant jumps,
    has a score of non-zero mean.

    Any guide will do, whether its parameters are those of a module, of ``pyro.param`` or of ``pyro.module``, if its
    flows have an inverse. The guide runs twice; batch normalisation in one that is a function counts its data twice.
    See :class:`~vi_flows.objectives.traced.TracedBound` for the arguments.
    """


class DReG(_PathGradient, IWAE):
    r"""IWAE with the doubly reparameterised gradient (Tucker, Lawson, Gu and Maddison 2019, eq. 8), for the guide.

    With normalised weights ``ŵ_k``, the gradient for the guide's parameters is ``Σ_k ŵ_k² ∂log w_k/∂z_k ∂z_k/∂φ``,
    whose signal does not vanish as ``K`` grows; the model's parameters get IWAE's own ``Σ_k ŵ_k ∂log w_k/∂θ``. Both
    come from one backward pass: what passes from the weights into the draws is multiplied by ``ŵ_k`` (under a KL weight
    by :func:`~vi_flows.objectives.path_gradient.dreg_factor`). The value is IWAE's. Latents outside of a subsampled
    plate are refused; layers in which rows meet otherwise, such as batch normalisation in training, bias it.
    See :class:`~vi_flows.objectives.traced.TracedBound` for the arguments.
    """

    def bound(self, weights: TracedWeights, kl_weight: float) -> Tensor:
        """IWAE's bound; its backward pass is the doubly reparameterised one.

        Raises:
            ValueError: a latent outside of a subsampled plate couples its rows.
        """
        if weights.coupled:
            raise ValueError(f"{weights.why_coupled}; use the full data, or StickingTheLanding")
        factors = dreg_factor(weights.log_weights(kl_weight), kl_weight)
        single = len(self._gates) > 1 or self.num_particles == 1
        for index, gate in enumerate(self._gates):
            gate.factor = _place(factors[index] if single else factors, weights.dims)
        return super().bound(weights, kl_weight)


def _place(factor: Tensor, dims: Sequence[int]) -> Tensor:
    """Lay the dimensions of normalised weights (particles, common plates) out as a site's batch dimensions."""
    shape = [1] * max((-dim for dim in dims), default=0)
    for size, dim in zip(factor.shape, dims, strict=True):
        shape[dim] = size
    return factor.reshape(shape)


class RenyiBound(TracedBound):
    r"""The variational Rényi bound ``(1/(1−α)) log (1/K) Σ_k w_k^{1−α}`` (Li and Turner 2016), right under subsampling.

    ``α = 0`` is IWAE, ``α → 1`` the ELBO, and it falls as ``α`` rises: from 0 to 1 it lies between the two, above 1
    below the ELBO, and of a negative ``α`` and many draws above the evidence. It is taken for each row of the plates
    that hold every site, with their scale ``N/B`` outside.

    Args:
        alpha: ``α``, not 1.
        options: see :class:`~vi_flows.objectives.traced.TracedBound`.

    Raises:
        ValueError: ``α`` is 1 or not finite.
    """

    def __init__(self, alpha: float = 0.0, num_particles: int = 2, **options: Any) -> None:
        if not isinstance(alpha, Real):
            check_types((int, float), "", alpha=alpha)
        if alpha == 1 or not math.isfinite(alpha):
            raise ValueError(f"alpha must be finite and not 1 (that limit is the ELBO), got {alpha}")
        super().__init__(num_particles, **options)
        self.alpha = alpha

    def bound(self, weights: TracedWeights, kl_weight: float) -> Tensor:
        """The bound from the weights, summed over the common plates, times their ``N/B``.

        Raises:
            ValueError: a latent outside of a subsampled plate couples its rows.
        """
        if weights.coupled:
            raise ValueError(
                f"{weights.why_coupled}: the bound has no unbiased minibatch form; use the full data or the ELBO"
            )
        return weights.common_scale * _power_mean(weights.log_weights(kl_weight), 1 - self.alpha).sum()


NEAR_ELBO = 0.01
"""``|1 − α|`` below which ``log (1/K) Σ_k w_k^{1−α}`` has lost digits that its division by ``1 − α`` would need."""


def _power_mean(log_w: Tensor, power: float) -> Tensor:
    """``log ((1/K) Σ_k w_k^p) / p`` over the first dimension, as exact for small ``p`` as for others."""
    if abs(power) >= NEAR_ELBO:
        return (torch.logsumexp(power * log_w, 0) - math.log(log_w.shape[0])) / power
    top = (log_w.amax(0) if power > 0 else log_w.amin(0)).detach().double()
    top = torch.where(top.isfinite(), top, 0.0)
    mean = torch.expm1(power * (log_w.double() - top)).mean(0)
    return (top + torch.log1p(mean) / power).to(log_w.dtype)
