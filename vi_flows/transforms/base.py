"""The contract of a bijection, and the one adapter from it to PyTorch's and Pyro's `Transform` protocol."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from vi_flows.nn.typed import ModuleListOf

__all__ = [
    "Bijection", "Chain", "ConditionalBijection", "ConditionalChain", "ConditionalInverse", "EvaluationState",
    "Inverse", "gains_of", "min_slope_of", "outermost", "sum_event_dims",
]  # fmt: skip


def sum_event_dims(value: Tensor, num_dims: int) -> Tensor:
    """Sum the last `num_dims` dimensions (none of them for 0)."""
    return value.flatten(-num_dims).sum(-1) if num_dims > 0 else value


class EvaluationState(NamedTuple):
    """Everything that a remembered value and its graph depend on: the tensors read, their versions, the modes."""

    modes: tuple[bool, ...]
    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...]

    @staticmethod
    def of(tensors: Iterable[Tensor], training: bool = False) -> EvaluationState | None:
        """The present state, or ``None`` where tensors can't be followed (inference mode, functorch, compilation)."""
        if torch.compiler.is_compiling():
            return None
        tensors = tuple(tensors)
        try:
            versions = tuple(t._version for t in tensors)
        except RuntimeError:  # inference tensors and functorch's wrappers keep no version
            return None
        modes = (torch.is_grad_enabled(), training, *(t.requires_grad for t in tensors))
        return EvaluationState(modes, tensors, versions)

    def same(self, other: EvaluationState | None) -> bool:
        """Whether nothing that matters changed in between."""
        return other is not None and (
            self.modes == other.modes
            and self.versions == other.versions
            and len(self.tensors) == len(other.tensors)
            and all(a is b for a, b in zip(self.tensors, other.tensors, strict=True))
        )


class _Memo(NamedTuple):
    """One evaluated pair: `ladj` is log|det dy/dx|; `sampled` tells that it came from x to y."""

    x: Tensor
    y: Tensor
    ladj: Tensor
    sampled: bool
    state: EvaluationState


def outermost(module: nn.Module) -> Iterator[_Capabilities]:
    """The bijections and conditional bijections below ``module`` that no other one of them contains."""
    for child in module.children():
        if isinstance(child, _Capabilities):
            yield child
        else:
            yield from outermost(child)


def min_slope_of(parts: Iterable[_Capabilities]) -> float:
    """The least :meth:`Bijection.min_slope` of several; infinity if there is none, NaN if one of them is."""
    return float(torch.tensor([math.inf, *(part.min_slope() for part in parts)], dtype=torch.float64).min())


class _Capabilities(nn.Module):
    """What a (conditional) bijection says of itself; by default, what all the bijections inside it say together."""

    gains: Mapping[str, float] = MappingProxyType({})
    """By name of a parameter of its own, the factor between it and what it stands for, where that is not 1."""

    @property
    def has_inverse(self) -> bool:
        """Whether ``inverse_and_ladj`` works at any point; otherwise it raises ``NotImplementedError``."""
        return all(part.has_inverse for part in outermost(self))

    @property
    def continuous_log_det(self) -> bool:
        """Whether the log-determinant is continuous in the input; where it jumps, path gradients miss a term."""
        return all(part.continuous_log_det for part in outermost(self))

    def min_slope(self) -> float:
        """A lower bound of the slopes ``∂yᵢ/∂xᵢ`` of every residual layer inside, in the layer's own direction.

        It comes from the parameters that the layers work with. Infinity if there is no layer whose slopes a bound keeps
        above zero; NaN if parameters are. Of a conditional bijection: at the parameters that all contexts share.
        """
        return min_slope_of(outermost(self))


def gains_of(module: nn.Module) -> dict[int, float]:
    """The gains of all bijections within a module, by ``id`` of the parameter."""
    parts = [m for m in module.modules() if isinstance(m, _Capabilities)]
    return {id(part.get_parameter(name)): gain for part in parts for name, gain in part.gains.items()}


