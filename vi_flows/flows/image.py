"""Image flows by name: NICE, Real NVP, MCONV, Glow and its descendants with k×k convolutions, Flow++.

Each is a dataclass of settings; ``build(image_shape)`` gives a bijection from base to logits, ready for
:class:`~vi_flows.distributions.image.ImageDensity`. Scoring an image is one pass through every network; so is sampling,
but for quad-coupling, whose networks are then evaluated one after the other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from vi_flows.flows.image_base import ImageFlow, ImageShape, Scale, check_levels, make_coupling
from vi_flows.flows.image_maf import ImageMAF
from vi_flows.flows.image_steps import Emerging, FInC, FlowPP, Glow, InvConv3x3, InverseFlow, Periodic
from vi_flows.nn.image import MLPConditioner, ResNetConditioner
from vi_flows.settings import NonNegative, Positive, PositiveFloat, check_image_shape
from vi_flows.transforms import (
    ActNorm,
    AdditiveMap,
    AffineMap,
    Bijection,
    Chain,
    ChannelGroups,
    Checkerboard,
    Checkpointed,
    ImageBatchNorm,
    Inverse,
    MConvMap,
    MultiScale,
    Scaling,
    Squeeze,
)
from vi_flows.transforms.coupling import Partition
from vi_flows.transforms.coupling_maps import CouplingMap

__all__ = ["IMAGE_FLOWS", "IMAGE_PRESETS", "MCONV", "ImageCouplingFlow", "ImageNICE", "ImageRealNVP"]

NORMS: dict[str, Callable[[int], Bijection]] = {"act": ActNorm, "batch": ImageBatchNorm}
"""Normalisations between the couplings of Real NVP and MCONV."""


@dataclass(frozen=True, kw_only=True)
class ImageCouplingFlow(ImageFlow):
    """Checkerboard couplings, squeeze, channel couplings, split; and checkerboard couplings at the end (Real NVP)."""

    num_levels: Positive = 2
    """Levels, each with one squeeze; half of the channels are factored out between them."""
    num_couplings: Positive = 3
    """Couplings with each kind of mask and level, of alternating parity."""
    num_final: NonNegative = 4
    """Checkerboard couplings at the end (MCONV's need an even width there)."""
    width: Positive = 64
    """Feature maps of the residual networks."""
    num_blocks: Positive = 8
    """Residual blocks of the networks."""
    norm: Literal["act", "batch"] = "act"
    """Between the couplings: actnorm, or batch normalisation as in the paper of Real NVP."""
    multi_scale: bool = True
    """Factor out latents between levels."""
    scale: Scale = "tanh"
    """Scale function of the couplings."""

    @property
    def normalizes_batches(self) -> bool:
        """See :attr:`ImageFlow.normalizes_batches`."""
        return self.norm == "batch"

    @abstractmethod
    def change(self) -> CouplingMap:
        """The map of a coupling."""

    def build(
        self, image_shape: ImageShape, recompute: bool = False, conditioner_dtype: torch.dtype | None = None
    ) -> Inverse:
        """See :meth:`ImageFlow.build`; the sides must be divisible by ``2^num_levels``."""
        check_levels(image_shape, self.num_levels)

        def network(n_in: int, n_out: int) -> nn.Module:
            return ResNetConditioner(n_in, n_out, self.width, self.num_blocks)

        def couplings(count: int, channels: int, partition: Callable[[int], Partition]) -> list[Bijection]:
            parts: list[Bijection] = []
            for index in range(count):
                layer = make_coupling(partition(index % 2), channels, self.change(), network, conditioner_dtype)
                parts += [NORMS[self.norm](channels), Checkpointed(layer) if recompute else layer]
            return parts

        def by_channels(channels: int) -> Callable[[int], Partition]:
            return lambda swap: ChannelGroups(channels, swap=bool(swap))

        channels = image_shape[0]
        levels: list[Bijection] = []
        for level in range(self.num_levels):
            parts = couplings(self.num_couplings, channels, Checkerboard)
            channels *= 4
            parts.append(Squeeze())
            parts += couplings(self.num_couplings, channels, by_channels(channels))
            if level + 1 == self.num_levels:
                parts += couplings(self.num_final, channels, Checkerboard)
            elif self.multi_scale:
                channels //= 2
            levels.append(Chain(parts))
        return Inverse(MultiScale(image_shape, levels if self.multi_scale else [Chain(levels)]))


@dataclass(frozen=True, kw_only=True)
class ImageRealNVP(ImageCouplingFlow):
    """Real NVP (Dinh et al. 2017): affine couplings with checkerboard, then channel masks, at each level."""

    name: ClassVar[str] = "real_nvp"

    def change(self) -> AffineMap:
        """``y = (x + t) s``."""
        return AffineMap(self.scale)


@dataclass(frozen=True, kw_only=True)
class MCONV(ImageCouplingFlow):
    """MCONV (Karami et al.): the structure of Real NVP with multiplication-convolution couplings.

    The default is the paper's four stages of eight flows: checkerboard and channel masks at two levels.
    """

    name: ClassVar[str] = "mconv"

    num_couplings: Positive = 8
    """Flows a stage."""
    num_final: NonNegative = 0
    """Checkerboard couplings at the end; they need an even width there."""
    filter: Literal["cepstrum", "kernel", "cosine"] = "cepstrum"
    """The convolution: cepstrum is bounded by construction, kernel as the paper writes it, or cosine."""
    bound: PositiveFloat = 2.0
    """Largest log magnitude of a bounded spectrum."""

    def change(self) -> MConvMap:
        """Convolve, shift, scale, shift."""
        return MConvMap(self.scale, self.filter, self.bound)


@dataclass(frozen=True, kw_only=True)
class ImageNICE(ImageFlow):
    """NICE (Dinh et al. 2014): additive couplings of alternating pixels with fully connected networks, then a scaling.

    The paper's base on MNIST is logistic.
    """

    name: ClassVar[str] = "nice"

    num_couplings: Positive = 4
    """Couplings; 4 in the paper."""
    hidden_dims: tuple[Positive, ...] = (1000,) * 5
    """Widths of each network; five of 1000 in the paper."""

    def build(
        self, image_shape: ImageShape, recompute: bool = False, conditioner_dtype: torch.dtype | None = None
    ) -> Inverse:
        """See :meth:`ImageFlow.build`."""
        check_image_shape(image_shape)

        def network(n_in: int, n_out: int) -> nn.Module:
            return MLPConditioner((n_in, *image_shape[1:]), n_out, self.hidden_dims)

        parts: list[Bijection] = []
        for index in range(self.num_couplings):
            layer = make_coupling(Checkerboard(index % 2), image_shape[0], AdditiveMap(), network, conditioner_dtype)
            parts.append(Checkpointed(layer) if recompute else layer)
        return Inverse(Chain([*parts, Scaling(image_shape)]))


IMAGE_FLOWS: dict[str, type[ImageFlow]] = {
    flow.name: flow
    for flow in (
        ImageNICE,
        ImageMAF,
        ImageRealNVP,
        Glow,
        MCONV,
        InvConv3x3,
        InverseFlow,
        Emerging,
        Periodic,
        FInC,
        FlowPP,
    )
}
"""The flows by name; each is a dataclass of settings with ``build(image_shape)``."""

IMAGE_PRESETS: dict[str, ImageFlow] = {
    # Dinh et al. 2014, section 5.1: four couplings, five hidden layers of 1000, logistic base.
    "nice-mnist": ImageNICE(num_couplings=4, hidden_dims=(1000,) * 5, base="logistic"),
    # Papamakarios et al. 2017, table 3 and appendix D: MNIST.
    "maf5-mnist": ImageMAF(num_layers=5, scale="exp"),
    "maf10-mnist": ImageMAF(num_layers=10, scale="exp"),
    # Dinh et al. 2017, section 4.1: CIFAR-10 with eight residual blocks of 64 maps, batch norm.
    "real_nvp-cifar10": ImageRealNVP(num_levels=1, num_couplings=3, num_final=4, width=64, num_blocks=8, norm="batch"),
    # Karami et al., section 5: four stages of eight flows, eight residual blocks of 64 maps.
    "mconv-mnist": MCONV(num_levels=2, num_couplings=8, width=64, num_blocks=8),
    "mconv-cifar10": MCONV(num_levels=2, num_couplings=8, width=64, num_blocks=8),
    # The same skeleton with affine couplings, for a comparison at equal size.
    "real_nvp-mnist": ImageRealNVP(num_levels=2, num_couplings=8, num_final=0, width=64, num_blocks=8),
    # Kingma & Dhariwal 2018, table 4.
    "glow-cifar10": Glow(num_levels=3, num_steps=32, width=512),
    # Nagar et al., section 4.
    "inv_conv3x3-cifar10": InvConv3x3(num_levels=3, num_steps=32, width=512, masked=True),
    "inv_conv3x3-quad-cifar10": InvConv3x3(num_levels=3, num_steps=32, width=512, masked=True, coupling="quad"),
    "emerging-cifar10": Emerging(num_levels=3, num_steps=32, width=512),
    "inv_conv3x3-imagenet32": InvConv3x3(num_levels=3, num_steps=48, width=512, masked=True),
    "inv_conv3x3-imagenet64": InvConv3x3(num_levels=4, num_steps=48, width=512, masked=True),
}
"""Flows of the papers by name. Their training: MCONV Adam 5e-4, batch 128; 3×3 Adam 1e-3, 500 to 1000 epochs."""
