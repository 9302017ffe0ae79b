"""The contract of a bijection, and the one adapter from it to PyTorch's and Pyro's `Transform` protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints
from torch.types import _size

from vi_flows.settings import check_tensors, joint_batch
from vi_flows.transforms.capabilities import Capabilities
from vi_flows.transforms.memo import EvaluationState, Memo
from vi_flows.transforms.regions import reals

__all__ = ["Bijection", "ConditionalBijection", "expand_ladj", "sum_event_dims"]


def no_sign(transform: object) -> NotImplementedError:
    """What to raise where it is not known whether a map increases."""
    return NotImplementedError(
        f"{type(transform).__name__} has no sign, which says whether a map of one entry increases, and what it makes "
        "of a distribution has no cdf or icdf: estimate them from samples"
    )


def _cast(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether autocast brings a tensor and parameters of ``dtype`` into one type; it leaves double precision alone."""
    return torch.is_autocast_enabled(value.device.type) and torch.float64 not in (value.dtype, dtype)


def expand_ladj(ladj: Tensor, x: Tensor, event_dim: int) -> Tensor:
    """A log-determinant that is the same for all rows of ``x``, once a row, and in the type that the values have.

    Args:
        ladj: a scalar, of the parameters' type.
        x: ``batch_shape + event_shape``, of this type or, where the map has no products, of a wider one.
        event_dim: of the map.
    """
    return ladj.to(torch.promote_types(ladj.dtype, x.dtype)).expand(x.shape[: x.dim() - event_dim])


def sum_event_dims(value: Tensor, num_dims: int) -> Tensor:
    """Sum the last `num_dims` dimensions (none of them for 0): those that an event of the whole has more than a part's.

    Raises:
        ValueError: the part's have more; a composition refuses such parts, so this one came in afterwards.
    """
    if num_dims < 0:
        raise ValueError(
            f"a part that took the place of another has {-num_dims} event dimensions more than the whole: make a new "
            "Chain of the parts"
        )
    return value.flatten(-num_dims).sum(-1) if num_dims > 0 else value


