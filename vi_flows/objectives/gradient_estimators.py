"""Bounds whose gradients leave the score of the guide out, and the Rényi bound."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.score_parts import ScoreParts
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from vi_flows.objectives.bounds import ELBO, IWAE
from vi_flows.objectives.path_gradient import GradientGate, dreg_factor, with_detached_parameters
from vi_flows.objectives.traced import PARTICLES, TracedBound, TracedWeights
from vi_flows.parameters import module_of
from vi_flows.traces import nodes

__all__ = ["DReG", "RenyiBound", "StickingTheLanding"]


class _DetachParameters(Messenger):
    """Give every ``pyro.param`` statement a detached value."""

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        if isinstance(msg["value"], Tensor):
            msg["value"] = msg["value"].detach()


def _rescore(guide: Callable, module: nn.Module, trace: Trace, args: tuple, kwargs: dict[str, Any]) -> Trace:
    """The guide's trace at the same values, with gradients through the values alone."""

    def run() -> Trace:
        # Here and not later: flows read their parameters when they score. Pyro warns of parameters without gradients.
        with _DetachParameters(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not registered in the param store")
            again = poutine.trace(poutine.replay(guide, trace=trace)).get_trace(*args, **kwargs)
            again.compute_log_prob()
            return again

    with poutine.block():
        return with_detached_parameters(module, run)


class _PathGradient(TracedBound):
    """A bound of weights whose ``log q`` keeps gradients through the draws only."""

    _module = nn.Module()
    """That of the guide given, while its draws are weighed."""

    def log_weights(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> TracedWeights:
        """Draw from the guide and weigh; the guide is scored a second time at its own draws.

        Raises:
            NotImplementedError: a flow of the guide has no inverse.
            ValueError: a guide site is not reparameterised.
        """
        self._module = module_of(guide)
        self._traces: list[tuple[GradientGate, Trace]] = []
        try:
            return super().log_weights(model, guide, *args, **kwargs)
        finally:
            self._module = nn.Module()

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[Trace, Trace]:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        gate = GradientGate()
        # What the weights read are copies of the draws; the draws among themselves stay as they are.
        gated = guide_trace.copy()
        for name, site in nodes(guide_trace).items():
            if site["type"] == "sample" and not site["is_observed"] and site["value"].is_floating_point():
                event_dim = site["fn"].event_dim
                nodes(gated)[name] = {**site, "value": gate(site["value"], event_dim)}
        model_trace = poutine.trace(poutine.replay(model, trace=gated)).get_trace(*args, **kwargs)
        try:
            again = _rescore(guide, self._module, gated, args, kwargs)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"{type(self).__name__} scores the guide's draws again with detached parameters, which needs flows "
                f"with an inverse: {error}"
            ) from error
        guide_trace, model_trace = prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)
        model_trace.compute_log_prob()
        for name, site in nodes(guide_trace).items():
            if site["type"] == "sample":
                site["log_prob"] = nodes(again)[name]["log_prob"]
                # Reparameterised sites have no score-function term; the others are refused by the caller.
                score = 0 if site["fn"].has_rsample else 1
                site["score_parts"] = ScoreParts(site["log_prob"], score, 0)  # type: ignore[arg-type]  # Pyro passes 0, too
        self._traces.append((gate, guide_trace))
        return model_trace, guide_trace


class StickingTheLanding(_PathGradient, ELBO):
    r"""The ELBO, with the gradient that leaves out ``∇_φ log q_φ(z)`` at fixed ``z``, whose mean is zero.

    Where ``q`` is the exact posterior, every single draw has gradient zero (Roeder, Wu and Duvenaud 2017). All
    densities of the guide must be continuous in the draws: a ConvFlow with a leaky ReLU, whose log-determinant jumps,
    has a score of non-zero mean.

    Any guide whose parameters are those of a module or of ``pyro.param`` statements will do, if its flows have an
    inverse. See :class:`~vi_flows.objectives.traced.TracedBound` for the arguments.
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
            raise ValueError(f"latents outside the subsampled plate(s) {', '.join(weights.coupled)} couple their rows")
        factors = dreg_factor(weights.log_weights(kl_weight), kl_weight)
        single = len(self._traces) > 1 or self.num_particles == 1
        for index, (gate, trace) in enumerate(self._traces):
            factor = factors[index] if single else factors
            gate.factor = _place(factor, trace, particles=not single)
        return super().bound(weights, kl_weight)


def _place(factor: Tensor, trace: Trace, particles: bool) -> Tensor:
    """Lay the dimensions of normalised weights (particles, common plates) out as a site's batch dimensions."""
    stacks = [set(s["cond_indep_stack"]) for s in nodes(trace).values() if s["type"] == "sample"]
    frames = {f for f in set.intersection(*stacks) if f.vectorized}
    dims = sorted(f.dim for f in frames if f.dim is not None and (particles or f.name != PARTICLES))
    dims = dims[-factor.dim() :] if factor.dim() else []
    shape = [1] * max((-d for d in dims), default=0)
    for size, dim in zip(factor.shape, dims, strict=True):
        shape[dim] = size
    return factor.reshape(shape)


class RenyiBound(TracedBound):
    r"""The variational Rényi bound ``(1/(1−α)) log (1/K) Σ_k w_k^{1−α}`` (Li and Turner 2016), right under subsampling.

    ``α = 0`` is IWAE, ``α → 1`` the ELBO; below 1 it lies between them, and negative ``α`` overestimates. It is taken
    for each row of the plates that hold every site, with their scale ``N/B`` outside.

    Args:
        alpha: ``α``, not 1.
        options: see :class:`~vi_flows.objectives.traced.TracedBound`.

    Raises:
        ValueError: ``α`` is 1 or not finite.
    """

    def __init__(self, alpha: float = 0.0, num_particles: int = 2, **options: Any) -> None:
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
                f"latents outside the subsampled plate(s) {', '.join(weights.coupled)} couple their rows: the "
                "bound has no unbiased minibatch form; use the full data or the ELBO"
            )
        log_w = (1 - self.alpha) * weights.log_weights(kl_weight)
        rows = (torch.logsumexp(log_w, 0) - math.log(log_w.shape[0])) / (1 - self.alpha)
        return weights.common_scale * rows.sum()
