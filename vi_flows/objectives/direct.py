"""Objectives of models that give their log-weights as tensors, without a Pyro trace: what trains the VAEs.

The same gradient estimators as :mod:`vi_flows.objectives.gradient_estimators`, from the same parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vi_flows.objectives.bounds import WeightTerms, elbo_bound, iwae_bound
from vi_flows.objectives.path_gradient import GradientGate, dreg_factor

__all__ = ["DIRECT_OBJECTIVES", "DirectObjective", "WeightedModel"]


class WeightedModel(Protocol):
    """A model with its guide that weighs its own draws, ``(P, …)``."""

    def log_weight_terms(self, x: Tensor, num_particles: int = 1) -> WeightTerms:
        """Weights whose gradients are the plain reparameterised ones."""

    def path_log_weight_terms(self, x: Tensor, num_particles: int = 1, gate: GradientGate | None = None) -> WeightTerms:
        """The same weights, with the guide's gradients through the draws alone, which pass the gate."""


@dataclass(frozen=True)
class DirectObjective:
    r"""A bound of ``log p(x)`` and an estimator of its gradient.

    =======  ============================  =======================================================================
    name     bound                         gradient for the guide's parameters ``φ``, with normalised weights ``ŵ``
    =======  ============================  =======================================================================
    elbo     ``mean_k log w_k``            plain: path and score, ``(1/K) Σ_k d log w_k/dφ``
    stl      the same                      ``(1/K) Σ_k ∂log w_k/∂z_k ∂z_k/∂φ`` (Roeder, Wu and Duvenaud 2017)
    iwae     ``log (1/K) Σ_k w_k``         plain, ``Σ_k ŵ_k d log w_k/dφ``
    dreg     the same                      ``Σ_k ŵ_k² ∂log w_k/∂z_k ∂z_k/∂φ`` (Tucker et al. 2019, eq. 8)
    =======  ============================  =======================================================================

    The model's parameters get the bound's own gradient from each. All have the same value and, in expectation, the
    same gradient as their bound. Where rows meet in batch normalisation by the minibatch's statistics, ``dreg`` lets
    the gradients through those statistics pass in full (:meth:`GradientGate.with_statistics`; gating them too would
    give a gradient that is several times too long) at the price of a second decoding of the draws; what is left is a
    bias of the order of one over the draws of the minibatch. That holds for one latent.

    Nothing here is read back from the device or depends on values, so that a step can be recorded as a CUDA graph.

    Attributes:
        bound: reduces the particles of the weights.
        path: leave the guide's score out.
        gated: multiply the path gradients by :func:`~vi_flows.objectives.path_gradient.dreg_factor`.
    """

    bound: Callable[[WeightTerms, float | Tensor], Tensor]
    path: bool = False
    gated: bool = False

    def row_bounds(
        self, model: WeightedModel, x: Tensor, num_particles: int, kl_weight: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """The bound of each row with its KL term weighted, and the bound itself without a graph, both ``(B,)``.

        Args:
            model: a VAE.
            x: rows ``(B, D)``.
            num_particles: draws a row.
            kl_weight: ``β`` of the KL term; a tensor of one element where the step is recorded.
        """
        if self.path:
            gate = GradientGate() if self.gated else None
            terms = model.path_log_weight_terms(x, num_particles, gate)
            if gate is not None:
                gate.factor = dreg_factor(terms.log_weights(kl_weight), kl_weight)
        else:
            terms = model.log_weight_terms(x, num_particles)
        weighted = self.bound(terms, kl_weight)
        if not isinstance(kl_weight, Tensor) and kl_weight == 1.0:
            return weighted, weighted.detach()
        with torch.no_grad():
            return weighted, self.bound(terms, 1.0)


DIRECT_OBJECTIVES: dict[str, DirectObjective] = {
    "elbo": DirectObjective(elbo_bound),
    "stl": DirectObjective(elbo_bound, path=True),
    "iwae": DirectObjective(iwae_bound),
    "dreg": DirectObjective(iwae_bound, path=True, gated=True),
}
"""By the name that ``vi-flows train vae --objective`` takes."""
