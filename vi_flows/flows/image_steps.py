"""Glow and the image flows that are made like it: steps of actnorm, mixing and coupling, level by level."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vi_flows.nn.image import ConvConditioner, GatedConditioner, ZeroConv2d
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
    Coupling,
    EmergingConv2d,
    FourCornerConv2d,
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
from vi_flows.transforms.coupling import Partition
from vi_flows.transforms.coupling_maps import CouplingMap

__all__ = [
    "CONDITIONERS", "COUPLINGS", "check_levels", "emerging", "finc", "flow_pp", "glow", "inv_conv3x3", "make_coupling",
    "periodic", "step_flow", "with_options_of",
]  # fmt: skip

Network = Callable[[int, int], nn.Module]
Factory = Callable[..., Bijection]


def make_coupling(
    partition: Partition, channels: int, change: CouplingMap, network: Network, dtype: torch.dtype | None
) -> Coupling:
    """The coupling of a partition, with a network for each changed group."""
    networks = [
        network(partition.known_channels(channels, m), change.num_maps * partition.group_channels(channels, m))
        for m in range(1, partition.num_groups)
    ]
    return Coupling(partition, networks, change, dtype)


def with_options_of(
    family: Callable[..., Bijection],
) -> Callable[[Callable[..., Bijection]], Callable[..., Bijection]]:
    """Show a factory ``f(image_shape, …, **options)`` with the family's options in place of ``**options``."""

    def decorate(factory: Factory) -> Factory:
        own = [p for p in inspect.signature(factory).parameters.values() if p.kind is not p.VAR_KEYWORD]
        known = {p.name for p in own}
        shared = [p for p in inspect.signature(family).parameters.values() if p.kind is p.KEYWORD_ONLY]
        shown = [*own, *(p for p in shared if p.name not in known)]
        factory.__signature__ = inspect.signature(factory).replace(parameters=shown)  # type: ignore[attr-defined]
        return factory

    return decorate


def check_levels(image_shape: Sequence[int], num_levels: int) -> None:
    """Refuse sides that the levels' squeezes don't divide.

    Raises:
        ValueError: they don't, or there is no level.
    """
    _, height, width = image_shape
    factor = 2**num_levels
    if num_levels < 1 or height % factor or width % factor:
        raise ValueError(
            f"{num_levels} levels squeeze the image by {factor}, which does not divide {height} × {width}; "
            "use fewer levels or pad the images"
        )


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
}
"""Networks of the step flows by name, from their width and number of blocks."""


