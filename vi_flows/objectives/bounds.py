"""The ELBO and the importance-weighted bound, for tensors of log-weights and for Pyro programs."""

from __future__ import annotations

import math
import warnings
from typing import Protocol

import torch
from torch import Tensor

from vi_flows.objectives.traced import TracedBound, TracedWeights

__all__ = ["ELBO", "IWAE", "WeightTerms", "elbo_bound", "iwae_bound"]


class WeightTerms(Protocol):
    """What the bounds need: log-weights with particles along the first dimension."""

    def log_weights(self, kl_weight: float | Tensor = 1.0) -> Tensor:
        """``log p(x|z) + β (log p(z) − log q(z|x))``, shape ``(P, …)``."""


def _log_weights(terms: WeightTerms, kl_weight: float | Tensor) -> Tensor:
    log_weights = terms.log_weights(kl_weight)
    if log_weights.dim() < 1 or not len(log_weights):
        raise ValueError(f"log-weights have the particles first, at least one, got {tuple(log_weights.shape)}")
    return log_weights


def elbo_bound(terms: WeightTerms, kl_weight: float | Tensor = 1.0) -> Tensor:
    """Mean log-weight over particles: ``E_q[log w]``, shape ``(…)``; nats a row.

    Args:
        terms: the weights.
        kl_weight: ``β`` of ``E log p(x|z) − β KL``.

    Raises:
        ValueError: there is no particle.
    """
    return _log_weights(terms, kl_weight).mean(0)


def iwae_bound(terms: WeightTerms, kl_weight: float | Tensor = 1.0) -> Tensor:
    """``log (1/K) Σ_k w_k``, shape ``(…)``; nats a row (Burda, Grosse & Salakhutdinov 2016, eq. 8).

    Args:
        terms: the weights.
        kl_weight: exponent of ``p(z)/q(z|x)`` within the weights; at 1 this is a lower bound of ``log p(x)``.

    Raises:
        ValueError: there is no particle.
    """
    log_weights = _log_weights(terms, kl_weight)
    return torch.logsumexp(log_weights, 0) - math.log(log_weights.shape[0])


class ELBO(TracedBound):
    """Evidence lower bound of a Pyro program: ``E_q[log p(x, z) − log q(z)]``, averaged over particles.

    The value equals ``pyro.infer.Trace_ELBO``'s; it is built from few tensors and read once.
    See :class:`~vi_flows.objectives.traced.TracedBound` for the arguments.
    """

    def bound(self, weights: TracedWeights, kl_weight: float) -> Tensor:
        """Mean over particles, sum over the common plates, times their ``N/B``."""
        return weights.common_scale * elbo_bound(weights, kl_weight).sum()


class IWAE(TracedBound):
    r"""Importance-weighted bound of a Pyro program, right under subsampling.

    With ``S`` the scale N/B of the plates that hold every site, ``S Σ_n log (1/K) Σ_k w_{nk}``: the logarithm of the
    mean is taken for each row of those plates and the scale stays outside of it (inside, as in Pyro 1.9's
    ``RenyiELBO``, the result can exceed the evidence). For a program without such a plate the weight of a particle is
    that of the whole program.

    If a *global* latent couples rows of a subsampled plate, the weights of different rows share it, and no logarithm
    of an average over particles stays below the evidence for every minibatch: then the particles are averaged outside
    the logarithm (the ELBO), with a warning.

    ``kl_weight`` bends the weights that the gradient sees; :meth:`loss` and the value returned by
    :meth:`loss_and_grads` are the bound at ``kl_weight = 1``.
    See :class:`~vi_flows.objectives.traced.TracedBound` for the arguments.
    """

    def bound(self, weights: TracedWeights, kl_weight: float) -> Tensor:
        """Log-mean-exp over particles, sum over the common plates, times their ``N/B``."""
        reduce = iwae_bound
        if weights.coupled:
            warnings.warn(
                f"{weights.why_coupled}: "
                "the particles are averaged outside the logarithm, which makes this the ELBO; "
                "use the full data for a tighter bound",
                stacklevel=2,
            )
            reduce = elbo_bound
        return weights.common_scale * reduce(weights, kl_weight).sum()
