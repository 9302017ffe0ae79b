r"""Densities of 8-bit images from densities of the continuum: uniform and variational dequantisation.

For a density ``p`` over the unit cube, ``P(x) = ∫ p((x + u)/n) du / n^D`` is the probability of the integer image
``x``. With noise ``u ~ q(u|x)`` on the unit cube, Jensen's inequality gives ``log P(x) ≥ E_q[log p((x + u)/n) −
log q(u|x)] − D log n``; one draw of ``u`` gives an unbiased estimate of the right side (Theis et al. 2016 for uniform
noise; Ho et al. 2019, *Flow++*, eq. 12, for learned noise).
"""

from __future__ import annotations

import math
from typing import ClassVar, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.types import _size

from vi_flows.expansion import Expandable
from vi_flows.nn.image import ConvConditioner
from vi_flows.recording import may_be_looked_at
from vi_flows.settings import check_counts, check_tensors
from vi_flows.transforms import AffineMap, Checkerboard, ConditionalChain, ConditionalCoupling, Inverse, Logit

__all__ = [
    "Dequantized", "Dequantizer", "ImageOverflowError", "Logistic", "UniformDequantizer", "VariationalDequantizer",
    "check_grey_type", "check_greys",
]  # fmt: skip

SCALAR = torch.Size()


class ImageOverflowError(FloatingPointError):
    """An image that a flow drew or decoded, or the density of one, is NaN or infinite."""


def check_grey_type(dtype: torch.dtype, num_levels: int = 256) -> None:
    """Refuse types in which a grey value and its noise are not told apart: of bfloat16, 200 + u is 200 or 201.

    Args:
        dtype: a floating-point type.
        num_levels: number of grey values.

    Raises:
        ValueError: it has 16 bits, or no 64 numbers between the greatest grey values.
    """
    if torch.finfo(dtype).bits < 32:
        raise ValueError(
            f"densities of images need float32 or float64, got {dtype}, which rounds the noise away: leave the density "
            "in float32 and let its networks run in bfloat16 (mixed_precision, or conditioner_dtype of a flow's build)"
        )
    if num_levels * torch.finfo(dtype).eps > 1 / 64:
        raise ValueError(
            f"{dtype} rounds the noise of {num_levels} grey values away: use at most "
            f"{int(1 / (64 * torch.finfo(dtype).eps))}, or float64 (double() of the density)"
        )


def check_greys(images: Tensor, num_levels: int) -> None:
    """Refuse images with other values than grey values.

    Args:
        images: of any shape and type.
        num_levels: number of grey values, ``n``.

    Raises:
        ValueError: a value is no whole number from 0 to ``n − 1``; says how many, and one of them.
    """
    if images.dtype == torch.bool:
        return
    greys = constraints.integer_interval(0, num_levels - 1).check(images)
    if not greys.all():
        raise ValueError(
            f"images must be whole numbers from 0 to {num_levels - 1}, and {int((~greys).sum())} of {greys.numel()} "
            f"values are not, such as {images[~greys][0].item():g}: scale them to grey values and round"
        )


class Logistic(dist.Logistic):
    """Pyro's logistic distribution with finite draws: its uniform noise is 0, and the draw −∞, once in 2²⁴ float32."""

    def rsample(self, sample_shape: _size = SCALAR) -> Tensor:
        """See :class:`pyro.distributions.Logistic`."""
        u = self.loc.new_empty(self._extended_shape(sample_shape)).uniform_()
        return self.icdf(u.clamp(min=torch.finfo(u.dtype).eps / 4))  # half of the least step from 0


class Dequantizer(Protocol):
    """Draws noise on the unit cube for integer images."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For ``x`` of shape ``(…, C, H, W)``: ``u`` of that shape, and ``log q(u|x)`` of shape ``(…)``."""


class UniformDequantizer:
    """``u ~ U[0, 1)``, ``log q = 0``."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform noise of the shape of ``x``."""
        return torch.rand_like(x), x.new_zeros(x.shape[:-3])