class Bijection(_Capabilities, TransformModule, ABC):
    r"""A differentiable bijection of real arrays with a tractable Jacobian determinant, as a module.

    A subclass states the map once, by :meth:`forward_and_ladj`, and its inverse, by :meth:`inverse_and_ladj`. Both
    take any number of leading (batch, particle) dimensions and return the log absolute determinant summed over the
    last ``event_dim`` dimensions. *Forward* goes from the base distribution to the sample, as in Pyro.

    Every bijection is at the same time a :class:`torch.distributions.Transform`, so that
    ``TransformedDistribution(base, [bijection])`` and ``pyro.sample`` accept it. The adapter below holds one memo: the
    log-probability of a sample that was just drawn costs no second pass. The memo never answers for data that are
    scored again, nor after a parameter, an input, the gradient mode or the training mode changed; pickling and
    ``deepcopy`` leave it out.

    Changes that PyTorch does not count (in-place edits of ``tensor.data``) can't be seen; use ``torch.no_grad()``, or
    call :meth:`clear_cache` after them.

    Args:
        event_dim: number of rightmost dimensions that make up one event.
    """

    bijective = True

    def __init__(self, event_dim: int = 1) -> None:
        super().__init__()
        if event_dim < 0:
            raise ValueError(f"event_dim must not be negative, got {event_dim}")
        self._event_dim = event_dim
        self._memo: _Memo | None = None

    @abstractmethod
    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map base to sample.

        Args:
            x: ``batch_shape + event_shape``.

        Returns:
            ``y`` of the same batch shape, and ``log|det dy/dx|`` of shape ``batch_shape``.
        """

    @abstractmethod
    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map sample to base.

        Args:
            y: ``batch_shape + event_shape``.

        Returns:
            ``x``, and ``log|det dx/dy|`` (the negative of the forward one at ``x``) of shape ``batch_shape``.
        """

    def condition(self, context: Tensor) -> Bijection:
        """The bijection itself: it is the same for every context."""
        return self

    # What follows is the adapter to `torch.distributions.Transform`.

    @property  # PyTorch declares a writable attribute and itself overrides it with properties
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        """Real arrays with ``event_dim`` event dimensions."""
        return constraints.independent(constraints.real, self._event_dim)

    @property  # the same
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        """Real arrays with ``event_dim`` event dimensions."""
        return constraints.independent(constraints.real, self._event_dim)

    @property
    def event_dim(self) -> int:
        """Number of rightmost dimensions of one event."""
        return self._event_dim

    def __call__(self, x: Tensor) -> Tensor:
        """``y = f(x)``; the log-determinant is kept for :meth:`log_abs_det_jacobian`."""
        y, ladj = self.forward_and_ladj(x)
        self._remember(x, y, ladj, sampled=True)
        return y

    def _inv_call(self, y: Tensor) -> Tensor:
        memo = self._recall(y=y)
        # A pair that came from scoring is not reused: its graph may have been freed by an earlier backward pass.
        if memo is not None and memo.sampled:
            return memo.x
        x, ladj = self.inverse_and_ladj(y)
        self._remember(x, y, -ladj, sampled=False)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``log|det dy/dx|`` of a pair, shape ``batch_shape``; free for the pair evaluated last."""
        memo = self._recall(y=y, x=x)
        return self.forward_and_ladj(x)[1] if memo is None else memo.ladj

    def _call(self, x: Tensor) -> Tensor:
        return self.forward_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def with_cache(self, cache_size: int = 1) -> Bijection:
        """Return the bijection itself: its memo is always on and always safe."""
        return self

    def clear_cache(self) -> None:
        """Forget the last evaluated pair, here and in every part."""
        for module in self.modules():
            if isinstance(module, Bijection):
                module._memo = None

    def _state_tensors(self) -> Iterable[Tensor]:
        """Tensors that the map depends on; conditioned bijections, which own no parameters, name theirs here."""
        yield from self.parameters()
        yield from self.buffers()

    def evaluation_state(self, *points: Tensor) -> EvaluationState | None:
        """What a value computed now from ``points`` depends on; ``None`` if that can't be followed."""
        return EvaluationState.of((*points, *self._state_tensors()), self.training)

    def _remember(self, x: Tensor, y: Tensor, ladj: Tensor, sampled: bool) -> None:
        state = self.evaluation_state(x, y)
        self._memo = None if state is None else _Memo(x, y, ladj, sampled, state)

    def _recall(self, y: Tensor, x: Tensor | None = None) -> _Memo | None:
        memo = self._memo
        if memo is None or memo.y is not y or (x is not None and memo.x is not x):
            return None
        return memo if memo.state.same(self.evaluation_state(memo.x, memo.y)) else None

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_memo"] = None
        return state

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)

    def _check_tensor(self, value: Tensor) -> None:
        """Refuse what is no dense tensor of real floating-point numbers."""
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{type(self).__name__} acts on tensors, got {type(value).__name__}; torch.as_tensor makes one"
            )
        if not value.is_floating_point() or value.layout != torch.strided:
            kind = "sparse" if value.layout != torch.strided else str(value.dtype)
            raise ValueError(f"{type(self).__name__} acts on dense floating-point tensors, got a {kind} one")

    def _check_last_dim(self, value: Tensor, size: int) -> None:
        self._check_tensor(value)
        if value.dim() < 1 or value.shape[-1] != size:
            raise ValueError(
                f"{type(self).__name__} acts on vectors of {size} dimensions, got a tensor of {tuple(value.shape)}"
            )


