"""Rearrangements of an image, with log-determinant 0: squeeze and channel permutations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.types import _size

from vi_flows.transforms.image.base import ImageBijection

__all__ = ["ChannelPermutation", "Squeeze"]


class Squeeze(ImageBijection):
    """Trades resolution for channels: ``(C, H, W) → (C f², H/f, W/f)`` (Dinh et al., *Real NVP*, section 3.6).

    Output channel ``c f² + f a + b`` holds the pixels ``(f i + a, f j + b)`` of input channel ``c``.

    Args:
        factor: ``f``.

    Raises:
        ValueError: ``factor`` is less than 1; on use, a side of the image is not divisible by it.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor must be at least 1, got {factor}")
        self.factor = factor

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(…, C, H, W)`` to ``(…, C f², H/f, W/f)``."""
        self._check_image(x)
        shape, f = self.forward_shape(x.shape), self.factor
        cells = x.unflatten(-1, (-1, f)).unflatten(-3, (-1, f))  # …, C, H/f, a, W/f, b
        return cells.movedim((-3, -1), (-4, -3)).reshape(shape), x.new_zeros(x.shape[:-3])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``(…, C f², H, W)`` to ``(…, C, H f, W f)``."""
        self._check_image(y)
        shape, f = self.inverse_shape(y.shape), self.factor
        cells = y.unflatten(-3, (-1, f, f))  # …, C, a, b, H, W
        return cells.movedim((-4, -3), (-3, -1)).reshape(shape), y.new_zeros(y.shape[:-3])

    def forward_shape(self, shape: _size) -> torch.Size:
        """Shape of the output for an input of ``shape``."""
        *batch, c, h, w = shape
        f = self.factor
        if h % f or w % f:
            raise ValueError(f"a squeeze by {f} needs a height and width divisible by {f}, got {h} × {w}")
        return torch.Size((*batch, c * f * f, h // f, w // f))

    def inverse_shape(self, shape: _size) -> torch.Size:
        """Shape of the input for an output of ``shape``."""
        *batch, c, h, w = shape
        f = self.factor
        if c % (f * f):
            raise ValueError(f"undoing a squeeze by {f} needs a multiple of {f * f} channels, got {c}")
        return torch.Size((*batch, c // (f * f), h * f, w * f))

    def extra_repr(self) -> str:
        """The factor."""
        return f"factor={self.factor}"


class ChannelPermutation(ImageBijection):
    """A fixed reordering of the channels: ``y_c = x_{p(c)}``.

    Args:
        permutation: ``p``, a permutation of ``0 … C−1``.

    Raises:
        ValueError: it is not one.
    """

    permutation: Tensor

    def __init__(self, permutation: Sequence[int]) -> None:
        order = torch.as_tensor(permutation, dtype=torch.long)
        if sorted(order.tolist()) != list(range(len(order))):
            raise ValueError(f"not a permutation of 0 … {len(order) - 1}: {order.tolist()}")
        super().__init__(len(order))
        self.register_buffer("permutation", order)

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reorder."""
        self._check_image(x)
        return x.index_select(-3, self.permutation), x.new_zeros(x.shape[:-3])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Put back."""
        self._check_image(y)
        return y.index_select(-3, self.permutation.argsort()), y.new_zeros(y.shape[:-3])
