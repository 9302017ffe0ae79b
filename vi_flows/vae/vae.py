"""A model and its guide together, and the terms of their importance weights without a Pyro trace."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vi_flows.objectives.path_gradient import GradientGate, with_detached_parameters
from vi_flows.recording import may_be_looked_at
from vi_flows.vae.guide import AmortizedGuide
from vi_flows.vae.model import LatentChain

__all__ = ["VAE", "LogWeightTerms"]


class LogWeightTerms(NamedTuple):
    """The parts of ``log w = log p(x|z) + log p(z) − log q(z|x)``, each ``(particles, rows)``, in nats."""

    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor

    def log_weights(self, kl_weight: float | Tensor = 1.0) -> Tensor:
        """``log p(x|z) + β (log p(z) − log q(z|x))``, with ``β = kl_weight``."""
        return self.log_likelihood + kl_weight * (self.log_prior - self.log_posterior)


class VAE(nn.Module):
    """A generative model and its amortised guide.

    ``vae.model`` and ``vae.guide`` are Pyro programs for ``SVI``, ``Predictive`` and the rest; :meth:`log_weight_terms`
    evaluates the same distributions directly.

    Args:
        model: ``p(x, z)``.
        guide: ``q(z|x)`` over the same latents.

    Raises:
        ValueError: the two do not have the same latents.
    """

    def __init__(self, model: LatentChain, guide: AmortizedGuide) -> None:
        super().__init__()
        if model.latent_names != guide.latent_names or model.data_dim != guide.data_dim:
            raise ValueError("the model and the guide differ in their latents or in the data's dimension")
        self.model = model
        self.guide = guide

    def log_weight_terms(self, x: Tensor, num_particles: int = 1) -> LogWeightTerms:
        """``num_particles`` importance-weighted draws of each row, without the argument checks of Pyro's distributions.

        Args:
            x: rows ``(B, D)``.
            num_particles: draws a row.

        Raises:
            ValueError: see :meth:`LatentChain.rows`; on a GPU values are looked at only where no gradients are
                recorded, for a look would hold up a training step.
        """
        x = self._rows(x)
        return self._terms(x, *self.guide.sample_and_log_prob(x, num_particles))

    def check_gated_gradient(self) -> None:
        """Refuse models whose draws meet on their way into one another, where a gate would weigh what is not its own.

        Raises:
            ValueError: there are several latents, and batch normalization lets their rows meet.
        """
        if len(self.guide.latent_names) > 1 and any("running_mean" in part._buffers for part in self.guide.modules()):
            raise ValueError(
                "dreg with batch_norm needs one latent: where a latent's draws are normalised by the minibatch for the "
                "next one's, its gradient is biased; use iwae, or leave batch_norm out"
            )

    def path_log_weight_terms(
        self, x: Tensor, num_particles: int = 1, gate: GradientGate | None = None
    ) -> LogWeightTerms:
        """As :meth:`log_weight_terms`, with the guide's gradients through the draws alone.

        The values are the same. ``log q`` is scored a second time at the draws, with the guide's parameters detached
        (:func:`~vi_flows.objectives.path_gradient.with_detached_parameters`), for its gradient.

        Args:
            x: rows ``(B, D)``.
            num_particles: draws a row.
            gate: what the draws pass on their way into the weights; its factor is ``(P, B)``. The draws among
                themselves, where one latent is the next one's input, don't pass it.

        Raises:
            NotImplementedError: a flow of the guide has no inverse.
            ValueError: see :meth:`log_weight_terms`.
        """
        x = self._rows(x)
        latents, log_q = self.guide.sample_and_log_prob(x, num_particles)
        if gate is not None:
            # In training, batch normalization lets every row into every other one's weights.
            coupled = any("running_mean" in part._buffers and part.training for part in self.modules())
            latents = [gate.with_statistics(z, 1) if coupled else gate(z, 1) for z in latents]
        # A single latent's guide sees no draw but its own.
        scored = latents if len(latents) > 1 else [latents[0][:num_particles]]
        again = with_detached_parameters(self.guide, lambda: self.guide.log_prob(x, scored))[:num_particles]
        # The value without the inverse's rounding.
        terms = self._terms(x, latents, log_q.detach() + (again - again.detach()))
        return LogWeightTerms(
            terms.log_likelihood[:num_particles], terms.log_prior[:num_particles], terms.log_posterior
        )

    def _rows(self, x: Tensor) -> Tensor:
        return self.model.rows(x, may_be_looked_at(x))

    def _terms(self, x: Tensor, latents: list[Tensor], log_q: Tensor) -> LogWeightTerms:
        likelihood = self.model.likelihood(latents[-1], validate_args=False)
        return LogWeightTerms(likelihood.log_prob(x), self.model.log_prior(latents), log_q)

    @torch.no_grad()
    def sample(self, num_rows: int) -> Tensor:
        """Pixel means of ``num_rows`` draws from the model, ``(num_rows, D)``; see :meth:`LatentChain.decode`."""
        return self.model.decode(self.model.sample_latents(num_rows)[-1])

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Pixel means decoded from one posterior draw a row, ``(B, D)``; see :meth:`LatentChain.decode`.

        Raises:
            ValueError: see :meth:`LatentChain.rows`.
        """
        latents, _ = self.guide.sample_and_log_prob(self._rows(x), 1)
        return self.model.decode(latents[-1][0])
