"""A conditioner of images in which every pixel sees every other: gated convolutions and self-attention in turn."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vi_flows.nn.image import GatedBlock, PixelNetwork, ZeroConv2d

__all__ = ["AttentionConditioner", "PixelAttention", "positions"]

SLOWEST = 100.0


def positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Where each pixel is, as sines and cosines of its row and column, shape ``(H W, channels)``, row by row.

    Channel ``4 k + m`` holds ``sin(i f), cos(i f), sin(j f), cos(j f)`` for ``m = 0 … 3``, with frequencies ``f`` from
    1 down to about ``1/100`` (Vaswani et al. 2017, section 3.5, in two dimensions): for images of every size.

    Args:
        height: of the image.
        width: of the image.
        channels: how many.
        like: tensor whose dtype and device the positions get.
    """
    count = math.ceil(channels / 4)
    frequency = SLOWEST ** (-torch.arange(count, dtype=like.dtype, device=like.device) / count)
    row, column = (
        torch.arange(size, dtype=like.dtype, device=like.device)[:, None] * frequency for size in (height, width)
    )
    shape = (height, width, count)
    parts = [row.sin()[:, None], row.cos()[:, None], column.sin()[None], column.cos()[None]]
    return torch.stack([part.expand(shape) for part in parts], -1).flatten(0, 1).flatten(1)[:, :channels]


class PixelAttention(nn.Module):
    r"""``h + a ⊙ σ(b)``, where ``(a, b)`` are linear in the heads of self-attention over all pixels.

    Queries, keys and values are linear in the normalised channels of a pixel plus its :func:`positions`
    (Ho et al. 2019, *Flow++*, section 3.3). Time and memory grow with the square of the number of pixels.

    Args:
        width: channels; 4 heads share them, or as many as divide them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = math.gcd(4, width)
        self.norm = nn.LayerNorm(width)
        self.inward = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, 2 * width)

    def forward(self, h: Tensor) -> Tensor:
        """``(N, width, H, W)`` to the same shape."""
        channels, height, width = h.shape[-3:]
        pixels = self.norm(h.flatten(-2).mT) + positions(height, width, channels, h)
        heads = self.inward(pixels).unflatten(-1, (3, self.num_heads, -1)).movedim(-4, -2)  # N, 3, heads, pixels, …
        found = F.scaled_dot_product_attention(*heads.unbind(-4))
        return h + F.glu(self.outward(found.movedim(-3, -2).flatten(-2)), -1).mT.unflatten(-1, (height, width))


class AttentionConditioner(PixelNetwork):
    """Flow++'s network: 3×3, blocks of a gated convolution and attention over all pixels, ReLU, 1×1 starting at zero.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        width: feature maps.
        num_blocks: pairs of a :class:`~vi_flows.nn.image.GatedBlock` and a :class:`PixelAttention`.

    Raises:
        ValueError: a size is less than 1.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int = 64, num_blocks: int = 1) -> None:
        if min(in_channels, out_channels, width) < 1 or num_blocks < 0:
            raise ValueError(f"sizes must be at least 1, got {in_channels}, {out_channels}, {width}, {num_blocks}")
        blocks = [(GatedBlock(width), PixelAttention(width)) for _ in range(num_blocks)]
        super().__init__(
            nn.Conv2d(in_channels, width, 3, padding=1),
            *(layer for block in blocks for layer in block),
            nn.ReLU(),
            ZeroConv2d(width, out_channels, 1),
        )
