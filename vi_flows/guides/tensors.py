"""The tensors inside of distributions, constraints and transforms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform

__all__ = ["map_tensors"]

_TENSOR_HOLDERS = (torch.distributions.Distribution, Transform, torch.distributions.constraints.Constraint)


def map_tensors(value: Any, fn: Callable[[Tensor], Tensor], seen: dict[int, Any]) -> Any:
    """A copy of a distribution (or constraint, transform, container) with ``fn`` applied to every tensor in it."""
    if isinstance(value, nn.Parameter) or value is None or isinstance(value, type | str | int | float):
        return value
    if isinstance(value, Tensor):
        return fn(value)
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(map_tensors(item, fn, seen) for item in value)
    if isinstance(value, dict):
        return {key: map_tensors(item, fn, seen) for key, item in value.items()}
    if isinstance(value, _TENSOR_HOLDERS) and not isinstance(value, nn.Module):
        new = copy.copy(value)
        seen[id(value)] = new
        for key, item in vars(value).items():
            new.__dict__[key] = map_tensors(item, fn, seen)
        return new
    return value
