"""Elementwise splines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from vi_flows.flows.base import VectorFlow
from vi_flows.settings import Bounds, PositiveFloat
from vi_flows.transforms.vector.parametric import ConditionalParametric, Parametric
from vi_flows.transforms.vector.spline import SplineFamily

__all__ = ["ElementwiseSpline"]


@dataclass(frozen=True)
class ElementwiseSpline(VectorFlow):
    """A rational-quadratic spline for each entry (Durkan et al. 2019): bends marginals, leaves dependence alone."""

    name: ClassVar[str] = "elementwise_spline"

    num_bins: Annotated[int, Bounds(least=2)] = 8
    """Bins of each spline."""
    bound: PositiveFloat = 5.0
    """The splines act within ± this."""

    def make(self, input_dim: int) -> Parametric:
        """See :meth:`VectorFlow.build`."""
        return Parametric(SplineFamily(input_dim, self.num_bins, self.bound))

    def make_conditional(self, input_dim: int, context_dim: int) -> ConditionalParametric:
        """See :meth:`VectorFlow.build`."""
        return ConditionalParametric(SplineFamily(input_dim, self.num_bins, self.bound), context_dim)

    def label(self) -> str:
        """``elementwise RQ spline (8 bins)``."""
        return f"elementwise RQ spline ({self.num_bins} bins)"
