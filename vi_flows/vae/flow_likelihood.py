"""A VAE whose likelihood is an image flow: the decoder sets the flow's base, the posterior may be a ConvFlow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import torch
from torch import Tensor, nn

from vi_flows.distributions import FlowNormal
from vi_flows.distributions.dequantization import Dequantized
from vi_flows.distributions.image import ImageDensity
from vi_flows.nn import MLP, GaussianHead
from vi_flows.parameters import register_module
from vi_flows.transforms import Bijection, ConditionalBijection
from vi_flows.vae.guide import AmortizedGuide
from vi_flows.vae.model import check_prior_flow, data_plate

__all__ = ["FlowLikelihoodVAE"]


class FlowLikelihoodVAE(nn.Module):
    r"""``z ~ p(z)``, ``ε|z ~ N(μ(z), σ(z)²)``, ``x = ⌊n σ(f(ε))⌋``; ``q(z|x)`` is a Gaussian pushed through a flow.

    Model and guide are Pyro programs of the same arguments: ``SVI(vae.model, vae.guide, …)``, ``TraceMeanField_ELBO``
    apart (``x`` has no closed form). The likelihood uses one draw of the dequantisation noise, so the ELBO is a bound
    of the probability of the integer images.

    Args:
        density: the image flow ``f`` with its dequantisation; trained along.
        latent_dim: size of ``z``.
        hidden_dims: widths of the decoder; mirrored in the encoder.
        prior_flow: bijection of ``z`` vectors that makes the prior ``p(z)`` of a standard normal; ``None`` for none.
        posterior_flow: see :class:`~vi_flows.vae.AmortizedGuide`.
        activation: of the hidden layers.

    Raises:
        ValueError: the prior's density can't be followed by gradients
            (:func:`~vi_flows.vae.model.check_prior_flow`).
    """

    def __init__(
        self,
        density: ImageDensity,
        latent_dim: int = 16,
        hidden_dims: Sequence[int] = (200, 200),
        prior_flow: Bijection | None = None,
        posterior_flow: Bijection | ConditionalBijection | None = None,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        check_prior_flow(prior_flow)
        self.density, self.latent_dim, self.prior_flow = density, latent_dim, prior_flow
        self.decoder = MLP(latent_dim, hidden_dims, activation)
        self.head = GaussianHead(self.decoder.output_dim, density.num_dims)
        with torch.no_grad():  # the decoder says nothing at first, which is the flow alone
            self.head.linear.weight.mul_(0.1)
            self.head.linear.bias.zero_()
        self.encoder = AmortizedGuide(density.num_dims, (latent_dim,), (hidden_dims,), [posterior_flow], activation)

    def prior(self, size: int) -> FlowNormal:
        """``p(z)`` over ``size`` rows."""
        zeros = self.density.origin.expand(size, self.latent_dim)
        return FlowNormal(zeros, zeros, self.prior_flow)

    def likelihood(self, z: Tensor, temperature: float = 1.0) -> Dequantized:
        """``p(x|z)`` for ``z`` of shape ``(…, latent_dim)``."""
        loc, log_scale = (part.unflatten(-1, self.density.image_shape) for part in self.head(self.decoder(z)))
        return self.density.distribution(temperature, loc, log_scale)

    def model(self, x: Tensor | None = None, *, size: int = 1, dataset_size: int | None = None) -> Tensor:
        """The Pyro model, rows in a plate called ``data``; sites ``z`` and ``x``.

        Args:
            x: integer images ``(B, C, H, W)``; ``None`` to generate.
            size: rows to generate when ``x`` is ``None``.
            dataset_size: rows that the minibatch stands for.

        Returns:
            The images, observed or drawn.
        """
        rows = size if x is None else len(x)
        register_module("flow_likelihood_vae", self)
        with data_plate(rows, dataset_size):
            z = pyro.sample("z", self.prior(rows))
            return pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor, *, size: int = 1, dataset_size: int | None = None) -> dict[str, Tensor]:
        """The Pyro guide, of the model's arguments; returns the latent by site name."""
        return self.encoder(self._rows(x), dataset_size=dataset_size)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Data-dependent initialization of the flow's actnorms, from a batch of images."""
        self.density.initialize(x)

    @torch.no_grad()
    def bits_per_dim(self, x: Tensor, num_particles: int = 1) -> Tensor:
        """Negative IWAE bound of ``num_particles`` draws in bits/dim (``num_particles = 1``: the ELBO), shape ``(B,)``.

        Args:
            x: integer images ``(B, C, H, W)``.
            num_particles: draws of the posterior and of the noise, together.
        """
        (z,), log_q = self.encoder.sample_and_log_prob(self._rows(x), num_particles)
        images = x.to(self.density.origin).expand(num_particles, *x.shape)
        log_weight = self.likelihood(z).log_prob(images) + self.prior(len(x)).log_prob(z) - log_q
        log_p = torch.logsumexp(log_weight, 0) - math.log(num_particles)
        return log_p / (-self.density.num_dims * math.log(2.0))

    @torch.no_grad()
    def sample(self, num_samples: int, temperature: float = 1.0) -> Tensor:
        """Integer images ``(num_samples, C, H, W)``."""
        z = self.prior(num_samples).rsample()
        return self.likelihood(z, temperature).sample()

    def _rows(self, x: Tensor) -> Tensor:
        self.density.check_images(images=x)
        return x.to(self.density.origin).flatten(-3) / (self.density.num_levels - 1)
