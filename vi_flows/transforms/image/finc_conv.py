"""The convolution of FInC Flow: four padded convolutions side by side, each towards another corner."""

from __future__ import annotations

import torch
from torch import Tensor

from vi_flows.nn.typed import ModuleListOf
from vi_flows.transforms.image.base import ImageBijection
from vi_flows.transforms.image.inv_conv import CORNERS, OneSidedConv2d

__all__ = ["FourCornerConv2d"]


class FourCornerConv2d(ImageBijection):
    """Quarters of the channels, each under a masked k×k convolution from one corner (Kallappa et al. 2023, *FInC*).

    Each quarter's log-determinant is that of :class:`~vi_flows.transforms.image.inv_conv.OneSidedConv2d`; they add. The
    quarters don't mix: a 1×1 convolution goes before or after.

    Args:
        channels: ``C``, divisible by 4.
        kernel_size: ``k``.
        init_scale: standard deviation of the initial off-diagonal taps.

    Raises:
        ValueError: ``channels`` is not divisible by 4, or a size is less than 1.
    """

    def __init__(self, channels: int, kernel_size: int = 3, init_scale: float = 0.0) -> None:
        super().__init__(channels)
        if channels % 4:
            raise ValueError(f"four corners need a number of channels that is divisible by 4, got {channels}")
        self.parts = ModuleListOf(
            OneSidedConv2d(channels // 4, kernel_size, corner, masked=True, init_scale=init_scale) for corner in CORNERS
        )

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Four padded convolutions."""
        self._check_image(x)
        done = [part.forward_and_ladj(group) for part, group in zip(self.parts, x.chunk(4, -3), strict=True)]
        return torch.cat([y for y, _ in done], -3), torch.stack([ladj for _, ladj in done]).sum(0)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Four exact inverses."""
        self._check_image(y)
        done = [part.inverse_and_ladj(group) for part, group in zip(self.parts, y.chunk(4, -3), strict=True)]
        return torch.cat([x for x, _ in done], -3), torch.stack([ladj for _, ladj in done]).sum(0)
