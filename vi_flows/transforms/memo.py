"""What a remembered evaluation depends on, so that it never answers for anything else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["EvaluationState", "Memo"]


class EvaluationState(NamedTuple):
    """Everything that a remembered value and its graph depend on: the tensors read, their versions, the modes."""

    modes: tuple[bool, ...]
    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...]

    @staticmethod
    def of(tensors: Iterable[Tensor], training: bool = False) -> EvaluationState | None:
        """The present state, or ``None`` where tensors can't be followed (inference mode, functorch, compilation)."""
        if torch.compiler.is_compiling():
            return None
        tensors = tuple(tensors)
        try:
            versions = tuple(t._version for t in tensors)
        except RuntimeError:  # inference tensors and functorch's wrappers keep no version
            return None
        modes = (torch.is_grad_enabled(), training, *(t.requires_grad for t in tensors))
        return EvaluationState(modes, tensors, versions)

    def same(self, other: EvaluationState | None) -> bool:
        """Whether nothing that matters changed in between."""
        return other is not None and (
            self.modes == other.modes
            and self.versions == other.versions
            and len(self.tensors) == len(other.tensors)
            and all(a is b for a, b in zip(self.tensors, other.tensors, strict=True))
        )


class Memo(NamedTuple):
    """One evaluated pair: `ladj` is log|det dy/dx|; `sampled` tells that it came from x to y."""

    x: Tensor
    y: Tensor
    ladj: Tensor
    sampled: bool
    state: EvaluationState
