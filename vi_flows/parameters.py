"""What a Pyro program has of modules, and their registration with Pyro, where somebody listens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import pyro
from pyro.nn import PyroModule
from pyro.params import param_with_module_name
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import am_i_wrapped
from pyro.poutine.trace_messenger import TraceHandler
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = [
    "OwnName",
    "check_stored",
    "left_as_found",
    "module_of",
    "quiet_unless_observed",
    "register_module",
    "unused_name",
]

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


class OwnName(PyroModule):
    """A module whose name in Pyro's parameter store is no other module's (:func:`unused_name`); a copy has its own.

    A part of another module is named by that (``AutoGuideList.0``), and where a part of another one has that name
    already, ``AutoGuideList.0_2``: Pyro gives all its lists of guides one name.
    """

    _kind: str

    def take_name(self) -> None:
        """From now on, the module has a name that no other one was given."""
        self._kind = type(self).__name__
        self._pyro_name = unused_name(self._kind)

    def _pyro_set_supermodule(self, name: str, context: Any) -> None:
        self._kind = name
        super()._pyro_set_supermodule(unused_name(name), context)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pyro_name = unused_name(self._kind)


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


_registered: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def register_module(kind: str, module: nn.Module) -> None:
    """``pyro.module(name, module)`` where somebody listens, under a name that no other module has.

    Args:
        kind: the name, and where it is taken ``kind_2``, ``kind_3``, …; a module keeps its name.
        module: whose parameters.

    Raises:
        ValueError: see :func:`check_stored`.
    """
    name = _registered.get(module)
    if name is None:
        name = _registered[module] = unused_name(kind)
    if len(pyro.get_param_store()):  # not where no SVI trains: the walk through the parts takes time
        _check_own({param_with_module_name(name, part): parameter for part, parameter in module.named_parameters()})
    if not _quiet.get():
        pyro.module(name, module)


def check_stored(name: str, module: PyroModule) -> None:
    """Refuse to go on where Pyro's parameter store has other tensors than the module, as after ``store.load(…)``.

    Pyro would hand the store's tensors to the optimizer and go on computing with the module's own, which then never
    change. Copying the values is no way out: the store lacks what is not a parameter, as centres and running means.

    Args:
        name: of the module in the store.
        module: whose parameters.

    Raises:
        ValueError: the store has another tensor under the name of a parameter, as it also has where the parameter's
            memory is not contiguous.
    """
    if len(pyro.get_param_store()):
        _check_own(dict(_names_and_parameters(name, module)))


def _names_and_parameters(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """As ``PyroModule`` names them: parts that are modules of PyTorch are registered whole."""
    if not isinstance(module, PyroModule):
        yield from ((param_with_module_name(name, part), p) for part, p in module.named_parameters())
        return
    yield from ((f"{name}.{part}", p) for part, p in module.named_parameters(recurse=False))
    for part, child in module.named_children():
        yield from _names_and_parameters(f"{name}.{part}", child)


def _check_own(own: dict[str, nn.Parameter]) -> None:
    stored: dict[str, Tensor] = dict(pyro.get_param_store().named_parameters())
    for name, parameter in own.items():
        swapped = not isinstance(parameter, nn.Parameter)  # by torch.func.functional_call, for the moment
        if not swapped and stored.get(name, parameter) is not parameter:
            if not parameter.is_contiguous():
                raise ValueError(
                    f"the memory of parameter {name!r} is not contiguous, and Pyro's parameter store trains a "
                    "contiguous copy in its place: pyro.clear_param_store(), and set its .data to .data.contiguous()"
                )
            raise ValueError(
                f"Pyro's parameter store has another tensor than the module under {name!r}, so that neither would be "
                "trained: pyro.clear_param_store(), and restore a module by its load_state_dict instead of a stored "
                "file, which lacks what is not a parameter"
            )


def module_of(program: Callable) -> nn.Module:
    """The module that a program is or is a method of, within handlers and partial applications; else an empty one.

    Args:
        program: a model or a guide.
    """
    found: object = program
    while isinstance(found, partial | MethodType | TraceHandler):
        if isinstance(found, MethodType):
            found = found.__self__
        elif isinstance(found, TraceHandler):
            found = found.fn
        else:  # that of a handler is ``partial(call, handler, program)``
            handled = len(found.args) > 1 and isinstance(found.args[0], Messenger)
            found = found.args[1] if handled else found.func
    return found if isinstance(found, nn.Module) else nn.Module()


@contextmanager
def left_as_found(program: Callable) -> Iterator[None]:
    """Afterwards, a program's modules have the attributes of before in place of tensors that were set on them within.

    A model may keep what it computes (``self.last = mean``). In a pass for many draws that is a tensor of
    :func:`torch.func.vmap`, which nobody can use, copy or save once the pass is over.

    Args:
        program: a model, as of :func:`module_of`.
    """
    kept = [(vars(module), dict(vars(module))) for module in module_of(program).modules()]
    try:
        yield
    finally:
        for attributes, before in kept:
            for key, value in list(attributes.items()):
                if value is before.get(key, kept) or not any(isinstance(x, Tensor) for x in tree_leaves(value)):
                    continue
                if key in before:
                    attributes[key] = before[key]
                else:
                    del attributes[key]
