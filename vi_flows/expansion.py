"""What distributions share that are expanded by being made anew, as Pyro's plates ask of every site."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch.types import _size

__all__ = ["Expandable"]


class Expandable(TorchDistribution):
    """A distribution that says how it is made over a larger batch; validation is carried over by :meth:`expand`."""

    @abstractmethod
    def _expanded(self, batch_shape: torch.Size) -> Self:
        """The same distribution over ``batch_shape``, made with ``validate_args=False``."""

    def expand(self, batch_shape: _size, _instance: Any = None) -> Self:
        """The same distribution over a larger batch, ``batch_shape``; itself where that is its own.

        Raises:
            RuntimeError: the distribution's batch shape doesn't broadcast to it.
        """
        shape = torch.Size(batch_shape)
        if shape == self.batch_shape:  # Pyro's plates ask for it at every site
            return self
        # By sizes: what has no parameters would take any.
        own = self.batch_shape
        if len(own) > len(shape) or any(a not in (1, b) for a, b in zip(reversed(own), reversed(shape), strict=False)):
            raise RuntimeError(
                f"{type(self).__name__} of batch shape {tuple(own)} can't be expanded to {tuple(shape)}: sizes other "
                "than 1 stay as they are"
            )
        new = self._expanded(shape)
        # The parameters were checked, or were not to be, when this one was made; values are still to be.
        new._validate_args = self._validate_args
        return new
