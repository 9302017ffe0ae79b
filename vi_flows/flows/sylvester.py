"""Sylvester flows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vi_flows.flows.base import VectorFlow
from vi_flows.settings import Positive
from vi_flows.transforms.vector.parametric import ConditionalParametric, Parametric
from vi_flows.transforms.vector.sylvester import SylvesterFamily

__all__ = ["Sylvester"]


@dataclass(frozen=True)
class Sylvester(VectorFlow):
    """Sylvester flow (van den Berg et al. 2018): planar layers of higher rank.

    As many reflections as the rank make it the paper's orthogonal form (O-SNF), which reaches every set of orthonormal
    columns; a rank of the whole dimension with few reflections is the Householder form (H-SNF).
    """

    name: ClassVar[str] = "sylvester"

    num_layers: Positive = 4
    """Layers; the paper has 4, 8 and 16."""
    rank: Positive = 16
    """Columns M of the orthogonal matrix, at most the dimension."""
    num_reflections: Positive = 16
    """Householder reflections that the orthogonal matrix is made of."""

    def make(self, input_dim: int) -> Parametric:
        """See :meth:`VectorFlow.build`."""
        return Parametric(self._family(input_dim))

    def make_conditional(self, input_dim: int, context_dim: int) -> ConditionalParametric:
        """See :meth:`VectorFlow.build`."""
        return ConditionalParametric(self._family(input_dim), context_dim)

    def label(self) -> str:
        """``Sylvester (4, M = 16, H = 16)``."""
        return f"Sylvester ({self.num_layers}, M = {self.rank}, H = {self.num_reflections})"

    def _family(self, input_dim: int) -> SylvesterFamily:
        return SylvesterFamily(input_dim, self.num_layers, self.rank, self.num_reflections)
