"""Planar flows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vi_flows.flows.base import VectorFlow
from vi_flows.settings import Positive
from vi_flows.transforms.vector.parametric import ConditionalParametric, Parametric
from vi_flows.transforms.vector.planar import PlanarFamily

__all__ = ["Planar"]


@dataclass(frozen=True)
class Planar(VectorFlow):
    """Planar flow (Rezende & Mohamed 2015): layers that stretch along one direction."""

    name: ClassVar[str] = "planar"

    num_layers: Positive = 8
    """Layers; the paper has 2 to 80."""

    def make(self, input_dim: int) -> Parametric:
        """See :meth:`VectorFlow.build`."""
        return Parametric(PlanarFamily(input_dim, self.num_layers))

    def make_conditional(self, input_dim: int, context_dim: int) -> ConditionalParametric:
        """See :meth:`VectorFlow.build`."""
        return ConditionalParametric(PlanarFamily(input_dim, self.num_layers), context_dim)

    def label(self) -> str:
        """``planar (16)``."""
        return f"planar ({self.num_layers})"
