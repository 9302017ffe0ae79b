"""Image flows by name: NICE, Real NVP, MCONV, Glow and its descendants with k×k convolutions, Flow++.

Each factory takes the image's shape and returns a bijection from base to logits, ready for
:class:`~vi_flows.distributions.image.ImageDensity`. Scoring an image is one pass through every network; so is sampling,
but for quad-coupling, whose networks are then evaluated one after the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vi_flows.nn.image import ConvConditioner, GatedConditioner, MLPConditioner, ResNetConditioner, ZeroConv2d
from vi_flows.transforms import (
    ActNorm,
    AdditiveMap,
    AffineMap,
    Bijection,
    Chain,
    ChannelGroups,
    ChannelPermutation,
    Checkerboard,
    Checkpointed,
    Conv1x1,
    Coupling,
    EmergingConv2d,
    FourCornerConv2d,
    ImageBatchNorm,
    Inverse,
    MConvMap,
    MixtureMap,
    MultiScale,
    OneSidedConv2d,
    PeriodicConv2d,
    Scaling,
    SplineMap,
    SplitPrior,
    Squeeze,
)
from vi_flows.transforms.coupling import Partition
from vi_flows.transforms.coupling_maps import CouplingMap

__all__ = [
    "CONDITIONERS", "COUPLINGS", "IMAGE_FLOWS", "coupling_flow", "emerging", "finc", "flow_pp", "glow", "inv_conv3x3",
    "mconv", "nice", "periodic", "real_nvp", "step_flow",
]  # fmt: skip

Network = Callable[[int, int], nn.Module]
Factory = Callable[..., Bijection]


def _coupling(
    partition: Partition, channels: int, change: CouplingMap, network: Network, dtype: torch.dtype | None
) -> Coupling:
    networks = [
        network(partition.known_channels(channels, m), change.num_maps * partition.group_channels(channels, m))
        for m in range(1, partition.num_groups)
    ]
    return Coupling(partition, networks, change, dtype)


def _with_options_of(
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


def _check_levels(image_shape: Sequence[int], num_levels: int) -> None:
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
    _check_levels(image_shape, num_levels)
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
            change = _coupling(
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


@_with_options_of(step_flow)
def glow(image_shape: Sequence[int], **options: Any) -> Inverse:
    """Glow (Kingma & Dhariwal 2018): steps of actnorm, invertible 1×1 convolution and coupling.

    Args:
        image_shape: ``(C, H, W)``.
        options: of :func:`step_flow`.

    Raises:
        ValueError: see :func:`step_flow`.
    """
    return step_flow(image_shape, lambda channels: [Conv1x1(channels)], **options)


@_with_options_of(step_flow)
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


@_with_options_of(step_flow)
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


@_with_options_of(step_flow)
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


@_with_options_of(step_flow)
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


@_with_options_of(step_flow)
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


NORMS: dict[str, Callable[[int], Bijection]] = {"act": ActNorm, "batch": ImageBatchNorm}
"""Normalisations between the couplings of Real NVP and MCONV."""


def coupling_flow(
    image_shape: Sequence[int],
    change: Callable[[], CouplingMap],
    *,
    num_levels: int = 2,
    num_couplings: int = 3,
    num_final: int = 4,
    width: int = 64,
    num_blocks: int = 8,
    norm: str = "act",
    multi_scale: bool = True,
    checkpoint: bool = False,
    conditioner_dtype: torch.dtype | None = None,
) -> Inverse:
    """Checkerboard couplings, squeeze, channel couplings, split; and checkerboard couplings at the end (Real NVP).

    Args:
        image_shape: ``(C, H, W)``, sides divisible by ``2^num_levels``.
        change: makes the map of a coupling.
        num_levels: levels, each with one squeeze; half of the channels are factored out between them.
        num_couplings: couplings with each kind of mask and level, of alternating parity.
        num_final: checkerboard couplings at the end.
        width: feature maps of the residual networks.
        num_blocks: residual blocks.
        norm: between the couplings: ``act``, or ``batch`` as in the paper of Real NVP.
        multi_scale: factor out latents between levels.
        checkpoint: recompute each coupling in the backward pass, to save memory.
        conditioner_dtype: autocast type of the networks.

    Raises:
        ValueError: the sides are not divisible, or a name is unknown.
    """
    _check_levels(image_shape, num_levels)
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}; choose one of {', '.join(NORMS)}")

    def network(n_in: int, n_out: int) -> nn.Module:
        return ResNetConditioner(n_in, n_out, width, num_blocks)

    def couplings(count: int, channels: int, partition: Callable[[int], Partition]) -> list[Bijection]:
        parts: list[Bijection] = []
        for index in range(count):
            layer = _coupling(partition(index % 2), channels, change(), network, conditioner_dtype)
            parts += [NORMS[norm](channels), Checkpointed(layer) if checkpoint else layer]
        return parts

    channels, levels = image_shape[0], []
    for level in range(num_levels):
        parts = couplings(num_couplings, channels, Checkerboard)
        channels *= 4
        parts.append(Squeeze())
        parts += couplings(num_couplings, channels, lambda swap, c=channels: ChannelGroups(c, swap=bool(swap)))
        if level + 1 == num_levels:
            parts += couplings(num_final, channels, Checkerboard)
        elif multi_scale:
            channels //= 2
        levels.append(Chain(parts))
    if not multi_scale:
        levels = [Chain(levels)]
    return Inverse(MultiScale(image_shape, levels))


@_with_options_of(coupling_flow)
def real_nvp(image_shape: Sequence[int], scale: str = "tanh", **options: Any) -> Inverse:
    """Real NVP (Dinh et al. 2017): affine couplings with checkerboard, then channel masks, at each level.

    Args:
        image_shape: ``(C, H, W)``.
        scale: of the affine maps, see :data:`~vi_flows.transforms.coupling_maps.SCALES`.
        options: of :func:`coupling_flow`.

    Raises:
        ValueError: see :func:`coupling_flow`.
    """
    return coupling_flow(image_shape, lambda: AffineMap(scale), **options)


@_with_options_of(coupling_flow)
def mconv(
    image_shape: Sequence[int],
    num_couplings: int = 8,
    num_final: int = 0,
    scale: str = "tanh",
    filter: str = "cepstrum",
    bound: float = 2.0,
    **options: Any,
) -> Inverse:
    """MCONV (Karami et al.): the structure of :func:`real_nvp` with multiplication-convolution couplings.

    The default is the paper's four stages of eight flows: checkerboard and channel masks at two levels.

    Args:
        image_shape: ``(C, H, W)``.
        num_couplings: flows a stage.
        num_final: checkerboard couplings at the end (they need an even width there).
        scale: of the multiplication.
        filter: ``cepstrum`` (bounded by construction), ``kernel`` (as the paper writes it) or ``cosine``.
        bound: largest log magnitude of a bounded spectrum.
        options: of :func:`coupling_flow`.

    Raises:
        ValueError: see :func:`coupling_flow`.
    """
    options |= {"num_couplings": num_couplings, "num_final": num_final}
    return coupling_flow(image_shape, lambda: MConvMap(scale, filter, bound), **options)


def nice(
    image_shape: Sequence[int],
    num_couplings: int = 4,
    hidden_dims: Sequence[int] = (1000,) * 5,
    checkpoint: bool = False,
    conditioner_dtype: torch.dtype | None = None,
) -> Inverse:
    """NICE (Dinh et al. 2014): additive couplings of alternating pixels with fully connected networks, then a scaling.

    The paper's base on MNIST is logistic: ``ImageDensity(…, base="logistic")``.

    Args:
        image_shape: ``(C, H, W)``.
        num_couplings: 4 in the paper.
        hidden_dims: of each network; five of 1000 in the paper.
        checkpoint: recompute each coupling in the backward pass.
        conditioner_dtype: autocast type of the networks.
    """
    channels = image_shape[0]
    parts: list[Bijection] = []
    for index in range(num_couplings):
        layer = _coupling(
            Checkerboard(index % 2),
            channels,
            AdditiveMap(),
            lambda n_in, n_out: MLPConditioner((n_in, *image_shape[1:]), n_out, hidden_dims),
            conditioner_dtype,
        )
        parts.append(Checkpointed(layer) if checkpoint else layer)
    return Inverse(Chain([*parts, Scaling(image_shape)]))


IMAGE_FLOWS: dict[str, Factory] = {
    "nice": nice,
    "real_nvp": real_nvp,
    "glow": glow,
    "mconv": mconv,
    "inv_conv3x3": inv_conv3x3,
    "emerging": emerging,
    "periodic": periodic,
    "finc": finc,
    "flow_pp": flow_pp,
}
"""The factories by name; all take ``image_shape`` first."""
