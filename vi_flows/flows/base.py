"""What a flow is: a small typed description that builds a composition of bijections."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeVar, overload

from vi_flows.settings import SettingsError, check_counts, check_settings
from vi_flows.transforms import Bijection, Chain, ConditionalBijection, ConditionalChain, Revert

__all__ = ["VectorFlow", "chain", "conditional_chain"]

Layer = TypeVar("Layer", bound=Bijection | ConditionalBijection)


@dataclass(frozen=True)
class VectorFlow(ABC):
    """A flow of vectors. A family is one subclass in a file of its own, and one entry of the registry.

    The first field says how long the flow is. Flows start at the identity (up to Reverts) or near it.

    Attributes:
        name: in the registry, on the command line and in records.
        for_context: settings that only flows with a context have a use for.

    Raises:
        ValueError: a setting is of another type, or out of its bounds.
    """

    name: ClassVar[str]
    for_context: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_settings(self)

    @overload
    def build(self, input_dim: int, context_dim: None = None) -> Bijection: ...
    @overload
    def build(self, input_dim: int, context_dim: int) -> ConditionalBijection: ...

    def build(self, input_dim: int, context_dim: int | None = None) -> Bijection | ConditionalBijection:
        """The flow's bijection, from base to sample.

        Args:
            input_dim: ``d``.
            context_dim: length of the context that the parameters come from (amortised); ``None``: they are the flow's
                own. ``condition(context)`` then gives the bijection.

        Raises:
            ValueError: a size is less than 1, or a setting is for flows with a context and there is none.
        """
        check_counts(1, input_dim=input_dim)
        if context_dim is not None:
            check_counts(1, context_dim=context_dim)
            return self.make_conditional(input_dim, context_dim)
        self.check_without_context()
        return self.make(input_dim)

    def __call__(self, input_dim: int) -> Bijection:
        """:meth:`build` without a context, so that a flow is a factory: ``AutoFlow(model, IAF(num_layers=2))``."""
        return self.build(input_dim)

    @abstractmethod
    def make(self, input_dim: int) -> Bijection:
        """See :meth:`build`."""

    @abstractmethod
    def make_conditional(self, input_dim: int, context_dim: int) -> ConditionalBijection:
        """See :meth:`build`."""

    @abstractmethod
    def label(self) -> str:
        """For tables: ``ConvFlow (K = 8)``."""

    def check_without_context(self) -> None:
        """Refuse settings that a flow without a context would leave unused.

        Raises:
            ValueError: there is one.
        """
        changed = [name for name, _ in self.changed() if name in self.for_context]
        if changed:
            raise SettingsError(f"{changed[0]} is for flows with a context (amortised ones); leave it at its default")

    @property
    def key(self) -> str:
        """What distinguishes it within its family: the length K, and what is not at its default: ``k8-tanh``."""
        first = dataclasses.fields(self)[0]
        parts = [f"k{getattr(self, first.name)}"]
        for name, value in self.changed():
            if name != first.name:
                words = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
                parts.append(words if isinstance(value, str) else f"{name}{words}")
        return "-".join(parts)

    def changed(self) -> Iterator[tuple[str, object]]:
        """Names and values of the settings that are not at their defaults."""
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value != item.default:
                yield item.name, value


def chain(make: Callable[[], Bijection], count: int) -> Chain:
    """``count`` layers with the order of the entries flipped between them."""
    return Chain(_between(make, count))


def conditional_chain(make: Callable[[], ConditionalBijection], count: int) -> ConditionalChain:
    """As :func:`chain`, for layers with a context."""
    return ConditionalChain(_between(make, count))


def _between(make: Callable[[], Layer], count: int) -> list[Layer | Revert]:
    parts: list[Layer | Revert] = []
    for index in range(count):
        parts += [Revert(), make()] if index else [make()]
    return parts