class Chain(Bijection):
    r"""Composition ``y = f_n(… f_2(f_1(x)))``; the log-determinants add.

    Parts with fewer event dimensions than the widest one have their log-determinants summed over the rest.

    Args:
        bijections: the parts in forward order; an empty chain is the identity with ``event_dim``.
        event_dim: event dimensions of the whole; by default the largest among the parts (1 if there are none).

    Raises:
        TypeError: a part is not a :class:`Bijection` (wrap Pyro's own transforms in ``FromPyro``).
    """

    def __init__(self, bijections: Sequence[Bijection], event_dim: int | None = None) -> None:
        parts = list(bijections)
        for part in parts:
            if not isinstance(part, Bijection):
                raise TypeError(f"a Chain is made of Bijections, got {type(part).__name__}; wrap it in FromPyro")
        widest = max((part.event_dim for part in parts), default=1 if event_dim is None else 0)
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

    def _fold(self, value: Tensor, steps: Iterable[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
        total = value.new_zeros(value.shape[: value.dim() - self.event_dim])
        for step, event_dim in steps:
            value, ladj = step(value)
            total = total + sum_event_dims(ladj, self.event_dim - event_dim)
        return value, total

    def _state_tensors(self) -> Iterable[Tensor]:
        for part in self.parts:
            yield from part._state_tensors()

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the output for an input of ``shape``."""
        for part in self.parts:
            shape = part.forward_shape(shape)
        return shape

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the input for an output of ``shape``."""
        for part in reversed(self.parts):
            shape = part.inverse_shape(shape)
        return shape


class Inverse(Bijection):
    """The same bijection in the other direction, as a module that registers its parameters.

    ``Inverse(flow)`` trades which of sampling and scoring is the forward pass of ``flow``.

    Args:
        bijection: what to invert.

    Raises:
        TypeError: it is not a :class:`Bijection` (wrap Pyro's own transforms in ``FromPyro``).
    """

    def __init__(self, bijection: Bijection) -> None:
        if not isinstance(bijection, Bijection):
            raise TypeError(f"Inverse takes a Bijection, got {type(bijection).__name__}; wrap it in FromPyro")
        super().__init__(bijection.event_dim)
        self.bijection = bijection

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inner bijection's inverse."""
        return self.bijection.inverse_and_ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The inner bijection's forward pass."""
        return self.bijection.forward_and_ladj(y)

    def _state_tensors(self) -> Iterable[Tensor]:
        return self.bijection._state_tensors()

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the output for an input of ``shape``."""
        return self.bijection.inverse_shape(shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the input for an output of ``shape``."""
        return self.bijection.forward_shape(shape)


class ConditionalBijection(_Capabilities, ConditionalTransformModule, ABC):
    """A family of bijections indexed by a context: ``condition(context)`` gives one, per row of the context."""

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def condition(self, context: Tensor) -> Bijection:
        """Fix the context.

        Args:
            context: ``batch_shape + (context_dim,)``; its batch shape broadcasts against that of the bijection's input.
        """


class ConditionalChain(ConditionalBijection):
    """Composition of conditional and unconditional bijections, conditioned on one context.

    Args:
        parts: in forward order.
    """

    def __init__(self, parts: Sequence[ConditionalBijection | Bijection]) -> None:
        super().__init__()
        self.parts: ModuleListOf[ConditionalBijection | Bijection] = ModuleListOf(parts)

    def condition(self, context: Tensor) -> Chain:
        """Condition every part; unconditional ones enter the chain as they are."""
        return Chain([part.condition(context) for part in self.parts])


class ConditionalInverse(ConditionalBijection):
    """A family of bijections in the other direction, see :class:`Inverse`.

    Args:
        family: what to invert.
    """

    def __init__(self, family: ConditionalBijection) -> None:
        super().__init__()
        self.family = family

    def condition(self, context: Tensor) -> Inverse:
        """The inverse of the family's bijection for each row of ``context``."""
        return Inverse(self.family.condition(context))
