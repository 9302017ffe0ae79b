"""Layers that apply one affine map to the channels of every pixel, and the chain that merges neighbors of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import reduce
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vi_flows.transforms.base import Bijection, expand_ladj, sum_event_dims
from vi_flows.transforms.composition import Chain
from vi_flows.transforms.image.base import ImageBijection, fold_batch

__all__ = ["ImageChain", "PixelLayer", "PixelMap"]


class PixelMap(NamedTuple):
    """``y_{ij} = A x_{ij} + c`` at every pixel.

    Attributes:
        matrix: ``A``, shape ``(C, C)``.
        offset: ``c``, shape ``(C,)``; ``None`` for zero.
        log_abs_det: ``log|det A|``, a scalar.
    """

    matrix: Tensor
    offset: Tensor | None
    log_abs_det: Tensor

    def then(self, other: PixelMap) -> PixelMap:
        """This map, and the other one after it."""
        offset = other.offset
        if self.offset is not None:
            moved = other.matrix @ self.offset
            offset = moved if offset is None else moved + offset
        return PixelMap(other.matrix @ self.matrix, offset, self.log_abs_det + other.log_abs_det)

    def apply(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mapped image and its log-determinant, ``H W log|det A|``; ``x`` is ``(…, C, H, W)``."""
        weight = self.matrix[:, :, None, None]
        y = fold_batch(lambda images: F.conv2d(images, weight, self.offset), x)
        return y, expand_ladj(self.log_abs_det * (x.shape[-1] * x.shape[-2]), x, 3)


class PixelLayer(ImageBijection):
    """A bijection that does the same affine map to every pixel."""

    @abstractmethod
    def pixel_map(self, inverse: bool) -> PixelMap:
        """The map as it is now, or its inverse."""

    @property
    def waits(self) -> bool:
        """Whether the next pass will change the layer by what reaches it, so that it must see it."""
        return False


class ImageChain(Chain):
    r"""A chain that evaluates neighboring layers of kind :class:`PixelLayer` as one 1×1 convolution.

    Actnorm and a 1×1 convolution, ``A ((x + b) ⊙ eˢ)``, are the convolution with ``W = A diag(eˢ)`` and the offset
    ``W b``: one pass over the image instead of three, with nothing of the image's size kept in between for the
    gradients. Values, log-determinants and gradients are those of :class:`Chain` up to rounding, and so are the names
    of the parameters.

    Args:
        bijections: see :class:`Chain`.

    Raises:
        TypeError: see :class:`Chain`.
    """

    def __init__(self, bijections: Sequence[Bijection]) -> None:
        super().__init__(bijections, event_dim=3)

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One pass through every part, first to last."""
        return self._run(x, inverse=False)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """One pass through every part's inverse, last to first."""
        return self._run(y, inverse=True)

    def _run(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        self._check_tensor(value)
        total = value.new_zeros(value.shape[: value.dim() - 3])
        parts = reversed(self.parts) if inverse else iter(self.parts)
        for _, run in groupby(parts, lambda part: isinstance(part, PixelLayer)):
            group = list(run)
            layers = [part for part in group if isinstance(part, PixelLayer)]  # all of them or none
            if len(layers) > 1:
                value, ladj = self._merged(layers, value, inverse)
                total = total + ladj
                continue
            for part in group:
                value, ladj = part.inverse_and_ladj(value) if inverse else part.forward_and_ladj(value)
                total = total + sum_event_dims(ladj, 3 - part.event_dim)
        return value, total

    @staticmethod
    def _merged(group: Sequence[PixelLayer], value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        for part in group:
            part._check_image(value)
        if not inverse and any(part.waits for part in group):
            with torch.no_grad():
                reduce(lambda x, part: part.forward_and_ladj(x)[0], group, value)
        return reduce(PixelMap.then, (part.pixel_map(inverse) for part in group)).apply(value)
