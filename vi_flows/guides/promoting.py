"""Programs that hold single-precision tensors of their own, run in double precision."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vi_flows.guides.over_draws import CANNOT

__all__ = ["DefaultType", "Promoting", "Within", "double_precision", "precision"]

Within = Callable[[], AbstractContextManager[Any]]
"""Gives what a program runs in."""

DOUBLE = torch.float64

FLOATING = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

AS_THEY_ARE = {
    "__setitem__", "__delitem__", "__set__", "__len__", "__repr__", "backward", "data_ptr", "element_size",
    "register_hook", "retain_grad", "untyped_storage",
}  # fmt: skip
"""Methods that ask for the tensor itself, or change it."""

ARRANGING = {
    "__getitem__", "__iter__", "broadcast_to", "chunk", "contiguous", "detach", "diagonal", "expand", "expand_as",
    "flatten", "movedim", "narrow", "permute", "ravel", "reshape", "select", "split", "squeeze", "swapaxes", "swapdims",
    "t", "transpose", "unbind", "unflatten", "unsqueeze", "view", "view_as",
}  # fmt: skip
"""Methods that give the same numbers in another arrangement, often a view: they are turned when something is computed
from them, and data are not turned whole for a row."""


ENOUGH = 1e-4
"""Nats that are no matter, of a log density."""

IN_PLACE = re.compile(r"\w*[^_]_|__i(?!nvert)\w+__")
"""``add_``, ``__iadd__``."""


class DefaultType(AbstractContextManager[None]):
    """Makes ``dtype`` PyTorch's default type for a while."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = self._before = dtype

    def __enter__(self) -> None:
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *error: object) -> None:
        torch.set_default_dtype(self._before)


class Promoting(TorchFunctionMode):
    """Turns narrower floating-point tensors into ``dtype`` wherever PyTorch takes one, and makes new ones of it.

    A model that multiplies its ``float32`` data by ``float64`` values of its latents fails (``x @ beta``), or computes
    a part of its density in single precision without a word. In here it does neither: data, constants, networks'
    parameters and what the program makes itself take part in double precision. What changes a tensor in place or takes
    a view of it is left alone. A program that writes into its single-precision tensors in yet another way, through
    NumPy, would not see its own changes; ``copies`` finds it.

    Args:
        dtype: floating-point type to go to.
        copies: hand over copies of tensors of ``dtype``, too: results that change by that depend on sharing.
    """

    def __init__(self, dtype: torch.dtype, copies: bool = False) -> None:
        super().__init__()
        self.dtype, self.copies = dtype, copies
        self._turns = {each for each in FLOATING if each.itemsize < dtype.itemsize}
        self._default = DefaultType(dtype)

    def __enter__(self) -> Promoting:
        self._default.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._default.__exit__(*error)

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what was asked for; see the class."""
        kwargs = kwargs or {}
        if func not in _WAYS:
            _WAYS[func] = _way(func.__name__)
        way = _WAYS[func]
        if way == "attribute":
            found = func(*args, **kwargs)
            return self.dtype if isinstance(found, torch.dtype) and found in self._turns else found
        if way == "as it is" or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        if way == "float":
            return self._turned(args[0])
        return func(*[self._turned(each) for each in args], **{key: self._turned(each) for key, each in kwargs.items()})

    def _turned(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.dtype in self._turns:
                return value.to(self.dtype)
            return value.clone() if self.copies and value.dtype is self.dtype else value
        if isinstance(value, torch.dtype):
            return self.dtype if value in self._turns else value
        if type(value) in (list, tuple):
            return type(value)([self._turned(item) for item in value])
        return value


_WAYS: dict[Callable, str] = {}


def _way(name: str) -> str:
    """What becomes of a function's arguments."""
    if name == "__get__":
        return "attribute"
    if IN_PLACE.fullmatch(name) or name in AS_THEY_ARE or name in ARRANGING:
        return "as it is"
    return "float" if name == "float" else "turned"


def precision(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """:class:`Promoting` where ``dtype`` is wider than PyTorch's default type, which a program is written for."""
    return Promoting(dtype) if dtype.itemsize > torch.get_default_dtype().itemsize else nullcontext()


def double_precision(evaluate: Callable[[Within, torch.dtype], Tensor], dtype: torch.dtype) -> Within:
    """What a program runs in to be of double precision, found by trying; generators are left as they were.

    Args:
        evaluate: the program's log densities at a few values, run within what is given, with values of such a type.
        dtype: the program's own type.

    Returns:
        :class:`contextlib.nullcontext` where it is double already, or the program fails in double precision, has no
        finite density there, or shares its tensors' memory in ways that would be lost (:class:`Promoting`).
    """
    if dtype is DOUBLE:
        return nullcontext
    state = get_rng_state()
    try:
        with torch.no_grad(), poutine.block():
            return _found(evaluate, dtype)
    finally:
        set_rng_state(state)


def _found(evaluate: Callable[[Within, torch.dtype], Tensor], dtype: torch.dtype) -> Within:
    there = evaluate(nullcontext, dtype)
    promoting, mixed = partial(Promoting, DOUBLE), partial(DefaultType, DOUBLE)
    try:
        copied = evaluate(partial(Promoting, dtype, copies=True), dtype)
        exact = evaluate(promoting, DOUBLE)
    except CANNOT:
        return nullcontext  # no double precision on the device, or a program that asks for its types
    same = torch.allclose(copied.to(exact), there.to(exact), rtol=1e-5, atol=1e-5, equal_nan=True)
    if not same or not bool((exact.isfinite() | ~there.isfinite()).all()):
        return nullcontext
    try:
        # Where types mix by themselves, only what does not depend on the values is rounded; if that hardly counts,
        # programs run faster without the mode.
        enough = torch.allclose(evaluate(mixed, DOUBLE).to(exact), exact, rtol=0.0, atol=ENOUGH, equal_nan=True)
    except CANNOT:
        enough = False
    return mixed if enough else promoting
