"""What a Pyro program has of modules, and their registration with Pyro, where somebody listens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import pyro
from pyro.poutine.runtime import am_i_wrapped
from torch import nn

__all__ = ["module_of", "quiet_unless_observed", "register_module", "unused_name"]

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


_named: Counter[str] = Counter()


def unused_name(kind: str) -> str:
    """``kind``, ``kind_2``, ``kind_3``, …: a name in Pyro's parameter store that no other module was given.

    Under one name the store holds one tensor: of two guides of the same name, the second would hand its parameters to
    no optimizer.

    Args:
        kind: of a module.
    """
    _named[kind] += 1
    return kind if _named[kind] == 1 else f"{kind}_{_named[kind]}"


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
