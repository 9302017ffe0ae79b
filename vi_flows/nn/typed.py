"""PyTorch's containers with their elements' type, for type checkers; when running they are PyTorch's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

__all__ = ["ModuleDictOf", "ModuleListOf"]

if TYPE_CHECKING:
    from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
    from typing import Self, overload

    M = TypeVar("M", bound=nn.Module)

    class ModuleListOf(nn.ModuleList, Generic[M]):
        """``nn.ModuleList`` of modules of one type."""

        def __init__(self, modules: Iterable[M] | None = None) -> None: ...

        @overload
        def __getitem__(self, idx: slice) -> Self: ...
        @overload
        def __getitem__(self, idx: int) -> M: ...
        def __getitem__(self, idx: int | slice) -> M | Self: ...
        def __iter__(self) -> Iterator[M]: ...

    class ModuleDictOf(nn.ModuleDict, Generic[M]):
        """``nn.ModuleDict`` of modules of one type."""

        def __init__(self, modules: Mapping[str, M] | None = None) -> None: ...

        def __getitem__(self, key: str) -> M: ...
        def items(self) -> ItemsView[str, M]:
            """Names and modules."""
            ...

        def values(self) -> ValuesView[M]:
            """Modules."""
            ...

else:
    ModuleListOf, ModuleDictOf = nn.ModuleList, nn.ModuleDict
