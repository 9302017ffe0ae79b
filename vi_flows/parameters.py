"""What a Pyro program has of modules, and their registration with Pyro, where somebody listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import pyro
from pyro.poutine.runtime import am_i_wrapped
from torch import nn

__all__ = ["module_of", "quiet_unless_observed", "register_module"]

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet_unless_observed() -> Iterator[None]:
    """Within, :func:`register_module` does nothing, unless a handler outside could see parameters.

    ``SVI`` collects a program's parameters by a handler around the objective. Where there is none (a PyTorch optimizer
    has the parameters already), telling Pyro of every parameter at every step would cost several per cent of it.
    """
    token = _quiet.set(not am_i_wrapped())
    try:
        yield
    finally:
        _quiet.reset(token)


def register_module(name: str, module: nn.Module) -> None:
    """``pyro.module(name, module)`` where somebody listens.

    Args:
        name: prefix of the parameters' names in the parameter store.
        module: whose parameters.
    """
    if not _quiet.get():
        pyro.module(name, module)


def module_of(program: Callable) -> nn.Module:
    """The program itself where it is a module; for a function, which holds no parameters, an empty one.

    Args:
        program: a model or a guide.
    """
    return program if isinstance(program, nn.Module) else nn.Module()
