"""One map, two sources of its parameters: the layer's own, or a context (an encoder's output)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vi_flows.transforms.base import Bijection, ConditionalBijection
from vi_flows.transforms.implicit import differentiable_root

__all__ = ["ConditionalParametric", "Family", "Parametric", "linear_map", "solve_tanh"]


class Family(nn.Module, ABC):
    """A family of bijections of vectors: what they do, given the vector of their free parameters.

    Every value of the free parameters gives a bijection.

    Args:
        input_dim: ``d``.
        num_params: entries of the vector of parameters.

    Raises:
        ValueError: ``input_dim`` is less than 1.
    """

    def __init__(self, input_dim: int, num_params: int) -> None:
        super().__init__()
        if input_dim < 1:
            raise ValueError(f"input_dim must be at least 1, got {input_dim}")
        self.input_dim, self.num_params = input_dim, num_params

    continuous_log_det: bool = True
    """Whether the log-determinant is continuous in the input."""

    @abstractmethod
    def initial(self) -> Tensor:
        """Parameters to start from, ``(num_params,)``: those of the identity, some of them drawn at random."""

    @abstractmethod
    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_ladj`.

        Args:
            x: ``(…, d)``.
            params: ``(…, num_params)``, whose leading dimensions broadcast against those of ``x``.
        """

    @abstractmethod
    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.inverse_and_ladj`; arguments as above."""

    @abstractmethod
    def min_slope(self, params: Tensor) -> float:
        """See :meth:`Bijection.min_slope`."""


class _Member(Bijection):
    """The bijection of a family at parameters of any origin."""

    params: Tensor
    family: Family

    @property
    def continuous_log_det(self) -> bool:
        """The family's."""
        return self.family.continuous_log_det

    @torch.no_grad()
    def min_slope(self) -> float:
        """The family's, at these parameters."""
        return self.family.min_slope(self.params)

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The family's map."""
        return self.family.forward_and_ladj(*self._in_one_type(x))

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The family's inverse."""
        y, params = self._in_one_type(y)
        if y.dim() == params.dim() == 1:
            # A row by itself: PyTorch's forward-mode tangents of numbers of no dimension are in double precision.
            x, ladj = self.family.inverse_and_ladj(y[None], params)
            return x.squeeze(0), ladj.squeeze(0)
        return self.family.inverse_and_ladj(y, params)

    def _in_one_type(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The value, which is checked, and the parameters, in the wider of their types: some families multiply them."""
        self._check_last_dim(value, self.family.input_dim)
        if value.dtype is self.params.dtype:
            return value, self.params
        dtype = torch.promote_types(value.dtype, self.params.dtype)
        return value.to(dtype), self.params.to(dtype)


class Parametric(_Member):
    """A bijection with parameters of its own.

    Args:
        family: what it does.
    """

    def __init__(self, family: Family) -> None:
        super().__init__(event_dim=1)
        self.family = family
        self.params = nn.Parameter(family.initial())


class _Conditioned(_Member):
    """A member at parameters that were computed from a context, one set a row; it owns none."""

    def __init__(self, family: Family, params: Tensor) -> None:
        super().__init__(event_dim=1)
        self.family, self.params = family, params

    @property
    def batch_shape(self) -> torch.Size:
        """The context's."""
        return self.params.shape[:-1]

    def _state_tensors(self) -> Iterable[Tensor]:
        return (self.params,)


class ConditionalParametric(ConditionalBijection):
    r"""Amortised parameters: ``params(context) = params + V context``, with ``V`` zero at the start.

    Args:
        family: what the bijections do.
        context_dim: length of the context vector.

    Raises:
        ValueError: ``context_dim`` is less than 1; on conditioning, the context has another length.
    """

    def __init__(self, family: Family, context_dim: int) -> None:
        super().__init__()
        if context_dim < 1:
            raise ValueError(f"context_dim must be at least 1, got {context_dim}")
        self.family, self.context_dim = family, context_dim
        self.map = nn.Linear(context_dim, family.num_params)
        with torch.no_grad():
            self.map.weight.zero_()
            self.map.bias.copy_(family.initial())

    @property
    def continuous_log_det(self) -> bool:
        """The family's."""
        return self.family.continuous_log_det

    @torch.no_grad()
    def min_slope(self) -> float:
        """The family's, at the parameters that all contexts share."""
        return self.family.min_slope(self.map.bias)

    def condition(self, context: Tensor) -> Bijection:
        """The bijection for each row of ``context``, shape ``batch_shape + (context_dim,)``."""
        context = self._checked(context, self.context_dim)
        return _Conditioned(self.family, self.map(context))


def linear_map(x: Tensor, matrix: Tensor) -> Tensor:
    """``x M`` for vectors ``(…, i)`` and matrices ``(…, i, j)`` whose leading dimensions broadcast.

    Vectors that share a matrix (the particles of a row) are the rows of one product; the matrix is not copied.
    """
    return torch.einsum("...i,...ij->...j", x, matrix)


def solve_tanh(r: Tensor, scale: Tensor | float, shift: Tensor, target: Tensor, num_steps: int = 40) -> Tensor:
    r"""The ``s`` with ``s + r tanh(scale · s + shift) = target``, where ``r · scale > −1``, so that there is one.

    Newton steps inside a bracket that every second step halves, a fixed number of them; derivatives with respect to
    all arguments come from the equation itself (:func:`~vi_flows.transforms.implicit.differentiable_root`).

    Args:
        r: any shape that broadcasts with the others.
        scale: of the unknown inside.
        shift: inside.
        target: right-hand side.
        num_steps: pairs of steps.
    """

    def residual_and_slope(s: Tensor) -> tuple[Tensor, Tensor]:
        act = torch.tanh(scale * s + shift)
        return s + r * act - target, 1.0 + r * scale * (1.0 - act.square())

    with torch.no_grad():
        low, high = target - r.abs(), target + r.abs()
        s = target - r * torch.tanh(scale * target + shift)
        for step in range(2 * num_steps):
            value, slope = residual_and_slope(s)
            low, high = torch.where(value < 0, s, low), torch.where(value < 0, high, s)
            middle = 0.5 * (low + high)
            newton = s - value / slope
            s = middle if step % 2 else torch.where((newton >= low) & (newton <= high), newton, middle)
        value, slope = residual_and_slope(s)
        newton = s - value / slope
        s = torch.where((newton >= low) & (newton <= high), newton, s)
        value, slope = residual_and_slope(s)
        s = s - value / slope
    return differentiable_root(s, residual_and_slope)
