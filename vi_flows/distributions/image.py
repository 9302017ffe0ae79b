"""Image flows as densities of 8-bit images: Pyro distributions, bits/dim, sampling with temperature, interpolation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vi_flows.distributions.dequantization import (
    Dequantized,
    Dequantizer,
    ImageOverflowError,
    Logistic,
    check_grey_type,
    check_greys,
)
from vi_flows.nn.precision import own_precision
from vi_flows.recording import may_be_looked_at
from vi_flows.settings import check_counts, check_image_shape, check_tensors, joint_batch
from vi_flows.transforms import Bijection, Inverse, Logit

__all__ = ["ImageDensity", "ImageOverflowError", "bits_per_dim", "check_density_settings"]

BASES = {"normal": dist.Normal, "logistic": Logistic}
SCALAR = torch.Size()


def bits_per_dim(log_prob: Tensor, num_dims: int) -> Tensor:
    r"""``−log P / (D ln 2)`` for log-probabilities of integer images in nats.

    For a flow with density ``p_Y`` in logit space this is the usual ``−log p_Y(y)/(D ln 2) − log₂(1−α) + 8 +
    (1/D) Σ [log₂ s + log₂(1−s)]`` of 256 levels.

    Args:
        log_prob: in nats, any shape.
        num_dims: ``D``, the number of pixels times channels.

    Raises:
        ValueError: ``num_dims`` is less than 1.
    """
    check_tensors(log_prob=log_prob)
    check_counts(1, num_dims=num_dims)
    return log_prob / (-num_dims * math.log(2.0))


def check_density_settings(image_shape: Sequence[int], num_levels: int, alpha: float, base: str) -> None:
    """Refuse what :class:`ImageDensity` can't be made with, but for its flow.

    Raises:
        ValueError: the shape is no ``(C, H, W)``, there are fewer than two levels, the base is unknown, or see
            :class:`~vi_flows.transforms.Logit`.
    """
    check_image_shape(image_shape)
    check_counts(2, num_levels=num_levels)
    Logit(alpha)
    if base not in BASES:
        raise ValueError(f"unknown base {base!r}; choose one of {', '.join(BASES)}")


class ImageDensity(nn.Module):
    r"""A flow over logits as a density of integer images, trainable and usable in Pyro models.

    ``ε → flow → logits → unit cube → ⌊n ·⌋``. :meth:`distribution` is the Pyro distribution; the other methods are
    what training and evaluation need.

    Args:
        flow: bijection from base to logits, see :mod:`vi_flows.flows.image`.
        image_shape: ``(C, H, W)``.
        num_levels: number of grey values.
        alpha: of the logit map; the papers' 1e-6 for MNIST and 0.05 for CIFAR-10.
        base: ``normal`` or ``logistic`` (NICE), independent and standard.
        dequantizer: default: uniform.
        batch_shape: of the densities, where the flow is one of several contexts.

    Raises:
        ValueError: see :func:`check_density_settings`.
    """

    origin: Tensor

    def __init__(
        self,
        flow: Bijection,
        image_shape: Sequence[int],
        num_levels: int = 256,
        alpha: float = 1e-6,
        base: str = "normal",
        dequantizer: Dequantizer | None = None,
        batch_shape: Sequence[int] = SCALAR,
    ) -> None:
        super().__init__()
        check_density_settings(image_shape, num_levels, alpha, base)
        self.flow = flow
        self.pixels = Inverse(Logit(alpha))
        self.image_shape, self.batch_shape = torch.Size(image_shape), torch.Size(batch_shape)
        self.num_levels, self.base = num_levels, base
        self.dequantizer = dequantizer
        self.register_buffer("origin", torch.zeros(()), persistent=False)

    @property
    def num_dims(self) -> int:
        """``D = C H W``."""
        return self.image_shape.numel()

    def condition(self, context: Tensor) -> ImageDensity:
        """The density itself: it is the same for every context."""
        return self

    def base_dist(
        self, temperature: float = 1.0, loc: Tensor | None = None, log_scale: Tensor | None = None
    ) -> dist.TorchDistribution:
        """The base: standard, or with a mean and scale for each row; the scale is multiplied by ``temperature``.

        Args:
            temperature: positive.
            loc: ``(…, C, H, W)``, for instance a decoder's output; default: 0.
            log_scale: broadcastable with ``loc``; default: 0.

        Raises:
            ValueError: the temperature is no positive number, ``loc`` and ``log_scale`` are not of the images' shape,
                or see :func:`~vi_flows.distributions.dequantization.check_grey_type`.
        """
        check_grey_type(self.origin.dtype, self.num_levels)
        try:
            fits = 0 < float(temperature) < math.inf
        except (TypeError, ValueError, RuntimeError):  # no number, or several
            fits = False
        if not fits:
            raise ValueError(f"temperature must be positive and finite, got {temperature!r}")
        loc = self.origin.expand(self.batch_shape + self.image_shape) if loc is None else loc
        if log_scale is None:
            scale = torch.full_like(loc, temperature)
        else:
            loc, scale = torch.broadcast_tensors(loc, temperature * log_scale.exp())
        if loc.shape[-3:] != self.image_shape:
            raise ValueError(
                f"the base of images of {tuple(self.image_shape)} must have their shape, got loc and log_scale of "
                f"{tuple(loc.shape)}"
            )
        # Unvalidated: of a latent that overflowed, validation would print the whole tensor; NaN is reported by name.
        return BASES[self.base](loc, scale, validate_args=False).to_event(3)

    def logit_distribution(
        self, temperature: float = 1.0, loc: Tensor | None = None, log_scale: Tensor | None = None
    ) -> dist.TransformedDistribution:
        """The flow's density over logits; arguments as for :meth:`base_dist`."""
        return dist.TransformedDistribution(self.base_dist(temperature, loc, log_scale), [self.flow])

    def distribution(
        self, temperature: float = 1.0, loc: Tensor | None = None, log_scale: Tensor | None = None
    ) -> Dequantized:
        """The density over integer images: ``pyro.sample("x", density.distribution(), obs=images)``.

        Args:
            temperature: scale of the base; below 1 gives more typical samples, 1 is the model.
            loc: mean of the base for each row, see :meth:`base_dist`.
            log_scale: log scale of the base for each row.
        """
        base = self.base_dist(temperature, loc, log_scale)
        continuous = dist.TransformedDistribution(base, [self.flow, self.pixels])
        return Dequantized(continuous, self.num_levels, self.dequantizer, dtype=self.origin.dtype)

    def log_prob(self, images: Tensor, num_draws: int = 1) -> Tensor:
        """Mean over ``num_draws`` draws of the noise of the bound of ``log P(image)`` in nats, shape ``(…)``.

        Args:
            images: integers ``0 … num_levels − 1``, ``(…, C, H, W)``.
            num_draws: draws of ``u`` an image, one after the other.

        Raises:
            ValueError: the images have another shape or other values, or ``num_draws`` is less than 1.
            ImageOverflowError: the density of an image is NaN or zero.
        """
        self.check_images(images=images)
        # Whether or not Pyro validates: beyond them there is no density.
        check_greys(images, self.num_levels)
        scores = self._scores(images, num_draws)
        broken = int((~torch.isfinite(scores)).sum())
        if broken:
            raise ImageOverflowError(
                f"the density of {broken} of {scores.numel()} images is NaN or zero: the flow overflows on them. Bound "
                "its scales (scale='tanh'), or train it with a smaller learning rate"
            )
        return scores

    def bits_per_dim(self, images: Tensor, num_draws: int = 1) -> Tensor:
        """:func:`bits_per_dim` of :meth:`log_prob`: an upper bound in expectation, shape ``(…)``.

        Raises:
            ImageOverflowError: see :meth:`log_prob`.
        """
        return bits_per_dim(self.log_prob(images, num_draws), self.num_dims)

    def forward(self, images: Tensor, num_draws: int = 1) -> Tensor:
        """:meth:`bits_per_dim` for training: not finite where the flow overflows, which ends a training by name."""
        return bits_per_dim(self._scores(images, num_draws), self.num_dims)

    def _scores(self, images: Tensor, num_draws: int) -> Tensor:
        self.check_images(images=images)
        check_counts(1, num_draws=num_draws)
        images = images.to(self.origin)
        distribution = self.distribution()
        with own_precision(images.device.type):
            return torch.stack([distribution.log_prob(images) for _ in range(num_draws)]).mean(0)

    @torch.no_grad()
    def initialize(self, images: Tensor) -> None:
        """One pass in training mode over a batch: the data-dependent initialization of every actnorm.

        Args:
            images: a batch of training images, some hundred of them.
        """
        modes = {module: module.training for module in self.modules()}
        self.train()
        self.forward(images)
        for module, mode in modes.items():  # parts that were frozen stay so
            module.training = mode

    @torch.no_grad()
    def sample(self, num_samples: int, temperature: float = 1.0) -> Tensor:
        """Integer images, ``(num_samples, …, C, H, W)``, dtype uint8 (int32 for more than 256 levels).

        Raises:
            ValueError: see :meth:`base_dist`, or ``num_samples`` is less than 0.
            ImageOverflowError: an image is not finite; :meth:`sample_logits` shows which.
        """
        return self._integers(self.sample_logits(num_samples, temperature))

    @torch.no_grad()
    def sample_logits(self, num_samples: int, temperature: float = 1.0) -> Tensor:
        """Samples before they become grey values, ``(num_samples, …, C, H, W)``: to be counted, whatever they are.

        Args:
            num_samples: how many.
            temperature: scale of the base; 1 is the model.

        Raises:
            ValueError: see :meth:`base_dist`, or ``num_samples`` is less than 0.
        """
        check_counts(0, num_samples=num_samples)
        with own_precision(self.origin.device.type):
            return self.logit_distribution(temperature).sample(torch.Size((num_samples,)))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents of images without noise (``u = ½``), ``(…, C, H, W)``; autocast around has no effect.

        Args:
            images: integers ``0 … num_levels − 1``, ``(…, C, H, W)``.

        Raises:
            ValueError: the images have another shape or other values, or see
                :func:`~vi_flows.distributions.dequantization.check_grey_type`.
        """
        logits = self.middle_logits(images)
        with own_precision(logits.device.type):
            return self.flow.inverse_and_ladj(logits)[0]

    @torch.no_grad()
    def middle_logits(self, images: Tensor) -> Tensor:
        """Logits of images without noise (``u = ½``), ``(…, C, H, W)``; see :meth:`encode`."""
        self.check_images(images=images)
        check_grey_type(self.origin.dtype, self.num_levels)
        images = images.to(self.origin)
        if may_be_looked_at(images):
            check_greys(images, self.num_levels)
        return self.pixels.inverse_and_ladj((images + 0.5) / self.num_levels)[0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Integer images of latents; undoes :meth:`encode` exactly, for which autocast around has no effect.

        Args:
            latents: ``(…, C, H, W)``, of any type: it is computed in the density's.

        Raises:
            ValueError: see :meth:`encode`.
            ImageOverflowError: an image is not finite.
        """
        self.check_images(latents=latents)
        check_grey_type(self.origin.dtype, self.num_levels)
        latents = latents.to(self.origin)
        with own_precision(latents.device.type):
            return self._integers(self.flow.forward_and_ladj(latents)[0])

    @property
    def logit_range(self) -> tuple[float, float]:
        """The least and the largest logit that an image can have, whatever the noise: beyond them is no data."""
        ends = self.origin.new_tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
        low, high = self.pixels.inverse_and_ladj(ends)[0].flatten().tolist()
        return low, high

    def interpolate(self, first: Tensor, second: Tensor, num_steps: int = 8) -> Tensor:
        """Images along the straight line between two images' latents, ``(num_steps, …, C, H, W)``, ends included.

        Raises:
            ValueError: fewer than two steps, not as many images at one end as at the other, or see :meth:`encode`.
        """
        check_counts(2, num_steps=num_steps)
        self.check_images(first=first, second=second)
        start, end = self.encode(first), self.encode(second)
        weight = torch.linspace(0, 1, num_steps).to(self.origin).reshape(-1, *[1] * start.dim())
        return self.decode(start + weight * (end - start))

    def check_images(self, **tensors: Tensor) -> None:
        """Refuse the first that is no tensor of such images, or has a batch that doesn't go with the others'.

        Raises:
            TypeError: it is no tensor.
            ValueError: the shape.
        """
        check_tensors(**tensors)
        batch = self.batch_shape
        for name, value in tensors.items():
            if value.shape[-3:] != self.image_shape:
                raise ValueError(f"expected {name} of {tuple(self.image_shape)}, got a tensor of {tuple(value.shape)}")
            of = "second is for each of first" if name == "second" else "one image is for each context"
            batch = joint_batch(name, value.shape[:-3], batch, of)

    def _integers(self, logits: Tensor) -> Tensor:
        broken = int((~torch.isfinite(logits)).flatten(-3).any(-1).sum())
        if broken:
            raise ImageOverflowError(
                f"{broken} of {logits[..., 0, 0, 0].numel()} images are NaN or infinite: the flow overflows far from "
                "the data. Draw at a temperature below 1, train longer, or bound the couplings (scale='tanh')"
            )
        images = (self.pixels.forward_and_ladj(logits)[0] * self.num_levels).floor()
        kind = torch.uint8 if self.num_levels <= 256 else torch.int32
        return images.clamp(0, self.num_levels - 1).to(kind)
