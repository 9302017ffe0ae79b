"""Glow and the image flows that are made like it: steps of actnorm, mixing and coupling, level by level."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from vi_flows.flows.image_base import ImageFlow, ImageShape, Network, Scale, check_levels, make_coupling
from vi_flows.nn.attention import AttentionConditioner
from vi_flows.nn.image import ConvConditioner, GatedConditioner, ZeroConv2d
from vi_flows.settings import OneOf, Positive, SettingsError
from vi_flows.transforms import (
    ActNorm,
    AdditiveMap,
    AffineMap,
    Bijection,
    Chain,
    ChannelGroups,
    ChannelPermutation,
    Checkpointed,
    Conv1x1,
    EmergingConv2d,
    FourCornerConv2d,
    ImageChain,
    Inverse,
    MConvMap,
    MixtureMap,
    MultiScale,
    OneSidedConv2d,
    PeriodicConv2d,
    SplineMap,
    SplitPrior,
    Squeeze,
)
from vi_flows.transforms.coupling_maps import CouplingMap

__all__ = [
    "CONDITIONERS", "COUPLINGS", "Emerging", "FInC", "FlowPP", "Glow", "InvConv3x3", "InverseFlow", "Periodic",
    "StepFlow",
]  # fmt: skip

COUPLINGS: dict[str, tuple[Callable[[str], CouplingMap], int]] = {
    "additive": (lambda scale: AdditiveMap(), 2),
    "affine": (AffineMap, 2),
    "mconv": (MConvMap, 2),
    "mixture": (lambda scale: MixtureMap(), 2),
    "spline": (lambda scale: SplineMap(), 2),
    "quad": (AffineMap, 4),
    "quad_mconv": (MConvMap, 4),
    "quad_mixture": (lambda scale: MixtureMap(), 4),
    "quad_spline": (lambda scale: SplineMap(), 4),
}
"""Couplings of the step flows by name: the map (given the scale's name) and the number of channel groups."""

CONDITIONERS: dict[str, Callable[[int, int], Network]] = {
    "conv": lambda width, num_blocks: lambda n_in, n_out: ConvConditioner(n_in, n_out, width),
    "gated": lambda width, num_blocks: lambda n_in, n_out: GatedConditioner(n_in, n_out, width, num_blocks),
    "attention": lambda width, num_blocks: lambda n_in, n_out: AttentionConditioner(n_in, n_out, width, num_blocks),
}
"""Networks of the step flows by name, from their width and number of blocks."""

CouplingName = Annotated[str, OneOf(tuple(COUPLINGS))]
ConditionerName = Annotated[str, OneOf(tuple(CONDITIONERS))]


@dataclass(frozen=True, kw_only=True)
class StepFlow(ImageFlow):
    """Squeeze, (actnorm, mixing, coupling) × D, split; L levels (Kingma & Dhariwal 2018; Nagar et al., figure 3)."""

    num_levels: Positive = 2
    """Levels L, each with one squeeze."""
    num_steps: Positive = 8
    """Steps D a level."""
    width: Positive = 512
    """Hidden channels of the networks."""
    conditioner: ConditionerName = "conv"
    """The networks: the papers' three layers (conv), or blocks: gated, or gated with attention over all pixels."""
    num_blocks: Positive = 1
    """Blocks of gated and attention networks."""
    coupling: CouplingName = "affine"
    """The coupling: its map, and quad with four groups of channels in place of two."""
    scale: Scale = "tanh"
    """Scale function of affine and mconv couplings."""
    learned_prior: bool = True
    """Learned priors at the splits; otherwise standard normal ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_blocks != 1 and self.conditioner == "conv":
            raise SettingsError("num_blocks counts gated blocks: it needs conditioner=gated or attention")

    @abstractmethod
    def mixing(self, channels: int) -> list[Bijection]:
        """What stands between actnorm and coupling."""

    def build(
        self, image_shape: ImageShape, recompute: bool = False, conditioner_dtype: torch.dtype | None = None
    ) -> Inverse:
        """See :meth:`ImageFlow.build`; the sides must be divisible by ``2^num_levels``."""
        check_levels(image_shape, self.num_levels)
        make_map, num_groups = COUPLINGS[self.coupling]
        network = CONDITIONERS[self.conditioner](self.width, self.num_blocks)
        channels = image_shape[0]
        levels: list[Bijection] = []
        priors: list[SplitPrior | None] = []
        for level in range(self.num_levels):
            channels *= 4
            parts: list[Bijection] = [Squeeze()]
            for _ in range(self.num_steps):
                groups = ChannelGroups(channels, num_groups)
                change = make_coupling(groups, channels, make_map(self.scale), network, conditioner_dtype)
                step = ImageChain([ActNorm(channels), *self.mixing(channels), change])
                parts.append(Checkpointed(step) if recompute else step)
            levels.append(Chain(parts))
            if level + 1 < self.num_levels:
                priors.append(SplitPrior(channels, ZeroConv2d(channels // 2, channels)) if self.learned_prior else None)
                channels //= 2
        return Inverse(MultiScale(image_shape, levels, priors))


@dataclass(frozen=True, kw_only=True)
class Glow(StepFlow):
    """Glow (Kingma & Dhariwal 2018): steps of actnorm, invertible 1×1 convolution and coupling."""

    name: ClassVar[str] = "glow"

    def mixing(self, channels: int) -> list[Bijection]:
        """A 1×1 convolution."""
        return [Conv1x1(channels)]


@dataclass(frozen=True, kw_only=True)
class InvConv3x3(StepFlow):
    """The flow of Nagar et al.: Glow with a padded k×k convolution in place of the 1×1, affine or quad coupling."""

    name: ClassVar[str] = "inv_conv3x3"

    kernel_size: Positive = 3
    """k."""
    masked: bool = False
    """The paper's masked form (triangular last tap), whose channel mixing at the pixel itself is triangular, so that a
    1×1 convolution goes in front; the default, the block-triangular form, holds one already."""

    def mixing(self, channels: int) -> list[Bijection]:
        """A one-sided convolution, after a 1×1 convolution if it is masked."""
        conv = OneSidedConv2d(channels, self.kernel_size, masked=self.masked)
        return [Conv1x1(channels), conv] if self.masked else [conv]


@dataclass(frozen=True, kw_only=True)
class InverseFlow(StepFlow):
    """Glow with the *inverse* of a padded k×k convolution after each 1×1 convolution: the convolution turned round.

    The density's pass solves for the convolution's input, and sampling is one plain convolution, as in Inverse-Flow
    (Nagar & Varma 2024, *Parallel backpropagation for inverse of a convolution*).
    """

    name: ClassVar[str] = "inverse_flow"

    kernel_size: Positive = 3
    """k."""

    def mixing(self, channels: int) -> list[Bijection]:
        """A 1×1 convolution and the inverse of a masked one-sided one."""
        return [Conv1x1(channels), Inverse(OneSidedConv2d(channels, self.kernel_size, masked=True))]


@dataclass(frozen=True, kw_only=True)
class Emerging(StepFlow):
    """Glow with an emerging convolution after each 1×1 convolution (Hoogeboom et al. 2019)."""

    name: ClassVar[str] = "emerging"

    kernel_size: Positive = 3
    """Of each of the two masked convolutions."""

    def mixing(self, channels: int) -> list[Bijection]:
        """A 1×1 and an emerging convolution."""
        return [Conv1x1(channels), EmergingConv2d(channels, self.kernel_size)]


@dataclass(frozen=True, kw_only=True)
class Periodic(StepFlow):
    """Glow with a periodic k×k convolution in place of the 1×1 (Hoogeboom et al. 2019)."""

    name: ClassVar[str] = "periodic"

    kernel_size: Positive = 3
    """k, odd."""

    def build(
        self, image_shape: ImageShape, recompute: bool = False, conditioner_dtype: torch.dtype | None = None
    ) -> Inverse:
        """See :meth:`ImageFlow.build`; the images must be at least k × k at the last level, too."""
        check_levels(image_shape, self.num_levels)
        _, height, width = image_shape
        factor = 2**self.num_levels
        if min(height, width) < self.kernel_size * factor:
            raise ValueError(
                f"a periodic {self.kernel_size}×{self.kernel_size} convolution needs images of at least that size, and "
                f"{height} × {width} squeezed by {factor} are {height // factor} × {width // factor}: use fewer "
                "levels, a smaller kernel_size, or pad the images"
            )
        return super().build(image_shape, recompute, conditioner_dtype)

    def mixing(self, channels: int) -> list[Bijection]:
        """A periodic convolution."""
        return [PeriodicConv2d(channels, self.kernel_size)]


@dataclass(frozen=True, kw_only=True)
class FInC(StepFlow):
    """Glow with the four-corner convolution of FInC Flow after each 1×1 convolution (Kallappa et al. 2023).

    The squeezed image needs a number of channels that is divisible by 4.
    """

    name: ClassVar[str] = "finc"

    kernel_size: Positive = 3
    """Of the four convolutions."""

    def mixing(self, channels: int) -> list[Bijection]:
        """A 1×1 and a four-corner convolution."""
        return [Conv1x1(channels), FourCornerConv2d(channels, self.kernel_size)]


@dataclass(frozen=True, kw_only=True)
class FlowPP(StepFlow):
    """Mixture couplings over the pixels themselves, in the manner of Flow++ (Ho et al. 2019): no channel is mixed.

    A reversal of the channels stands where Glow has its 1×1 convolution, so what a coupling changes at the first level
    is the grey value of one pixel, whose density has an edge at each end that a mixture follows and a sum of pixels
    blurs.
    """

    name: ClassVar[str] = "flow_pp"

    coupling: CouplingName = "quad_mixture"
    """See Glow."""
    conditioner: ConditionerName = "gated"
    """See Glow."""

    def mixing(self, channels: int) -> list[Bijection]:
        """The channels in reverse order."""
        return [ChannelPermutation(list(range(channels))[::-1])]
