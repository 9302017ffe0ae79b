"""Bijections made of bijections: one after the other, and in the other direction; with and without a context."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint
from torch.types import _size

from vi_flows.nn.typed import ModuleListOf
from vi_flows.settings import check_types
from vi_flows.transforms.base import Bijection, ConditionalBijection, sum_event_dims
from vi_flows.transforms.regions import fits, reached, widened, with_draws

__all__ = ["Chain", "ConditionalChain", "ConditionalInverse", "Inverse"]

WRAPPED = "wrap it in FromPyro if it is a transform of PyTorch's or Pyro's"


class Chain(Bijection):
    r"""Composition ``y = f_n(… f_2(f_1(x)))``; the log-determinants add.

    Parts with fewer event dimensions than the widest one have their log-determinants summed over the rest.

    Its codomain is what it reaches: the last part's where each part before reaches the whole domain of the next; else
    (an affine layer after ``exp``) those values of it whose inverse images lie in the codomains of the parts before,
    which takes a pass backwards to check. Its domain is likewise what can be taken through all parts.

    Args:
        bijections: the parts in forward order; an empty chain is the identity with ``event_dim``.
        event_dim: event dimensions of the whole; by default the largest among the parts (1 if there are none).

    Raises:
        TypeError: a part is not a :class:`Bijection` (``FromPyro`` wraps PyTorch's and Pyro's own transforms).
    """

    def __init__(self, bijections: Sequence[Bijection], event_dim: int | None = None) -> None:
        check_types(Iterable, ": a Chain is made of several Bijections, [first, second]", bijections=bijections)
        parts = list(bijections)
        for part in parts:
            check_types(Bijection, f"; {WRAPPED}, use ConditionalChain for one with a context", part=part)
        widest = max([part.event_dim for part in parts]) if parts else 1 if event_dim is None else 0
        if event_dim is not None and event_dim < widest:
            raise ValueError(f"event_dim={event_dim} is less than the {widest} event dimensions of a part")
        super().__init__(widest if event_dim is None else event_dim)
        self.parts: ModuleListOf[Bijection] = ModuleListOf(parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Bijection:
        return self.parts[index]

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One pass through every part, first to last."""
        return self._fold(x, ((part.forward_and_ladj, part.event_dim) for part in self.parts))

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """One pass through every part's inverse, last to first."""
        return self._fold(y, ((part.inverse_and_ladj, part.event_dim) for part in reversed(self.parts)))

    @property
    def domain(self) -> Constraint:  # type: ignore[override]  # as in the base class
        """Those of the first part's domain that every part after it can take, with ``event_dim`` event dimensions."""
        # Asked of the parts each time: they, or what is inside of them, may have been replaced.
        if fits((part.codomain, part.domain) for part in reversed(self.parts)):
            return widened(self.parts[0].domain if len(self.parts) else super().domain, self.event_dim)
        return reached([(part.codomain, part.domain, part._call) for part in reversed(self.parts)], self.event_dim)

    @property
    def codomain(self) -> Constraint:  # type: ignore[override]  # as in the base class
        """Those of the last part's codomain that come from the parts before, with ``event_dim`` event dimensions."""
        if fits((part.domain, part.codomain) for part in self.parts):
            return widened(self.parts[-1].codomain if len(self.parts) else super().codomain, self.event_dim)
        steps = [(part.domain, part.codomain, part._inverse) for part in self.parts]
        return with_draws(reached(steps, self.event_dim), self._drew)

    @property
    def batch_shape(self) -> torch.Size:
        """Of the contexts of all parts together."""
        shapes = [(part.batch_shape, self.event_dim - part.event_dim) for part in self.parts]
        return torch.broadcast_shapes(*(shape[: len(shape) - more] if more else shape for shape, more in shapes))

    @property
    def sign(self) -> int:
        """The product of the parts'."""
        return math.prod(part.sign for part in self.parts)

    def _fold(self, value: Tensor, steps: Iterable[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
        self._check_tensor(value)
        total = value.new_zeros(value.shape[: value.dim() - self.event_dim])
        for step, event_dim in steps:
            value, ladj = step(value)
            total = total + sum_event_dims(ladj, self.event_dim - event_dim)
        return value, total

    def _state_tensors(self) -> Iterable[Tensor]:
        for part in self.parts:
            yield from part._state_tensors()

    def forward_shape(self, shape: _size) -> torch.Size:
        """Shape of the output for an input of ``shape``."""
        for part in self.parts:
            shape = part.forward_shape(shape)
        return torch.Size(shape)

    def inverse_shape(self, shape: _size) -> torch.Size:
        """Shape of the input for an output of ``shape``."""
        for part in reversed(self.parts):
            shape = part.inverse_shape(shape)
        return torch.Size(shape)


class Inverse(Bijection):
    """The same bijection in the other direction, as a module that registers its parameters.

    ``Inverse(flow)`` trades which of sampling and scoring is the forward pass of ``flow``.

    Args:
        bijection: what to invert.

    Raises:
        TypeError: it is not a :class:`Bijection` (``FromPyro`` wraps PyTorch's and Pyro's own transforms).
    """

    def __init__(self, bijection: Bijection) -> None:
        check_types(Bijection, f"; {WRAPPED}, use ConditionalInverse for one with a context", bijection=bijection)
        super().__init__(bijection.event_dim)
        self.bijection = bijection

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inner bijection's inverse."""
        return self.bijection.inverse_and_ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The inner bijection's forward pass."""
        return self.bijection.forward_and_ladj(y)

    @property
    def domain(self) -> Constraint:  # type: ignore[override]  # as in the base class
        """The inner bijection's codomain."""
        return self.bijection.codomain

    @property
    def codomain(self) -> Constraint:  # type: ignore[override]  # as in the base class
        """The inner bijection's domain."""
        return with_draws(self.bijection.domain, self._drew)

    @property
    def batch_shape(self) -> torch.Size:
        """The inner bijection's."""
        return self.bijection.batch_shape

    @property
    def sign(self) -> int:
        """The inner bijection's."""
        return self.bijection.sign

    def _state_tensors(self) -> Iterable[Tensor]:
        return self.bijection._state_tensors()

    def forward_shape(self, shape: _size) -> torch.Size:
        """Shape of the output for an input of ``shape``."""
        return self.bijection.inverse_shape(shape)

    def inverse_shape(self, shape: _size) -> torch.Size:
        """Shape of the input for an output of ``shape``."""
        return self.bijection.forward_shape(shape)


class ConditionalChain(ConditionalBijection):
    """Composition of conditional and unconditional bijections, conditioned on one context.

    Args:
        parts: in forward order.

    Raises:
        TypeError: a part is neither.
    """

    def __init__(self, parts: Sequence[ConditionalBijection | Bijection]) -> None:
        super().__init__()
        check_types(Iterable, ": a ConditionalChain is made of several parts, [first, second]", parts=parts)
        parts = list(parts)
        for part in parts:
            check_types((ConditionalBijection, Bijection), f"; {WRAPPED}", part=part)
        self.parts: ModuleListOf[ConditionalBijection | Bijection] = ModuleListOf(parts)

    def condition(self, context: Tensor) -> Chain:
        """Condition every part; unconditional ones enter the chain as they are."""
        return Chain([part.condition(context) for part in self.parts])


class ConditionalInverse(ConditionalBijection):
    """A family of bijections in the other direction, see :class:`Inverse`.

    Args:
        family: what to invert.

    Raises:
        TypeError: it is neither a family nor a bijection.
    """

    def __init__(self, family: ConditionalBijection) -> None:
        super().__init__()
        check_types((ConditionalBijection, Bijection), f"; {WRAPPED}", family=family)
        self.family = family

    def condition(self, context: Tensor) -> Inverse:
        """The inverse of the family's bijection for each row of ``context``."""
        return Inverse(self.family.condition(context))
