"""Checked settings: the bounds of a field stand in its type, and one function checks a whole dataclass by them."""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import torch
from torch import Tensor

from vi_flows.recording import may_be_looked_at

__all__ = [
    "LATER", "Bounds", "NonNegative", "NonNegativeFloat", "OneOf", "Positive", "PositiveFloat", "Seed", "SettingsError",
    "Threads", "check_at_least", "check_context", "check_counts", "check_image_shape", "check_known", "check_settings",
    "check_tensors", "check_types", "joint_batch", "later_settings", "settings_from",
]  # fmt: skip

S = TypeVar("S")


class SettingsError(ValueError):
    """A setting that can't be, alone or beside another one."""


@dataclass(frozen=True)
class Bounds:
    """Range of a number; NaN and infinity lie in none.

    Args:
        least: smallest value.
        below: the value must be smaller than this.
        above: the value must be larger than this.
        most: largest value.
    """

    least: float = -math.inf
    below: float = math.inf
    above: float = -math.inf
    most: float = math.inf

    def problem(self, value: float) -> str | None:
        """What ``value`` should be, or ``None`` where it lies inside."""
        if value > self.most:
            return f"must be at most {self.most}"
        if self.least <= value < self.below and value > self.above:
            return None
        if self.least > -math.inf and self.below < math.inf:
            return f"must lie in [{self.least:g}, {self.below:g})"
        if self.least > -math.inf:
            return f"must be at least {self.least:g}" + (" and finite" if isinstance(value, float) else "")
        if self.below < math.inf:
            return f"must lie between {self.above:g} and {self.below:g}"
        return "must be positive and finite" if self.above == 0 else "must be finite"


@dataclass(frozen=True)
class OneOf:
    """Names that a string may have, where they come from a registry."""

    names: tuple[str, ...]

    def problem(self, value: str) -> str | None:
        """The names there are, or ``None`` where ``value`` is among them."""
        return None if value in self.names else f"must be one of {', '.join(self.names)}"


SMALLEST, LARGEST = 1e-37, 3e38
"""Of float32, in which PyTorch computes: beyond, a number becomes zero, or an error of another's words."""

Positive = Annotated[int, Bounds(least=1)]
NonNegative = Annotated[int, Bounds(least=0)]
Seed = Annotated[int, Bounds(least=0, most=2**32 - 1)]
"""Of random numbers; those of epochs and chunks are made from it, within 64 bits."""
Threads = Annotated[int, Bounds(least=1, most=1024)]
"""Of a CPU; at a hundred thousand PyTorch's pool kills the process."""
PositiveFloat = Annotated[float, Bounds(above=0)]
NonNegativeFloat = Annotated[float, Bounds(least=0)]


LATER: Mapping[str, bool] = types.MappingProxyType({"later": True})
"""``field(metadata=LATER)``: a setting that there was not when records were made. What is written and hashed leaves it
out at its default, so that the keys of earlier runs stay what they were."""


