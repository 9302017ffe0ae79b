"""Rows about image flows: what other layers cost beside Glow's from the noise to the pixels, and Glow beside a peer."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial

import torch

from vi_flows.bench.kernels import import_peer
from vi_flows.bench.measure import Measurement, Work, compare
from vi_flows.distributions.image import ImageDensity
from vi_flows.flows.image_steps import Emerging, Glow, InvConv3x3, StepFlow
from vi_flows.kernels import active_kernel, use_kernel
from vi_flows.transforms import OneSidedConv2d

__all__ = [
    "SAMPLERS", "SamplerShape", "build_sampler", "glow_passes", "peer_over_glow", "rows_over_compiled",
    "sampler_over_glow",
]  # fmt: skip

SAMPLERS: dict[str, tuple[StepFlow, float]] = {
    "glow": (Glow(), 1.0),
    "emerging": (Emerging(), 1.0),
    "inv_conv3x3": (InvConv3x3(), 1.0),
    "inv_conv3x3-masked": (InvConv3x3(masked=True), 1.0),
    "inv_conv3x3-quad": (InvConv3x3(coupling="quad"), 1.0),
    "inv_conv3x3-quad-narrow": (InvConv3x3(coupling="quad"), 9 / 16),
}
"""Flows whose sampling Nagar et al. time (tables 3 and 4), by name, and the width of their networks beside Glow's.

Quad-coupling has three networks where the others have one, so at Glow's width it has 2.6 times the parameters and the
products; the narrow one has about as many as Glow.
"""


@dataclass(frozen=True)
class SamplerShape:
    """Size of a timed sampler; the default is CIFAR-10's with few steps a level."""

    image_shape: tuple[int, int, int] = (3, 32, 32)
    """(C, H, W)."""
    num_levels: int = 3
    """L."""
    num_steps: int = 4
    """D."""
    width: int = 512
    """Hidden channels of the networks."""


def build_sampler(name: str, shape: SamplerShape, seed: int = 0) -> ImageDensity:
    """A model of :data:`SAMPLERS` with random weights: taps and last layers are drawn, for they start at zero.

    Args:
        name: which one.
        shape: its size.
        seed: of the weights and of the images that initialize the actnorms.
    """
    torch.manual_seed(seed)
    flow, share = SAMPLERS[name]
    width = round(share * shape.width)
    settings = replace(flow, num_levels=shape.num_levels, num_steps=shape.num_steps, width=width)
    density = ImageDensity(settings.build(shape.image_shape), shape.image_shape, alpha=0.05)
    with torch.no_grad():
        for parameter in density.parameters():
            if parameter.dim() > 2 and not parameter.any():
                parameter.normal_(std=0.01)
    density.initialize(torch.randint(0, 256, (32, *shape.image_shape)))
    return density.eval()


def sampler_over_glow(
    rounds: int, name: str = "inv_conv3x3", shape: SamplerShape | None = None, num_images: int = 100
) -> tuple[Measurement, str]:
    """Goal 4: a draw of images, end to end."""
    shape = SamplerShape() if shape is None else shape
    sides = [build_sampler(kind, shape) for kind in (name, "glow")]
    mine, glow = (partial(side.sample, num_images) for side in sides)
    measured = compare(mine, glow, min(rounds, 7))
    size = "x".join(map(str, shape.image_shape))
    return measured, f"{num_images} images of {size}, L={shape.num_levels}, D={shape.num_steps}, width {shape.width}"


