"""A bijection of tensors of another shape, applied to images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vi_flows.transforms.base import Bijection
from vi_flows.transforms.image.base import ImageBijection

__all__ = ["Reshaped"]


class Reshaped(ImageBijection):
    """``y = reshape(f(reshape(x)))``, with the log-determinant of ``f``; entries keep their row-major order.

    Args:
        bijection: ``f``, which keeps the shape of its events.
        shape: of ``f``'s events, as long as its ``event_dim``; an image must have as many entries.

    Raises:
        ValueError: the shape is of another length than the bijection's events; on use, the image has another size.
    """

    def __init__(self, bijection: Bijection, shape: Sequence[int]) -> None:
        super().__init__()
        if len(shape) != bijection.event_dim:
            raise ValueError(f"the bijection has {bijection.event_dim} event dimensions, the shape is {tuple(shape)}")
        self.bijection, self.shape = bijection, tuple(shape)

    def _inner(self, value: Tensor) -> Tensor:
        self._check_image(value)
        try:
            return value.reshape(*value.shape[:-3], *self.shape)
        except RuntimeError:
            raise ValueError(f"an image of shape {tuple(value.shape[-3:])} has no shape {self.shape}") from None

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inner bijection's forward pass."""
        y, ladj = self.bijection.forward_and_ladj(self._inner(x))
        return y.reshape(x.shape), ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The inner bijection's inverse."""
        x, ladj = self.bijection.inverse_and_ladj(self._inner(y))
        return x.reshape(y.shape), ladj
