"""Rows about image samplers: what other layers cost beside Glow's, from the noise to the pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from vi_flows.bench.measure import Measurement, compare
from vi_flows.distributions.image import ImageDensity
from vi_flows.flows.image_steps import Emerging, Glow, InvConv3x3, StepFlow

__all__ = ["SAMPLERS", "SamplerShape", "build_sampler", "sampler_over_glow"]

SAMPLERS: dict[str, StepFlow] = {
    "glow": Glow(),
    "emerging": Emerging(),
    "inv_conv3x3": InvConv3x3(),
    "inv_conv3x3-masked": InvConv3x3(masked=True),
    "inv_conv3x3-quad": InvConv3x3(coupling="quad"),
}
"""Flows whose sampling Nagar et al. time (tables 3 and 4), by name."""


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
    settings = replace(SAMPLERS[name], num_levels=shape.num_levels, num_steps=shape.num_steps, width=shape.width)
    flow = settings.build(shape.image_shape)
    density = ImageDensity(flow, shape.image_shape, alpha=0.05)
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