def rows_over_compiled(
    rounds: int, channels: int, size: int, num_images: int = 100, gradients: bool = False
) -> tuple[Measurement, str]:
    """The inverse of one 3×3 convolution by rows over that of the kernel in use.

    Args:
        rounds: pairs of runs.
        channels: of the images.
        size: their height and width.
        num_images: how many.
        gradients: whether a pass is one of training, with the gradients by the images and by the taps.
    """
    torch.manual_seed(0)
    layer = OneSidedConv2d(channels, init_scale=0.02).requires_grad_(gradients)
    y = torch.randn(num_images, channels, size, size, requires_grad=gradients)

    def by(name: str) -> Work:
        own = copy.deepcopy(layer)  # which keeps what it needs of the weights

        def work() -> None:
            with use_kernel(name):
                x, _ = own.inverse_and_ladj(y)
                if gradients:
                    torch.autograd.grad(x.sum(), [y, own.taps])

        return work

    return compare(by("torch"), by(kernel := active_kernel()), rounds), f"{num_images} images, kernel {kernel}"


def glow_passes(
    shape: SamplerShape, num_images: int, network_dtype: torch.dtype | None = None
) -> tuple[Work, Work, tuple[int, int]]:
    """A training pass of normflows' Glow and of ours: log-density of noise as images and all gradients.

    Both have affine couplings with sigmoid scales, 1×1 convolutions by LU factors, actnorm, and splits with standard
    normal priors; neither dequantises.

    Args:
        shape: of the flow and the images.
        num_images: rows.
        network_dtype: of the products of our couplings' networks (``--mixed-precision``); theirs are in float32.

    Returns:
        Theirs, ours, and the numbers of parameters, which are equal where the models are.

    Raises:
        Unavailable: normflows is not installed.
    """
    normflows = import_peer("normflows")
    torch.manual_seed(0)
    channels, height, width = shape.image_shape
    priors, flows, merges = [], [], []
    for level in range(shape.num_levels):
        factor = 2 ** (shape.num_levels - level)
        inside = channels * 2 ** (shape.num_levels + 1 - level)
        blocks = [normflows.flows.GlowBlock(inside, shape.width, scale_map="sigmoid") for _ in range(shape.num_steps)]
        flows.append([*blocks, normflows.flows.Squeeze()])
        kept = inside if level == 0 else inside // 2
        priors.append(normflows.distributions.DiagGaussian((kept, height // factor, width // factor), trainable=False))
        if level:
            merges.append(normflows.flows.Merge())
    theirs = normflows.MultiscaleFlow(priors, flows, merges)
    settings = Glow(
        num_levels=shape.num_levels, num_steps=shape.num_steps, width=shape.width, learned_prior=False, scale="sigmoid"
    )
    ours = settings.build(shape.image_shape, conditioner_dtype=network_dtype)
    x = torch.rand(num_images, *shape.image_shape)

    def pass_of_theirs() -> None:
        theirs.zero_grad()
        (-theirs.log_prob(x, None).mean()).backward()

    def pass_of_ours() -> None:
        ours.zero_grad()
        z, ladj = ours.inverse_and_ladj(x)
        (0.5 * z.square().flatten(1).sum(1) - ladj).mean().backward()

    sizes = tuple(sum(p.numel() for p in model.parameters()) for model in (theirs, ours))
    for step in (pass_of_theirs, pass_of_ours):
        step()  # the actnorms start from data
    return pass_of_theirs, pass_of_ours, (sizes[0], sizes[1])


def peer_over_glow(
    rounds: int, shape: SamplerShape | None = None, num_images: int = 32, network_dtype: torch.dtype | None = None
) -> tuple[Measurement, str]:
    """A training pass of normflows' Glow over one of ours; see :func:`glow_passes`.

    Raises:
        Unavailable: normflows is not installed.
    """
    shape = SamplerShape(num_levels=2, width=128) if shape is None else shape
    theirs, ours, sizes = glow_passes(shape, num_images, network_dtype)
    measured = compare(theirs, ours, rounds)
    rates = " and ".join(f"{1000 * num_images / ms:.0f}" for ms in (measured.numerator_ms, measured.denominator_ms))
    size = "x".join(map(str, shape.image_shape))
    return measured, (
        f"{rates} images of {size} a second; L={shape.num_levels}, D={shape.num_steps}, width {shape.width}, "
        f"{sizes[0]} and {sizes[1]} parameters"
    )
