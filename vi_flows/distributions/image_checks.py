"""Whether an image density's samples and inverses can be trusted: shares of samples out of range, round-trip errors."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from vi_flows.distributions.image import ImageDensity
from vi_flows.nn.precision import own_precision

__all__ = ["SampleCheck", "check_samples", "extreme_share", "round_trip_error"]


class SampleCheck(NamedTuple):
    """What :func:`check_samples` counted.

    Attributes:
        num_samples: how many were drawn.
        finite_images: share of the samples without a NaN or an infinity.
        saturated_pixels: share of the pixels whose logit no image can have, whatever its noise (or is not finite).
        saturated_images: share of the samples with such a pixel.
        extreme_pixels: share of the pixels that are the least or the greatest grey (or NaN), in or out of range; to be
            compared with :func:`extreme_share` of data, for it does not depend on how far the logit map's ends are.
        largest_logit: largest finite magnitude.
        cpu_seconds: CPU time an image.
    """

    num_samples: int
    finite_images: float
    saturated_pixels: float
    saturated_images: float
    extreme_pixels: float
    largest_logit: float
    cpu_seconds: float


@torch.no_grad()
def check_samples(
    density: ImageDensity, num_samples: int, temperature: float = 1.0, batch_size: int = 64, margin: float = 0.0
) -> SampleCheck:
    """Draw samples and count those that no image can be.

    Args:
        density: in evaluation mode.
        num_samples: how many; of a density given a batch of contexts, so many of each.
        temperature: scale of the base; 1 is the model.
        batch_size: samples at a time.
        margin: added to both sides of :attr:`~vi_flows.distributions.image.ImageDensity.logit_range`.

    Raises:
        ValueError: no sample was asked for.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    begun, parts, extreme = time.process_time(), [], 0
    for start in range(0, num_samples, batch_size):
        parts.append(density.sample_logits(min(batch_size, num_samples - start), temperature).flatten(0, -4).cpu())
    seconds = time.process_time() - begun
    logits = torch.cat(parts)
    for part in parts:
        levels = density.pixels.forward_and_ladj(part.to(density.origin))[0] * density.num_levels
        extreme += int((~((levels >= 1) & (levels < density.num_levels - 1))).sum())  # a NaN is neither
    low, high = density.logit_range
    outside = ~((logits >= low - margin) & (logits <= high + margin))  # a NaN is outside too
    finite = logits.isfinite()
    return SampleCheck(
        len(logits),
        finite.flatten(1).all(1).double().mean().item(),
        outside.double().mean().item(),
        outside.flatten(1).any(1).double().mean().item(),
        extreme / logits.numel(),
        logits[finite].abs().max().item() if finite.any() else float("nan"),
        seconds / len(logits),
    )


def extreme_share(images: Tensor, num_levels: int = 256) -> float:
    """Share of the pixels of integer images that are the least or the greatest grey.

    Args:
        images: integers ``0 … num_levels − 1``, any shape.
        num_levels: number of grey values.
    """
    return ((images == 0) | (images == num_levels - 1)).double().mean().item()


@torch.no_grad()
def round_trip_error(density: ImageDensity, images: Tensor) -> float:
    """The largest ``|logit|`` error of images through their latents and back, in the density's own precision.

    Args:
        density: in evaluation mode.
        images: integers, ``(N, C, H, W)``.

    Raises:
        ValueError: see :meth:`~vi_flows.distributions.image.ImageDensity.encode`.
    """
    logits = density.middle_logits(images)
    latents = density.encode(images)
    with own_precision(latents.device.type):
        return (density.flow.forward_and_ladj(latents)[0] - logits).abs().max().item()
