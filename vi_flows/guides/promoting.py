"""Programs that hold single-precision tensors of their own, run in double precision."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Promoting", "precision"]

AS_THEY_ARE = {
    "__hash__", "__setitem__", "__delitem__", "__len__", "__repr__", "backward", "data_ptr", "element_size",
    "register_hook", "retain_grad", "untyped_storage",
}  # fmt: skip
"""Methods that ask for the tensor itself, or change it."""


IN_PLACE = re.compile(r"\w*[^_]_|__i(?!nvert)\w+__")
"""``add_``, ``__iadd__``."""


class Promoting(TorchFunctionMode):
    """Turns narrower floating-point tensors into ``dtype`` wherever PyTorch takes one, and makes new ones of it.

    A model that multiplies its ``float32`` data by ``float64`` values of its latents fails (``x @ beta``), or computes
    a part of its density in single precision without a word. In here it does neither: data, constants, networks'
    parameters and what the program makes itself take part in double precision. What changes a tensor in place is left
    alone. A program that writes into its single-precision tensors through views would not see its own changes;
    ``copies`` finds it.

    Args:
        dtype: floating-point type to go to.
        copies: hand over copies of tensors of ``dtype``, too: a program whose results change by that depends on views.
    """

    def __init__(self, dtype: torch.dtype, copies: bool = False) -> None:
        super().__init__()
        self.dtype, self.copies = dtype, copies
        self._before = torch.get_default_dtype()

    def __enter__(self) -> Promoting:
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_default_dtype(self._before)

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what was asked for; see the class."""
        kwargs = kwargs or {}
        name = func.__name__
        if name == "__get__":  # of an attribute
            found = func(*args, **kwargs)
            return self._turned(found) if isinstance(found, torch.dtype) else found
        if name == "float":
            return self._turned(args[0])
        if IN_PLACE.fullmatch(name) or name in AS_THEY_ARE or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        return func(*(self._turned(each) for each in args), **{key: self._turned(each) for key, each in kwargs.items()})

    def _turned(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if not value.is_floating_point():
                return value
            return value.clone() if self.copies and value.dtype is self.dtype else self._wider(value)
        if isinstance(value, torch.dtype):
            return self.dtype if value.is_floating_point and value.itemsize < self.dtype.itemsize else value
        if type(value) in (list, tuple):
            return type(value)(self._turned(item) for item in value)
        return value

    def _wider(self, value: Tensor) -> Tensor:
        return value.to(self.dtype) if value.dtype.itemsize < self.dtype.itemsize else value


def precision(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """:class:`Promoting` where ``dtype`` is wider than PyTorch's default type, which a program is written for."""
    return Promoting(dtype) if dtype.itemsize > torch.get_default_dtype().itemsize else nullcontext()
