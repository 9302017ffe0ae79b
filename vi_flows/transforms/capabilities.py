"""What bijections and families of them say of themselves, from what is inside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import nn

__all__ = ["Capabilities", "gains_of", "min_slope_of", "outermost"]


def outermost(module: nn.Module) -> Iterator[Capabilities]:
    """The bijections and conditional bijections below ``module`` that no other one of them contains."""
    for child in module.children():
        if isinstance(child, Capabilities):
            yield child
        else:
            yield from outermost(child)


def min_slope_of(parts: Iterable[Capabilities]) -> float:
    """The least :meth:`Bijection.min_slope` of several; infinity if there is none, NaN if one of them is."""
    return float(torch.tensor([math.inf, *(part.min_slope() for part in parts)], dtype=torch.float64).min())


class Capabilities(nn.Module):
    """What a (conditional) bijection says of itself; by default, what all the bijections inside it say together."""

    gains: Mapping[str, float] = MappingProxyType({})
    """By name of a parameter of its own, the factor between it and what it stands for, where that is not 1."""

    @property
    def has_inverse(self) -> bool:
        """Whether ``inverse_and_ladj`` works at any point; otherwise it raises ``NotImplementedError``."""
        return all(part.has_inverse for part in outermost(self))

    @property
    def continuous_log_det(self) -> bool:
        """Whether the log-determinant is continuous in the input; where it jumps, path gradients miss a term."""
        return all(part.continuous_log_det for part in outermost(self))

    def min_slope(self) -> float:
        """A lower bound of the slopes ``∂yᵢ/∂xᵢ`` of every residual layer inside, in the layer's own direction.

        It comes from the parameters that the layers work with. Infinity if there is no layer whose slopes a bound keeps
        above zero; NaN if parameters are. Of a conditional bijection: at the parameters that all contexts share.
        """
        return min_slope_of(outermost(self))


def gains_of(module: nn.Module) -> dict[int, float]:
    """The gains of all bijections within a module, by ``id`` of the parameter."""
    parts = [m for m in module.modules() if isinstance(m, Capabilities)]
    return {id(part.get_parameter(name)): gain for part in parts for name, gain in part.gains.items()}
