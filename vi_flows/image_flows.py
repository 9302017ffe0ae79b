"""Image flows by name: NICE, Real NVP, MCONV, Glow, invertible 3×3 and emerging convolutions.

Each factory takes the image's shape and returns a bijection from base to logits, ready for
:class:`~vi_flows.distributions.image.ImageDensity`. Scoring an image is one pass through every network; so is sampling,
but for quad-coupling, whose networks are then evaluated one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from vi_flows.nn.image import ConvConditioner, MLPConditioner, ResNetConditioner, ZeroConv2d
from vi_flows.transforms import (
    ActNorm,
    AdditiveMap,
    AffineMap,
    Bijection,
    Chain,
    ChannelGroups,
    Checkerboard,
    Checkpointed,
    Conv1x1,
    Coupling,
    EmergingConv2d,
    ImageBatchNorm,
    Inverse,
    MConvMap,
    MultiScale,
    OneSidedConv2d,
    Scaling,
    SplitPrior,
    Squeeze,
)
from vi_flows.transforms.coupling import Partition
from vi_flows.transforms.coupling_maps import CouplingMap

__all__ = ["IMAGE_FLOWS", "emerging", "glow", "inv_conv3x3", "mconv", "nice", "real_nvp"]

Network = Callable[[int, int], nn.Module]


def _coupling(
    partition: Partition, channels: int, change: CouplingMap, network: Network, dtype: torch.dtype | None
) -> Coupling:
    networks = [
        network(partition.known_channels(channels, m), change.num_maps * partition.group_channels(channels, m))
        for m in range(1, partition.num_groups)
    ]
    return Coupling(partition, networks, change, dtype)


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
    "quad": (AffineMap, 4),
    "quad_mconv": (MConvMap, 4),
}
"""Couplings of the step flows by name: the map (given the scale's name) and the number of channel groups."""


def _steps(
    image_shape: Sequence[int],
    num_levels: int,
    num_steps: int,
    width: int,
    coupling: str,
    scale: str,
    learned_prior: bool,
    checkpoint: bool,
    conditioner_dtype: torch.dtype | None,
    mixing: Callable[[int], Sequence[Bijection]],
) -> Inverse:
    """Squeeze, (actnorm, mixing, coupling) × D, split; L levels (Nagar et al., figure 3)."""
    _check_levels(image_shape, num_levels)
    if coupling not in COUPLINGS:
        raise ValueError(f"unknown coupling {coupling!r}; choose one of {', '.join(COUPLINGS)}")
    make_map, num_groups = COUPLINGS[coupling]
    channels, levels, priors = image_shape[0], [], []
    for level in range(num_levels):
        channels *= 4
        parts: list[Bijection] = [Squeeze()]
        for _ in range(num_steps):
            change = _coupling(
                ChannelGroups(channels, num_groups),
                channels,
                make_map(scale),
                lambda n_in, n_out: ConvConditioner(n_in, n_out, width),
                conditioner_dtype,
            )
            step = Chain([ActNorm(channels), *mixing(channels), change])
            parts.append(Checkpointed(step) if checkpoint else step)
        levels.append(Chain(parts))
        if level + 1 < num_levels:
            priors.append(SplitPrior(channels, ZeroConv2d(channels // 2, channels)) if learned_prior else None)
            channels //= 2
    return Inverse(MultiScale(image_shape, levels, priors))


def glow(
    image_shape: Sequence[int],
    num_levels: int = 2,
    num_steps: int = 8,
    width: int = 512,
    coupling: str = "affine",
    scale: str = "sigmoid",
    learned_prior: bool = True,
    checkpoint: bool = False,
    conditioner_dtype: torch.dtype | None = None,
) -> Inverse:
    """Glow (Kingma & Dhariwal 2018): steps of actnorm, invertible 1×1 convolution and coupling.

    Args:
        image_shape: ``(C, H, W)``, sides divisible by ``2^num_levels``.
        num_levels: ``L``.
        num_steps: ``D`` steps a level.
        width: hidden channels of the three-layer networks.
        coupling: ``affine``, ``quad``, ``additive``, ``mconv`` or ``quad_mconv``.
        scale: of the coupling, see :data:`~vi_flows.transforms.coupling_maps.SCALES`.
        learned_prior: of each split; otherwise a standard normal.
        checkpoint: recompute each step in the backward pass, to save memory.
        conditioner_dtype: autocast type of the networks, for instance ``torch.bfloat16``.

    Raises:
        ValueError: the sides are not divisible, or a name is unknown.
    """
    return _steps(
        image_shape, num_levels, num_steps, width, coupling, scale, learned_prior, checkpoint, conditioner_dtype,
        lambda channels: [Conv1x1(channels)],
    )  # fmt: skip


def inv_conv3x3(
    image_shape: Sequence[int],
    num_levels: int = 2,
    num_steps: int = 8,
    width: int = 512,
    coupling: str = "affine",
    scale: str = "sigmoid",
    learned_prior: bool = True,
    checkpoint: bool = False,
    conditioner_dtype: torch.dtype | None = None,
    kernel_size: int = 3,
    masked: bool = False,
) -> Inverse:
    """The flow of Nagar et al.: Glow with a padded k×k convolution in place of the 1×1, with affine or quad coupling.

    Args:
        image_shape: see :func:`glow`; so with the next eight.
        num_levels: ``L``.
        num_steps: ``D``.
        width: of the networks.
        coupling: the paper's ``affine`` or ``quad``, or another.
        scale: of the coupling.
        learned_prior: of each split.
        checkpoint: save memory.
        conditioner_dtype: autocast type of the networks.
        kernel_size: ``k``.
        masked: the paper's masked form (triangular last tap). Its channel mixing at the pixel itself is triangular, so
            a 1×1 convolution goes in front; the default, the block-triangular form, holds one already.

    Raises:
        ValueError: see :func:`glow`.
    """

    def mixing(channels: int) -> list[Bijection]:
        conv = OneSidedConv2d(channels, kernel_size, masked=masked)
        return [Conv1x1(channels), conv] if masked else [conv]

    return _steps(
        image_shape, num_levels, num_steps, width, coupling, scale, learned_prior, checkpoint, conditioner_dtype, mixing
    )


def emerging(
    image_shape: Sequence[int],
    num_levels: int = 2,
    num_steps: int = 8,
    width: int = 512,
    coupling: str = "affine",
    scale: str = "sigmoid",
    learned_prior: bool = True,
    checkpoint: bool = False,
    conditioner_dtype: torch.dtype | None = None,
    kernel_size: int = 3,
) -> Inverse:
    """Glow with an emerging convolution after each 1×1 convolution (Hoogeboom et al. 2019).

    Args:
        image_shape: see :func:`glow`; so with the next eight.
        num_levels: ``L``.
        num_steps: ``D``.
        width: of the networks.
        coupling: ``affine``, ``quad`` or another.
        scale: of the coupling.
        learned_prior: of each split.
        checkpoint: save memory.
        conditioner_dtype: autocast type of the networks.
        kernel_size: of each of the two masked convolutions.

    Raises:
        ValueError: see :func:`glow`.
    """
    return _steps(
        image_shape, num_levels, num_steps, width, coupling, scale, learned_prior, checkpoint, conditioner_dtype,
        lambda channels: [Conv1x1(channels), EmergingConv2d(channels, kernel_size)],
    )  # fmt: skip


NORMS: dict[str, Callable[[int], Bijection]] = {"act": ActNorm, "batch": ImageBatchNorm}
"""Normalisations between the couplings of Real NVP and MCONV."""


def _masked(
    image_shape: Sequence[int],
    change: Callable[[], CouplingMap],
    num_levels: int,
    num_couplings: int,
    num_final: int,
    width: int,
    num_blocks: int,
    norm: str,
    multi_scale: bool,
    checkpoint: bool,
    conditioner_dtype: torch.dtype | None,
) -> Inverse:
    """Checkerboard couplings, squeeze, channel couplings, split; and checkerboard couplings at the end."""
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


def real_nvp(
    image_shape: Sequence[int],
    num_levels: int = 2,
    num_couplings: int = 3,
    num_final: int = 4,
    width: int = 64,
    num_blocks: int = 8,
    scale: str = "tanh",
    norm: str = "act",
    multi_scale: bool = True,
    checkpoint: bool = False,
    conditioner_dtype: torch.dtype | None = None,
) -> Inverse:
    """Real NVP (Dinh et al. 2017): affine couplings with checkerboard, then channel masks, at each level.

    Args:
        image_shape: ``(C, H, W)``, sides divisible by ``2^num_levels``.
        num_levels: levels, each with one squeeze; half of the channels are factored out between them.
        num_couplings: couplings with each kind of mask and level, of alternating parity.
        num_final: checkerboard couplings at the end.
        width: feature maps of the residual networks.
        num_blocks: residual blocks.
        scale: of the affine maps.
        norm: between the couplings: ``act``, or ``batch`` as in the paper.
        multi_scale: factor out latents between levels.
        checkpoint: recompute each coupling in the backward pass, to save memory.
        conditioner_dtype: autocast type of the networks.

    Raises:
        ValueError: the sides are not divisible, or a name is unknown.
    """
    return _masked(
        image_shape, lambda: AffineMap(scale), num_levels, num_couplings, num_final, width, num_blocks, norm,
        multi_scale, checkpoint, conditioner_dtype,
    )  # fmt: skip


def mconv(
    image_shape: Sequence[int],
    num_levels: int = 2,
    num_couplings: int = 8,
    num_final: int = 0,
    width: int = 64,
    num_blocks: int = 8,
    scale: str = "tanh",
    norm: str = "act",
    multi_scale: bool = True,
    checkpoint: bool = False,
    conditioner_dtype: torch.dtype | None = None,
    filter: str = "cepstrum",
    bound: float = 2.0,
) -> Inverse:
    """MCONV (Karami et al.): the structure of :func:`real_nvp` with multiplication-convolution couplings.

    The default is the paper's four stages of eight flows: checkerboard and channel masks at two levels.

    Args:
        image_shape: see :func:`real_nvp`; so with the next ten.
        num_levels: levels.
        num_couplings: flows a stage.
        num_final: checkerboard couplings at the end (they need an even width there).
        width: feature maps.
        num_blocks: residual blocks.
        scale: of the multiplication.
        norm: between the couplings.
        multi_scale: factor out latents between levels.
        checkpoint: save memory.
        conditioner_dtype: autocast type of the networks.
        filter: ``cepstrum`` (bounded by construction), ``kernel`` (as the paper writes it) or ``cosine``.
        bound: largest log magnitude of a bounded spectrum.

    Raises:
        ValueError: see :func:`real_nvp`.
    """
    return _masked(
        image_shape, lambda: MConvMap(scale, filter, bound), num_levels, num_couplings, num_final, width, num_blocks,
        norm, multi_scale, checkpoint, conditioner_dtype,
    )  # fmt: skip


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


IMAGE_FLOWS: dict[str, Callable[..., Bijection]] = {
    "nice": nice,
    "real_nvp": real_nvp,
    "glow": glow,
    "mconv": mconv,
    "inv_conv3x3": inv_conv3x3,
    "emerging": emerging,
}
"""The factories by name; all take ``image_shape`` first."""
