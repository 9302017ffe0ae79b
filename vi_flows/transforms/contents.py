"""What is inside a transform that registers nothing: the modules and tensors that it reads, wherever it keeps them."""

from __future__ import annotations

import functools
import numbers
import types
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints

__all__ = ["Contents", "Place"]

# They hold no tensor that a transform reads. A transform's reference to its own inverse is weak.
_PLAIN = (
    type(None), numbers.Number, str, bytes, type, torch.dtype, torch.device, torch.Size, constraints.Constraint,
    weakref.ReferenceType, types.BuiltinFunctionType,
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A tensor and where it stands.

    Attributes:
        value: the tensor that was found there.
        owner: the transform or distribution that has it as an attribute; ``None`` if it is in something else.
        name: of the attribute.
    """

    value: Tensor
    owner: Any = None
    name: str = ""

    @property
    def present(self) -> Tensor:
        """The tensor that stands there now."""
        return self.value if self.owner is None else getattr(self.owner, self.name)

    def put(self, other: Tensor) -> None:
        """Set the owner's attribute to another tensor."""
        if self.owner is not None:
            setattr(self.owner, self.name, other)


@dataclass
class Contents:
    """What a walk through a transform finds: its attributes, those of transforms inside, bound arguments, closures.

    Attributes:
        owners: the transforms and distributions.
        modules: the outermost modules.
        tensors: those that no module has registered.
        enclosed: whether a function's closure holds some of it, which no copy of the transform would own.
        opaque: whether there is something else, which may hold anything.
    """

    owners: list[Any] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    tensors: list[Place] = field(default_factory=list)
    enclosed: bool = False
    opaque: bool = False

    @classmethod
    def of(cls, transform: Transform) -> Contents:
        """The contents of a transform now."""
        walk = _Walk()
        walk.visit(transform, None, "", inside_module=False)
        return walk.found

    def parameters(self) -> Iterator[Place]:
        """The parameters among the tensors, each once."""
        return (place for place in self.tensors if isinstance(place.value, nn.Parameter))


_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


class _Walk:
    def __init__(self) -> None:
        self.found = Contents()
        self.seen: set[int] = set()

    def visit(self, value: Any, owner: Any, name: str, inside_module: bool) -> None:
        if isinstance(value, _PLAIN):
            return
        if isinstance(value, Tensor):
            self.found.tensors.append(Place(value, owner, name))
            return
        if isinstance(value, types.MethodType):
            self.visit(value.__self__, None, "", inside_module)
            return
        if id(value) in self.seen:
            return
        self.seen.add(id(value))
        if isinstance(value, nn.Module) and not inside_module:
            self.found.modules.append(value)
        if isinstance(value, Transform | Distribution):
            self.found.owners.append(value)
            self.visit_attributes(value, inside_module)
        elif isinstance(value, nn.Module):
            return  # a network: its parameters and buffers are registered
        elif isinstance(value, dict):
            self.visit_all(value.values(), inside_module)
        elif isinstance(value, list | tuple | set | frozenset):
            self.visit_all(value, inside_module)
        elif isinstance(value, functools.partial):
            self.visit_all((value.func, *value.args, *value.keywords.values()), inside_module)
        elif isinstance(value, types.FunctionType):
            held = (*(cell.cell_contents for cell in value.__closure__ or ()), *(value.__defaults__ or ()))
            self.found.enclosed |= any(not isinstance(part, _PLAIN) for part in held)
            self.visit_all(held, inside_module)
        else:
            self.found.opaque = True

    def visit_all(self, values: Any, inside_module: bool) -> None:
        for value in values:
            self.visit(value, None, "", inside_module)

    def visit_attributes(self, owner: Any, inside_module: bool) -> None:
        attributes = vars(owner)
        if isinstance(owner, nn.Module):  # what it has registered needs no one else; but transforms have attributes
            self.visit_all(owner.children(), inside_module=True)
            attributes = {name: value for name, value in attributes.items() if name not in _MODULE_ATTRIBUTES}
        for name, value in attributes.items():
            if not name.startswith("_cache"):
                self.visit(value, owner, name, inside_module)
