"""Gradient checkpointing: less memory for deep flows, one more forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint
from torch.types import _size
from torch.utils.checkpoint import checkpoint

from vi_flows.recording import recomputation
from vi_flows.settings import check_types
from vi_flows.transforms.base import Bijection, ConditionalBijection
from vi_flows.transforms.composition import WRAPPED
from vi_flows.transforms.regions import with_draws

__all__ = ["Checkpointed", "ConditionalCheckpointed"]


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first pass and of the one in the backward pass."""
    return nullcontext(), recomputation()


class Checkpointed(Bijection):
    """The same bijection, whose intermediate values are computed again in the backward pass instead of being kept.

    Results and gradients are those of the bijection itself.

    Args:
        bijection: one step of a deep flow.

    Raises:
        TypeError: it is not a :class:`Bijection`.
    """

    def __init__(self, bijection: Bijection) -> None:
        check_types(Bijection, f"; {WRAPPED}, use ConditionalCheckpointed for one with a context", bijection=bijection)
        super().__init__(bijection.event_dim)
        self.bijection = bijection

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inner bijection's forward pass."""
        return self._run(self.bijection.forward_and_ladj, x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The inner bijection's inverse."""
        return self._run(self.bijection.inverse_and_ladj, y)

    @staticmethod
    def _run(function: Callable[[Tensor], tuple[Tensor, Tensor]], value: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return function(value)
        if torch.compiler.is_compiling():  # which knows no contexts around a checkpoint
            return checkpoint(function, value, use_reentrant=False)
        return checkpoint(function, value, use_reentrant=False, context_fn=_contexts)

    @property
    def domain(self) -> Constraint:  # type: ignore[override]  # as in the base class
        """The inner bijection's."""
        return self.bijection.domain

    @property
    def codomain(self) -> Constraint:  # type: ignore[override]  # as in the base class
        """The inner bijection's."""
        return with_draws(self.bijection.codomain, self._drew)

    @property
    def batch_shape(self) -> torch.Size:
        """The inner bijection's."""
        return self.bijection.batch_shape

    @property
    def sign(self) -> int:
        """The inner bijection's."""
        return self.bijection.sign

    def forward_shape(self, shape: _size) -> torch.Size:
        """Shape of the output for an input of ``shape``."""
        return self.bijection.forward_shape(shape)

    def inverse_shape(self, shape: _size) -> torch.Size:
        """Shape of the input for an output of ``shape``."""
        return self.bijection.inverse_shape(shape)

    def _state_tensors(self) -> Iterable[Tensor]:
        return self.bijection._state_tensors()


class ConditionalCheckpointed(ConditionalBijection):
    """A family of bijections that are computed again in the backward pass, see :class:`Checkpointed`.

    Args:
        family: of steps of a deep flow.

    Raises:
        TypeError: it is neither a family nor a bijection.
    """

    def __init__(self, family: ConditionalBijection) -> None:
        super().__init__()
        check_types((ConditionalBijection, Bijection), f"; {WRAPPED}", family=family)
        self.family = family

    def condition(self, context: Tensor) -> Checkpointed:
        """The family's bijection for each row of ``context``."""
        return Checkpointed(self.family.condition(context))
