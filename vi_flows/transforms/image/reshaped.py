"""A bijection of tensors of another shape, applied to images; with and without a context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from vi_flows.transforms.base import Bijection, ConditionalBijection
from vi_flows.transforms.image.base import ImageBijection
from vi_flows.transforms.regions import image

__all__ = ["ConditionalReshaped", "Reshaped"]


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

    @property
    def batch_shape(self) -> torch.Size:
        """The inner bijection's."""
        return self.bijection.batch_shape

    @property
    def domain(self) -> Constraint:  # type: ignore[override]  # as in the base class
        """Images that have the shape of values in the inner bijection's domain."""
        return image(self.bijection.domain, constraints.real, super().domain, self._inner)

    @property
    def codomain(self) -> Constraint:  # type: ignore[override]  # as in the base class
        """Images that have the shape of values in the inner bijection's codomain."""
        return image(self.bijection.codomain, constraints.real, super().codomain, self._inner)

    def _inner(self, value: Tensor) -> Tensor:
        self._check_image(value)
        try:
            return value.reshape(*value.shape[:-3], *self.shape)
        except RuntimeError:
            raise ValueError(f"an image of shape {tuple(value.shape[-3:])} has no shape {self.shape}") from None

    def _outer(self, value: Tensor, image: Tensor) -> Tensor:
        """As images again; a batch of contexts may have made several of one."""
        return value.reshape(*value.shape[: value.dim() - len(self.shape)], *image.shape[-3:])

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inner bijection's forward pass."""
        y, ladj = self.bijection.forward_and_ladj(self._inner(x))
        return self._outer(y, x), ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The inner bijection's inverse."""
        x, ladj = self.bijection.inverse_and_ladj(self._inner(y))
        return self._outer(x, y), ladj

    def _state_tensors(self) -> Iterable[Tensor]:
        return self.bijection._state_tensors()


class ConditionalReshaped(ConditionalBijection):
    """A family of bijections of tensors of another shape, applied to images, see :class:`Reshaped`.

    Args:
        family: whose bijections keep the shape of their events.
        shape: of those events.
    """

    def __init__(self, family: ConditionalBijection, shape: Sequence[int]) -> None:
        super().__init__()
        self.family, self.shape = family, tuple(shape)

    def condition(self, context: Tensor) -> Reshaped:
        """The family's bijection for each row of ``context``, applied to images."""
        return Reshaped(self.family.condition(context), self.shape)