def later_settings(kind: Any) -> list[str]:
    """The names of a dataclass' settings that are marked :data:`LATER`; none for what is no dataclass."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return []
    return [item.name for item in dataclasses.fields(kind) if item.metadata.get("later")]


def check_settings(settings: Any) -> None:
    """Check every field of a dataclass against its annotation.

    Understood are ``bool``, ``int``, ``float`` (finite, of float32's range; an ``int`` will do), ``str``, ``Path``,
    ``Literal``, tuples, unions, dataclasses, and ``Annotated`` with :class:`Bounds` or :class:`OneOf`. Numbers of
    NumPy become Python's, which records and hashes take.

    Raises:
        SettingsError: a field is of another type, out of its bounds, or an unknown name.
    """
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for item in dataclasses.fields(settings):
        name, given = item.name, getattr(settings, item.name)
        value = _plain(given)
        if value is not given:
            object.__setattr__(settings, name, value)  # of a frozen class too, while it is made
        wrong = _problem(value, hints[name])
        if wrong is not None:
            raise SettingsError(f"{name} {wrong}, got {value!r}")


def check_at_least(least: float, **values: float) -> None:
    """Refuse the first of the arguments that is smaller than ``least``, NaN or infinite, by its name.

    Raises:
        ValueError: there is one.
        TypeError: one is no number.
    """
    for name, value in values.items():
        if not isinstance(value, numbers.Real):
            check_types((int, float), "", **{name: value})
        if not least <= value < math.inf:
            raise ValueError(f"{name} must be at least {least:g} and finite, got {value!r}")


def check_counts(least: int, **values: int) -> None:
    """Refuse the first of the arguments that is no whole number of at least ``least``, by its name.

    Raises:
        ValueError: there is one.
    """
    for name, value in values.items():
        try:
            small = operator.index(value) < least
        except TypeError:
            raise ValueError(f"{name} must be a whole number, got {value!r}") from None
        if small:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_image_shape(image_shape: Sequence[int]) -> None:
    """Refuse what is no ``(C, H, W)``: three whole numbers from 1 upwards.

    Raises:
        ValueError: it is something else.
    """
    try:
        sizes = [operator.index(size) for size in image_shape]
    except TypeError:
        sizes = []
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"image_shape must be (C, H, W), three whole numbers from 1 upwards, got {image_shape!r}")


def check_types(kinds: type | tuple[type, ...], way: str = "", **values: object) -> None:
    """Refuse the first of the arguments that is of none of these types, by its name.

    Args:
        kinds: one is enough.
        way: what to do about it, the end of the sentence.
        values: arguments by name.

    Raises:
        TypeError: there is one.
    """
    for name, value in values.items():
        if isinstance(value, type) or not isinstance(value, kinds):
            wanted = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
            got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
            raise TypeError(f"{name} must be of type {wanted}, got {got}{way}")


def check_tensors(**values: object) -> None:
    """Refuse the first of the arguments that is no tensor, by its name.

    Raises:
        TypeError: there is one.
    """
    check_types(Tensor, "; torch.as_tensor makes one", **values)


def check_context(context: Tensor, context_dim: int) -> None:
    """Refuse a context that a density can't be conditioned on.

    Args:
        context: ``(*batch_shape, context_dim)``.
        context_dim: its last size.

    Raises:
        TypeError: it is no tensor.
        ValueError: the last size is another one, or an entry is NaN or infinite.
    """
    check_tensors(context=context)
    if context.ndim < 1 or context.shape[-1] != context_dim:
        way = " (one-hot encode class labels)" if context_dim else ""
        raise ValueError(f"the context must have shape (…, {context_dim}), got {tuple(context.shape)}{way}")
    if may_be_looked_at(context) and not (finite := context.isfinite()).all():
        bad = int((~finite).any(-1).sum())
        raise ValueError(f"the context has NaN or infinite entries in {bad} of its {finite[..., 0].numel()} rows")


def joint_batch(name: str, batch: torch.Size, other: torch.Size, of: str = "one row is for each context") -> torch.Size:
    """The batch shape of two that broadcast.

    Args:
        name: of the argument that ``batch`` is of.
        batch: its leading dimensions.
        other: what it meets, a context's or another argument's.
        of: what belongs to what.

    Raises:
        ValueError: they don't broadcast.
    """
    try:
        return torch.broadcast_shapes(batch, other)
    except RuntimeError:
        raise ValueError(f"{name} has a batch of {tuple(batch)}, which doesn't go with {tuple(other)}: {of}") from None


def check_known(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse names that are not among those known.

    Args:
        given: names of settings.
        known: those that there are.
        what: has them, the subject of the sentence.

    Raises:
        ValueError: there is a foreign one.
    """
    known = list(known)
    foreign = sorted(set(given) - set(known))
    if foreign:
        raise ValueError(f"{what} has no {', '.join(foreign)}; it takes {', '.join(known)}")


def settings_from(kind: type[S], given: Mapping[str, Any], what: str) -> S:
    """A dataclass of settings from those that are given, with its defaults for the others.

    Args:
        kind: the dataclass, which checks itself.
        given: settings by name.
        what: has them, for the refusal.

    Raises:
        ValueError: one is unknown to the class, or out of its bounds.
    """
    check_known(given, [item.name for item in dataclasses.fields(typing.cast(Any, kind))], what)
    return kind(**given)


_SCALARS: dict[type, tuple[type | tuple[type, ...], str]] = {
    int: (numbers.Integral, "must be a whole number"),
    float: (numbers.Real, "must be a number"),
    str: (str, "must be a string"),
    Path: (Path, "must be a path"),
}


def _bare(hint: Any) -> Any:
    """A hint without its annotations."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _plain(value: Any) -> Any:
    """``value`` itself, or where it has numbers that are not Python's, those of the same value."""
    if isinstance(value, tuple | list):
        parts = [_plain(part) for part in value]
        return type(value)(parts) if any(a is not b for a, b in zip(parts, value, strict=True)) else value
    if type(value) in (bool, int, float) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _problem(value: Any, hint: Any) -> str | None:
    """What is wrong with ``value``, or ``None``."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        checks = [extra for extra in inner[1:] if isinstance(extra, Bounds | OneOf)]
        found = _problem(value, inner[0])
        # The type first: a bound means nothing for a string.
        return found if found or not checks else next(filter(None, (check.problem(value) for check in checks)), None)
    if origin is Literal:
        return None if value in inner else f"must be one of {', '.join(map(str, inner))}"
    if origin in (Union, types.UnionType):
        if value is None and type(None) in map(_bare, inner):
            return None
        found_all = []
        for option in inner:
            if _bare(option) is not type(None):
                if (found := _problem(value, option)) is None:
                    return None
                found_all.append(found)
        return " or ".join([found_all[0], *(str(found).removeprefix("must be ") for found in found_all[1:])])
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return "must be a list of values"
        if typing.get_origin(_bare(inner[0])) is tuple and not all(isinstance(part, tuple | list) for part in value):
            return "must be a list of lists of values, as ((4, 2),)"
        hints = [inner[0]] * len(value) if len(inner) == 2 and inner[1] is Ellipsis else list(inner)
        if len(hints) != len(value):
            return f"must have {len(hints)} values"
        return next(filter(None, map(_problem, value, hints)), None)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return None if isinstance(value, hint) else f"must be a {hint.__name__}"
    if hint is bool:
        return None if isinstance(value, bool) else "must be true or false"
    if hint not in _SCALARS:
        return None
    kind, message = _SCALARS[hint]
    if not isinstance(value, kind) or isinstance(value, bool):
        return message
    if hint is int and abs(typing.cast(int, value)) >= 2**63:
        return "must have at most 64 bits"
    if hint is float and not math.isfinite(typing.cast(float, value)):
        return "must be finite"
    if hint is float and value != 0 and not SMALLEST <= abs(typing.cast(float, value)) <= LARGEST:
        return f"must be within the range of float32 ({SMALLEST:g} to {LARGEST:g})"
    return None
