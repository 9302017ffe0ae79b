"""The log joint density of a Pyro program at many values of its latent variables at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

__all__ = ["LogJoint"]


class LogJoint:
    r"""``log p(x, z)`` of a model with its arguments, for a batch of values of its latent sites.

    The whole batch is one pass through the model where :func:`torch.func.vmap` can take it, which needs no plate, no
    batch dimension and no care on the model's side; otherwise the model runs once per value. Scales (subsampling,
    ``poutine.scale``) and masks count as they do in Pyro's ELBO.

    Args:
        model: a Pyro program.
        args: the model's positional arguments.
        kwargs: the model's keyword arguments.
        vectorize: whether to try ``vmap``.
        dtype: floating-point type that the arguments, and what the model makes with PyTorch's default type, are
            turned into; ``None`` leaves all as it is. Tensors that the model holds itself stay as they are.
    """

    def __init__(
        self,
        model: Callable,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        vectorize: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.args = tuple(_cast(value, dtype) for value in args)
        self.kwargs = {key: _cast(value, dtype) for key, value in (kwargs or {}).items()}
        self.dtype = dtype
        self.vectorized = vectorize

    def __call__(self, values: Mapping[str, Tensor]) -> Tensor:
        """The log joint density of each value.

        Args:
            values: constrained values by site, each of shape ``(S,) + site shape``.

        Returns:
            Shape ``(S,)``.
        """
        values = dict(values)
        # Handlers around the caller must not see these evaluations; validation asks questions vmap can't answer.
        with poutine.block(), pyro.validation_enabled(False), _default_dtype(self.dtype):
            if self.vectorized:
                try:
                    return torch.func.vmap(self._single, randomness="same")(values)
                except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError):
                    # The model does something vmap can't follow (`.item()`, a branch on data, in-place writes). If it
                    # is simply broken, the loop below raises its own error.
                    result = self._loop(values)
                    self.vectorized = False
                    return result
            return self._loop(values)

    def _loop(self, values: Mapping[str, Tensor]) -> Tensor:
        size = next(iter(values.values())).shape[0]
        return torch.stack([self._single({name: value[i] for name, value in values.items()}) for i in range(size)])

    def _single(self, values: dict[str, Tensor]) -> Tensor:
        trace = poutine.trace(poutine.condition(self.model, data=values)).get_trace(*self.args, **self.kwargs)
        total = trace.log_prob_sum()
        # A model whose every site is masked out gives a plain zero.
        return total if isinstance(total, Tensor) else next(iter(values.values())).new_tensor(total)


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if dtype is not None and value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)(_cast(item, dtype) for item in value)
    if type(value) is dict:
        return {key: _cast(item, dtype) for key, item in value.items()}
    return value


@contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(before if dtype is None else dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
