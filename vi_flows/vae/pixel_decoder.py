r"""VAEs whose decoder is autoregressive: the latent says what the model of the pixels' neighbourhoods leaves out.

Gulrajani et al. 2017, *PixelVAE*; Chen et al. 2017, *Variational Lossy Autoencoder*. A decoder that sees all earlier
pixels needs no latent, and the ELBO then drives ``KL(q(z|x) ‖ p(z))`` to zero (the lossy paper's section 2.2, by
bits-back coding): one that sees only some pixels around leaves the global structure to ``z`` and keeps the local
statistics to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from pyro.distributions import TorchDistribution, TransformedDistribution
from torch import Tensor
from torch.distributions.transforms import ReshapeTransform

from vi_flows.autoregressive import AutoregressiveDistribution, Bernoulli
from vi_flows.autoregressive.config import PixelModel
from vi_flows.transforms import Bijection
from vi_flows.vae.config import VAEConfig, vae_parts
from vi_flows.vae.model import LatentChain
from vi_flows.vae.vae import VAE

__all__ = ["LatentUse", "PixelDecoderModel", "build_pixel_vae", "latent_use", "others_of"]


class PixelDecoderModel(LatentChain):
    r"""``p(x | z_L) = Π_i p(x_i | x_{<i}, h(z_L))``, with an autoregressive model of the image given features ``h``.

    Args:
        image_shape: ``(C, H, W)``; rows of data are flat images.
        decoder: settings of the autoregressive model; its context is the last hidden layer of ``z_L``'s network.
        latent_dims: see :class:`LatentChain`.
        hidden_dims: see :class:`LatentChain`.
        activation: of the hidden layers.
        batch_norm: before each activation.
        prior_flow: see :class:`~vi_flows.vae.LatentChain`.
        dropout: see there.

    Raises:
        ValueError: see :class:`~vi_flows.vae.LatentChain`; or the decoder's settings are inconsistent.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        decoder: PixelModel,
        latent_dims: Sequence[int] = (50,),
        hidden_dims: Sequence[Sequence[int]] = ((200, 200),),
        activation: str = "tanh",
        batch_norm: bool = False,
        prior_flow: Bijection | None = None,
        dropout: float = 0.0,
    ) -> None:
        shape = torch.Size(image_shape)
        super().__init__(shape.numel(), latent_dims, hidden_dims, activation, batch_norm, prior_flow, dropout)
        self.decoder = decoder.build(shape, Bernoulli(), self.networks[-1].output_dim)
        self.decoder.place_context()
        self._flatten = ReshapeTransform(shape, torch.Size([shape.numel()]))

    def set_output_bias(self, mean: Tensor) -> None:
        """Start at the data's mean image, where the decoder has a bias for each pixel."""
        self.decoder.set_output_bias(mean)

    def check_values(self, x: Tensor) -> None:
        """See :class:`LatentChain`; the decoder's pixels are zeros and ones."""
        if not self.decoder.output.support.check(x).all():
            raise ValueError("rows must be zeros and ones, the pixels of the decoder: draw_binary draws them of greys")

    def likelihood(self, z: Tensor, validate_args: bool | None = None) -> TorchDistribution:
        """``p(x | z_L)`` over flat images."""
        images = AutoregressiveDistribution(self.decoder, self.networks[-1](z), validate_args)
        return TransformedDistribution(images, [self._flatten], validate_args=False)

    def decode(self, z: Tensor) -> Tensor:
        """A draw for each latent: the pixels' means are not known."""
        return self.likelihood(z).sample()

    @property
    def numbers_a_point(self) -> int:
        """See :class:`LatentChain`; the decoder's features of every pixel, kept for the gradient, are the most."""
        features = sum(module.out_channels for module in self.decoder.modules() if isinstance(module, torch.nn.Conv2d))
        return super().numbers_a_point + 3 * self.data_dim * features


def build_pixel_vae(config: VAEConfig, decoder: PixelModel, image_shape: Sequence[int]) -> VAE:
    """The VAE that ``config`` describes, with an autoregressive decoder.

    Args:
        config: latents, networks and guide.
        decoder: model of the pixels.
        image_shape: ``(C, H, W)``.

    Raises:
        ValueError: the description is inconsistent (see the classes it builds).
    """
    parts = vae_parts(config, torch.Size(image_shape).numel())
    model = PixelDecoderModel(
        image_shape, decoder, parts.latent_dims, parts.hidden_dims, config.activation, config.batch_norm, parts.prior(),
        config.dropout,
    )  # fmt: skip
    return VAE(model, parts.guide())


class LatentUse(NamedTuple):
    """Where a VAE's bits are, in nats an image, each ``(B,)``, from one draw of the guide.

    Attributes:
        kl: ``log q(z|x) − log p(z)``, of mean ``KL(q(z|x) ‖ p(z))``.
        reconstruction: ``−log p(x|z)``.
        reconstruction_of_others: ``−log p(x|z′)`` with the latents of another image of all; what it lies above
            ``reconstruction`` is what the decoder learns from its own.
    """

    kl: Tensor
    reconstruction: Tensor
    reconstruction_of_others: Tensor


def others_of(x: Tensor, seed: int = 0) -> Tensor:
    """The rows in a random order in which none is in its own place.

    Of all rows, not of neighbours: files may hold one class after the other.

    Args:
        x: rows ``(N, …)``.
        seed: of the order.

    Raises:
        ValueError: there are fewer than two rows.
    """
    if len(x) < 2:
        raise ValueError(f"the latents of another image are needed, and there are {len(x)} images: take at least 2")
    circle = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    order = torch.empty_like(circle)
    order[circle] = circle.roll(1)
    return x[order]


@torch.no_grad()
def latent_use(vae: VAE, x: Tensor, others: Tensor) -> LatentUse:
    """How much an image's latent tells of it.

    Args:
        vae: the model, in ``eval()`` mode.
        x: rows ``(B, D)``.
        others: as many; each of ``x`` is decoded from the latents of one of these, too. See :func:`others_of`.

    Raises:
        ValueError: there are more or fewer others, or see :meth:`LatentChain.rows`.
    """
    if len(others) != len(x):
        raise ValueError(f"each row needs one other, and there are {len(x)} rows and {len(others)} others")
    x = vae.model.rows(x)
    latents, log_q = vae.guide.sample_and_log_prob(x, 1)
    log_prior = vae.model.log_prior(latents)
    strange, _ = vae.guide.sample_and_log_prob(vae.model.rows(others), 1)
    scores = [-vae.model.likelihood(z, validate_args=False).log_prob(x)[0] for z in (latents[-1], strange[-1])]
    return LatentUse((log_q - log_prior)[0], *scores)