def step_flow(
    image_shape: Sequence[int],
    mixing: Callable[[int], Sequence[Bijection]],
    *,
    num_levels: int = 2,
    num_steps: int = 8,
    width: int = 512,
    conditioner: str = "conv",
    num_blocks: int = 1,
    coupling: str = "affine",
    scale: str = "tanh",
    learned_prior: bool = True,
    checkpoint: bool = False,
    conditioner_dtype: torch.dtype | None = None,
) -> Inverse:
    """Squeeze, (actnorm, mixing, coupling) × D, split; L levels (Kingma & Dhariwal 2018; Nagar et al., figure 3).

    Args:
        image_shape: ``(C, H, W)``, sides divisible by ``2^num_levels``.
        mixing: the bijections between actnorm and coupling, from the number of channels.
        num_levels: ``L``.
        num_steps: ``D`` steps a level.
        width: hidden channels of the networks.
        conditioner: the networks: ``conv``, the papers' three layers, or ``gated``, blocks with gates.
        num_blocks: gated blocks.
        coupling: one of :data:`COUPLINGS`.
        scale: of the coupling, see :data:`~vi_flows.transforms.coupling_maps.SCALES`.
        learned_prior: of each split; otherwise a standard normal.
        checkpoint: recompute each step in the backward pass, to save memory.
        conditioner_dtype: autocast type of the networks, for instance ``torch.bfloat16``.

    Raises:
        ValueError: the sides are not divisible, or a name is unknown.
    """
    check_levels(image_shape, num_levels)
    if coupling not in COUPLINGS:
        raise ValueError(f"unknown coupling {coupling!r}; choose one of {', '.join(COUPLINGS)}")
    if conditioner not in CONDITIONERS:
        raise ValueError(f"unknown conditioner {conditioner!r}; choose one of {', '.join(CONDITIONERS)}")
    make_map, num_groups = COUPLINGS[coupling]
    network = CONDITIONERS[conditioner](width, num_blocks)
    channels, levels, priors = image_shape[0], [], []
    for level in range(num_levels):
        channels *= 4
        parts: list[Bijection] = [Squeeze()]
        for _ in range(num_steps):
            change = make_coupling(
                ChannelGroups(channels, num_groups),
                channels,
                make_map(scale),
                network,
                conditioner_dtype,
            )
            step = Chain([ActNorm(channels), *mixing(channels), change])
            parts.append(Checkpointed(step) if checkpoint else step)
        levels.append(Chain(parts))
        if level + 1 < num_levels:
            priors.append(SplitPrior(channels, ZeroConv2d(channels // 2, channels)) if learned_prior else None)
            channels //= 2
    return Inverse(MultiScale(image_shape, levels, priors))


@with_options_of(step_flow)
def glow(image_shape: Sequence[int], **options: Any) -> Inverse:
    """Glow (Kingma & Dhariwal 2018): steps of actnorm, invertible 1×1 convolution and coupling.

    Args:
        image_shape: ``(C, H, W)``.
        options: of :func:`step_flow`.

    Raises:
        ValueError: see :func:`step_flow`.
    """
    return step_flow(image_shape, lambda channels: [Conv1x1(channels)], **options)


@with_options_of(step_flow)
def inv_conv3x3(image_shape: Sequence[int], kernel_size: int = 3, masked: bool = False, **options: Any) -> Inverse:
    """The flow of Nagar et al.: Glow with a padded k×k convolution in place of the 1×1, with affine or quad coupling.

    Args:
        image_shape: ``(C, H, W)``.
        kernel_size: ``k``.
        masked: the paper's masked form (triangular last tap). Its channel mixing at the pixel itself is triangular, so
            a 1×1 convolution goes in front; the default, the block-triangular form, holds one already.
        options: of :func:`step_flow`.

    Raises:
        ValueError: see :func:`step_flow`.
    """

    def mixing(channels: int) -> list[Bijection]:
        conv = OneSidedConv2d(channels, kernel_size, masked=masked)
        return [Conv1x1(channels), conv] if masked else [conv]

    return step_flow(image_shape, mixing, **options)


@with_options_of(step_flow)
def emerging(image_shape: Sequence[int], kernel_size: int = 3, **options: Any) -> Inverse:
    """Glow with an emerging convolution after each 1×1 convolution (Hoogeboom et al. 2019).

    Args:
        image_shape: ``(C, H, W)``.
        kernel_size: of each of the two masked convolutions.
        options: of :func:`step_flow`.

    Raises:
        ValueError: see :func:`step_flow`.
    """
    return step_flow(image_shape, lambda c: [Conv1x1(c), EmergingConv2d(c, kernel_size)], **options)


@with_options_of(step_flow)
def periodic(image_shape: Sequence[int], kernel_size: int = 3, **options: Any) -> Inverse:
    """Glow with a periodic k×k convolution in place of the 1×1 (Hoogeboom et al. 2019).

    Args:
        image_shape: ``(C, H, W)``.
        kernel_size: odd.
        options: of :func:`step_flow`.

    Raises:
        ValueError: see :func:`step_flow`.
    """
    return step_flow(image_shape, lambda c: [PeriodicConv2d(c, kernel_size)], **options)


@with_options_of(step_flow)
def finc(image_shape: Sequence[int], kernel_size: int = 3, **options: Any) -> Inverse:
    """Glow with the four-corner convolution of FInC Flow after each 1×1 convolution (Kallappa et al. 2023).

    Args:
        image_shape: ``(C, H, W)``; the squeezed image needs a number of channels that is divisible by 4.
        kernel_size: of the four convolutions.
        options: of :func:`step_flow`.

    Raises:
        ValueError: see :func:`step_flow`.
    """
    return step_flow(image_shape, lambda c: [Conv1x1(c), FourCornerConv2d(c, kernel_size)], **options)


@with_options_of(step_flow)
def flow_pp(
    image_shape: Sequence[int], coupling: str = "quad_mixture", conditioner: str = "gated", **options: Any
) -> Inverse:
    """Mixture couplings over the pixels themselves, in the manner of *Flow++* (Ho et al. 2019): no channel is mixed.

    A reversal of the channels stands where Glow has its 1×1 convolution, so what a coupling changes at the first level
    is the grey value of one pixel, whose density has an edge at each end that a mixture follows and a sum of pixels
    blurs.

    Args:
        image_shape: ``(C, H, W)``.
        coupling: see :func:`step_flow`.
        conditioner: see :func:`step_flow`.
        options: of :func:`step_flow`.

    Raises:
        ValueError: see :func:`step_flow`.
    """
    options |= {"coupling": coupling, "conditioner": conditioner}
    return step_flow(image_shape, lambda c: [ChannelPermutation(list(range(c))[::-1])], **options)
