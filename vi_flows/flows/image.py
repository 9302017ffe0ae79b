"""Image flows by name: NICE, Real NVP, MCONV, Glow and its descendants with k×k convolutions, Flow++.

Each factory takes the image's shape and returns a bijection from base to logits, ready for
:class:`~vi_flows.distributions.image.ImageDensity`. Scoring an image is one pass through every network; so is sampling,
but for quad-coupling, whose networks are then evaluated one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vi_flows.flows.image_steps import (
    COUPLINGS,
    Factory,
    check_levels,
    emerging,
    finc,
    flow_pp,
    glow,
    inv_conv3x3,
    make_coupling,
    periodic,
    with_options_of,
)
from vi_flows.nn.image import MLPConditioner, ResNetConditioner
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

__all__ = ["COUPLINGS", "IMAGE_FLOWS", "coupling_flow", "mconv", "nice", "real_nvp"]

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
    check_levels(image_shape, num_levels)
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}; choose one of {', '.join(NORMS)}")

    def network(n_in: int, n_out: int) -> nn.Module:
        return ResNetConditioner(n_in, n_out, width, num_blocks)

    def couplings(count: int, channels: int, partition: Callable[[int], Partition]) -> list[Bijection]:
        parts: list[Bijection] = []
        for index in range(count):
            layer = make_coupling(partition(index % 2), channels, change(), network, conditioner_dtype)
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


@with_options_of(coupling_flow)
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


@with_options_of(coupling_flow)
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
        layer = make_coupling(
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