class VariationalDequantizer(nn.Module):
    r"""Learned noise ``u = σ(f(ε; x))`` with standard logistic ``ε`` and checkerboard couplings that see the image.

    It starts as uniform noise (``f`` is the identity then, and ``σ(ε)`` is uniform), and its parameters are trained
    with the flow's, by the same bound.

    Args:
        channels: of the images.
        num_levels: number of grey values; images are scaled to ``[−½, ½]`` for the networks.
        num_steps: couplings, of alternating parity.
        width: of the networks.
    """

    def __init__(self, channels: int, num_levels: int = 256, num_steps: int = 4, width: int = 32) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.flow = ConditionalChain(
            [
                ConditionalCoupling(
                    Checkerboard(step % 2),
                    [ConvConditioner(2 * channels, 2 * channels, width)],
                    AffineMap("tanh"),
                    context_channels=channels,
                )
                for step in range(num_steps)
            ]
        )
        self.squash = Inverse(Logit(1e-6))

    def distribution(self, x: Tensor) -> dist.TransformedDistribution:
        """``q(u|x)``, over noise of the shape of ``x``."""
        base = Logistic(torch.zeros_like(x), 1.0).to_event(3)
        return dist.TransformedDistribution(base, [self.flow.condition(x / (self.num_levels - 1) - 0.5), self.squash])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and its log-density, in one pass."""
        q = self.distribution(x)
        u = q.rsample()
        return u.clamp(0.0, 1.0), q.log_prob(u)


class Dequantized(Expandable):
    r"""Integer images ``0 … n−1`` under a density over the unit cube.

    ``log_prob`` is the one-draw estimate of the bound above: random, with fresh noise at each call. A sample is
    ``⌊n v⌋`` of a continuous sample ``v``, clipped to the range.

    Args:
        base_dist: distribution over ``[0, 1)`` images, three event dimensions.
        num_levels: ``n``.
        dequantizer: where ``u`` comes from; default: uniform.
        validate_args: as for every PyTorch distribution.
        dtype: in which the continuum is computed, the one of ``base_dist``; default: the values' own where that is
            floating, else PyTorch's default type.

    Raises:
        ValueError: ``base_dist`` has not three event dimensions, there are fewer than two levels, or see
            :func:`check_grey_type`.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        base_dist: Distribution,
        num_levels: int = 256,
        dequantizer: Dequantizer | None = None,
        validate_args: bool | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if len(base_dist.event_shape) != 3:
            raise ValueError(f"base_dist must have (C, H, W) events, got {tuple(base_dist.event_shape)}")
        check_counts(2, num_levels=num_levels)
        if dtype is not None:
            check_grey_type(dtype, num_levels)
        self.base_dist, self.num_levels, self.dtype = base_dist, num_levels, dtype
        self.dequantizer = UniformDequantizer() if dequantizer is None else dequantizer
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Integers from 0 to ``num_levels − 1``."""
        return constraints.independent(constraints.integer_interval(0, self.num_levels - 1), 3)

    def _expanded(self, batch_shape: torch.Size) -> Dequantized:
        base = self.base_dist.expand(batch_shape)
        return Dequantized(base, self.num_levels, self.dequantizer, validate_args=False, dtype=self.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: _size = SCALAR) -> Tensor:
        """Integer images as floats, shape ``sample_shape + batch_shape + (C, H, W)``.

        Raises:
            ImageOverflowError: an image is NaN.
        """
        continuous = self.base_dist.sample(torch.Size(sample_shape))
        broken = int(continuous.isnan().flatten(-3).any(-1).sum()) if may_be_looked_at(continuous) else 0
        if broken:
            raise ImageOverflowError(
                f"{broken} of {continuous[..., 0, 0, 0].numel()} images are NaN: the base's draws overflow. Draw at a "
                "temperature below 1, train longer, or bound the couplings (scale='tanh')"
            )
        return (continuous * self.num_levels).floor().clamp(0, self.num_levels - 1)

    def _validate_sample(self, value: Tensor) -> None:
        """As PyTorch's, but in a sentence, where that prints the whole tensor; and no images are well, too."""
        check_tensors(value=value)
        batch = value.shape[:-3]
        pairs = zip(reversed(batch), reversed(self.batch_shape), strict=False)
        if value.shape[-3:] != self.event_shape or any(a != b and 1 not in (a, b) for a, b in pairs):
            of = f", for a batch of {tuple(self.batch_shape)}" if self.batch_shape else ""
            raise ValueError(f"expected images of {tuple(self.event_shape)}{of}, got a tensor of {tuple(value.shape)}")
        check_greys(value, self.num_levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """One-draw estimate of a lower bound of ``log P(value)`` in nats, shape of the batch.

        Args:
            value: integer images of any dtype, ``(…, C, H, W)``.

        Raises:
            ValueError: with validation on, the images have another shape or see :func:`check_greys`; or see
                :func:`check_grey_type`.
        """
        if self._validate_args:
            self._validate_sample(value)
        dtype = self.dtype
        if dtype is None:
            dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
            check_grey_type(dtype, self.num_levels)
        x = value.to(dtype)
        if x.numel() == 0:  # which PyTorch's events of several dimensions can't be summed over
            return x.new_zeros(torch.broadcast_shapes(x.shape[:-3], self.batch_shape))
        u, log_q = self.dequantizer(x)
        size = self.event_shape.numel()
        return self.base_dist.log_prob((x + u) / self.num_levels) - log_q - size * math.log(self.num_levels)
