"""What image bijections share: events of shape ``(channels, height, width)`` with any leading dimensions."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vi_flows.transforms.base import Bijection

__all__ = ["ImageBijection", "fold_batch"]


def fold_batch(function: Callable[[Tensor], Tensor], x: Tensor, event_dim: int = 3) -> Tensor:
    """Apply a map of batches, ``(N, C, H, W)`` or ``(N, d)``, to a tensor with any number of leading dimensions."""
    if x.dim() == event_dim + 1:
        return function(x)
    batch, event = x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :]
    y = function(x.reshape(batch.numel(), *event))
    return y.reshape(*batch, *y.shape[1:])


class ImageBijection(Bijection):
    """A bijection of images: ``event_dim`` is 3.

    Args:
        channels: how many channels an input must have; ``None`` for any.
    """

    def __init__(self, channels: int | None = None) -> None:
        super().__init__(event_dim=3)
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.channels = channels

    def _check_image(self, value: Tensor) -> None:
        self._check_tensor(value)
        if value.dim() < 3:
            raise ValueError(f"{type(self).__name__} acts on (…, C, H, W) images, got a tensor of {tuple(value.shape)}")
        if self.channels is not None and value.shape[-3] != self.channels:
            raise ValueError(
                f"{type(self).__name__} acts on images of {self.channels} channels, got {tuple(value.shape)}"
            )
        self._check_batch(value)

    def extra_repr(self) -> str:
        """Number of channels."""
        return "" if self.channels is None else f"channels={self.channels}"