class Bijection(Capabilities, TransformModule, ABC):
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
        self._memo: Memo | None = None

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

    @property
    def batch_shape(self) -> torch.Size:
        """Of the context that it was conditioned on: one map a row. Empty for a map that all rows share."""
        return torch.Size()

    # What follows is the adapter to `torch.distributions.Transform`.

    def forward_shape(self, shape: _size) -> torch.Size:
        """Shape of the output for an input of ``shape``: a map for each row of a context makes rows of one input."""
        shape = torch.Size(shape)
        if not self.batch_shape:
            return shape
        rows = len(shape) - self._event_dim
        return joint_batch("the flow's input", shape[:rows], self.batch_shape) + shape[rows:]

    def inverse_shape(self, shape: _size) -> torch.Size:
        """Shape of the input for an output of ``shape``."""
        return Bijection.forward_shape(self, shape)

    @property  # PyTorch declares a writable attribute and itself overrides it with properties
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        """Real arrays with ``event_dim`` event dimensions."""
        return reals(self._event_dim)

    @property  # the same
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        """Real arrays with ``event_dim`` event dimensions."""
        return reals(self._event_dim)

    @property
    def event_dim(self) -> int:
        """Number of rightmost dimensions of one event."""
        return self._event_dim

    @property
    def sign(self) -> int:
        """+1 if the map of a single entry increases, −1 if it decreases; :class:`FromPyro` has its transform's.

        Raises:
            NotImplementedError: the map is one of several entries, or does not know.
        """
        raise no_sign(self)

    def __dir__(self) -> list[str]:
        # `torch.jit.trace` reads all that is listed, and would end in the refusal of a sign.
        return [name for name in super().__dir__() if name != "sign"]

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
        """Forget the last evaluated pair and whatever else was kept, here and in every part."""
        for module in self.modules():
            if isinstance(module, Bijection):
                module._forget()

    def _forget(self) -> None:
        """Drop what this bijection itself keeps between evaluations; a layer that keeps more adds it."""
        self._memo = None

    def _state_tensors(self) -> Iterable[Tensor]:
        """Tensors that the map depends on; conditioned bijections, which own no parameters, name theirs here."""
        yield from self.parameters()
        yield from self.buffers()

    def evaluation_state(self, *points: Tensor) -> EvaluationState | None:
        """What a value computed now from ``points`` depends on; ``None`` if that can't be followed."""
        return EvaluationState.of((*points, *self._state_tensors()), self.training)

    def _remember(self, x: Tensor, y: Tensor, ladj: Tensor, sampled: bool) -> None:
        state = self.evaluation_state(x, y)
        self._memo = None if state is None else Memo(x, y, ladj, sampled, state)

    def _recall(self, y: Tensor, x: Tensor | None = None) -> Memo | None:
        memo = self._memo
        if memo is None or memo.y is not y or (x is not None and memo.x is not x):
            return None
        return memo if memo.state.same(self.evaluation_state(memo.x, memo.y)) else None

    def _drew(self, y: Tensor) -> bool:
        """Whether ``y`` is the last value that came out of a forward pass, and would come out of it still."""
        memo = self._recall(y=y)
        return memo is not None and memo.sampled

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

    def _check_type(self, value: Tensor, parameter: Tensor | None) -> None:
        """Refuse a tensor that no product with a parameter takes: of another floating-point type."""
        if parameter is None or value.dtype is parameter.dtype or _cast(value, parameter.dtype):
            return
        raise ValueError(
            f"{type(self).__name__} has parameters of {parameter.dtype} and got a tensor of {value.dtype}: convert one "
            "of them, as flow.to(tensor.dtype) or tensor.to(dtype) does"
        )

    def _check_last_dim(self, value: Tensor, size: int) -> None:
        self._check_tensor(value)
        if value.dim() < 1 or value.shape[-1] != size:
            raise ValueError(
                f"{type(self).__name__} acts on vectors of {size} dimensions, got a tensor of {tuple(value.shape)}"
            )
        self._check_batch(value)

    def _check_batch(self, value: Tensor) -> None:
        """Refuse rows that don't broadcast with those of the context."""
        own, rows = self.batch_shape, value.shape[: value.dim() - self._event_dim]
        if own and own != rows and not torch.compiler.is_compiling():
            joint_batch("the flow's input", rows, own)


class ConditionalBijection(Capabilities, ConditionalTransformModule, ABC):
    """A family of bijections indexed by a context: ``condition(context)`` gives one, per row of the context."""

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def condition(self, context: Tensor) -> Bijection:
        """Fix the context.

        Args:
            context: ``batch_shape + (context_dim,)``; its batch shape broadcasts against that of the bijection's input.
        """

    def _checked(self, context: Tensor, size: int, event_dim: int = 1) -> Tensor:
        """The context in the parameters' type, where that loses nothing (one-hot classes may be whole numbers).

        Raises:
            TypeError: it is no tensor.
            ValueError: a row of it has not ``size`` entries, or channels, or it is of a wider type than the parameters.
        """
        check_tensors(context=context)
        if context.dim() < event_dim or context.shape[-event_dim] != size:
            name = "entries" if event_dim == 1 else "channels"
            found = context.shape[-event_dim] if context.dim() >= event_dim else "no"
            raise ValueError(
                f"context has {found} {name} a row, expected {size}: it is a tensor of {tuple(context.shape)}"
            )
        if torch.compiler.is_compiling() and context.is_floating_point():  # which walks through no parameters
            return context
        dtype = next(self.parameters()).dtype
        if context.dtype is dtype or (context.is_floating_point() and _cast(context, dtype)):
            return context
        if torch.promote_types(context.dtype, dtype) is not dtype:
            raise ValueError(
                f"context is of {context.dtype} and the parameters of {type(self).__name__} of {dtype}: convert one of "
                "them, as family.to(context.dtype) or context.to(dtype) does"
            )
        return context.to(dtype)
