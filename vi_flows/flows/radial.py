"""Radial flows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vi_flows.flows.base import VectorFlow
from vi_flows.settings import Positive
from vi_flows.transforms.vector.parametric import ConditionalParametric, Parametric
from vi_flows.transforms.vector.radial import RadialFamily

__all__ = ["Radial"]


@dataclass(frozen=True)
class Radial(VectorFlow):
    """Radial flow (Rezende & Mohamed 2015): layers that stretch around a center."""

    name: ClassVar[str] = "radial"

    num_layers: Positive = 8
    """Layers."""

    def make(self, input_dim: int) -> Parametric:
        """See :meth:`VectorFlow.build`."""
        return Parametric(RadialFamily(input_dim, self.num_layers))

    def make_conditional(self, input_dim: int, context_dim: int) -> ConditionalParametric:
        """See :meth:`VectorFlow.build`."""
        return ConditionalParametric(RadialFamily(input_dim, self.num_layers), context_dim)

    def label(self) -> str:
        """``radial (16)``."""
        return f"radial ({self.num_layers})"
