"""Coupling flows of vectors: NICE, Real NVP, and neural spline flows."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from vi_flows.flows.base import VectorFlow
from vi_flows.nn.mlp import ACTIVATIONS, ZeroMLP
from vi_flows.settings import Bounds, OneOf, Positive, PositiveFloat
from vi_flows.transforms import (
    AdditiveMap,
    AffineMap,
    Chain,
    ConditionalChain,
    ConditionalCoupling,
    Coupling,
    SplineMap,
    VectorGroups,
)
from vi_flows.transforms.coupling_maps import ElementwiseMap

__all__ = ["NICE", "NSF", "RealNVP"]


@dataclass(frozen=True)
class _CouplingFlow(VectorFlow):
    """Each layer changes one half of the entries given the other, in turn; both directions are one pass a layer."""

    num_layers: Positive = 4
    """Couplings, each with a network."""
    hidden_dims: tuple[Positive, ...] = (128,)
    """Widths of each network."""
    activation: Annotated[str, OneOf(tuple(ACTIVATIONS))] = "elu"
    """Of the networks."""

    @abstractmethod
    def change(self) -> ElementwiseMap:
        """The map of one entry."""

    def make(self, input_dim: int) -> Chain:
        """See :meth:`VectorFlow.build`."""
        return Chain([Coupling(part, [self._network(part, 0)], self.change()) for part in self._partitions(input_dim)])

    def make_conditional(self, input_dim: int, context_dim: int) -> ConditionalChain:
        """See :meth:`VectorFlow.build`."""
        if context_dim < 1:
            raise ValueError(f"context_dim must be at least 1, got {context_dim}")
        return ConditionalChain(
            [
                ConditionalCoupling(part, [self._network(part, context_dim)], self.change(), context_dim)
                for part in self._partitions(input_dim)
            ]
        )

    def _partitions(self, input_dim: int) -> list[VectorGroups]:
        return [VectorGroups(input_dim, swap=index % 2 == 1) for index in range(self.num_layers)]

    def _network(self, partition: VectorGroups, context_dim: int) -> ZeroMLP:
        known, changed = partition.sizes
        return ZeroMLP(known + context_dim, changed * self.change().num_maps, self.hidden_dims, self.activation)


@dataclass(frozen=True)
class NICE(_CouplingFlow):
    """NICE (Dinh et al. 2014): additive couplings, which keep volumes."""

    name: ClassVar[str] = "nice"

    def change(self) -> AdditiveMap:
        """``y = x + t``."""
        return AdditiveMap()

    def label(self) -> str:
        """``NICE (4)``."""
        return f"NICE ({self.num_layers})"


@dataclass(frozen=True)
class RealNVP(_CouplingFlow):
    """Real NVP (Dinh et al. 2017): affine couplings."""

    name: ClassVar[str] = "real_nvp"

    scale: Literal["tanh", "exp", "sigmoid"] = "tanh"
    """Of the affine map: exp(2 tanh(g/2)), exp(g), or a gate, 0.05 + 0.95 sigmoid(g + 2)."""

    def change(self) -> AffineMap:
        """``y = (x + t) s``."""
        return AffineMap(self.scale)

    def label(self) -> str:
        """``Real NVP (4)``."""
        return f"Real NVP ({self.num_layers})"


@dataclass(frozen=True)
class NSF(_CouplingFlow):
    """Neural spline flow (Durkan et al. 2019): couplings by rational-quadratic splines."""

    name: ClassVar[str] = "nsf"

    num_bins: Annotated[int, Bounds(least=2)] = 8
    """Bins of each spline."""
    bound: PositiveFloat = 5.0
    """The splines act within ± this."""

    def change(self) -> SplineMap:
        """The spline of one entry."""
        return SplineMap(self.num_bins, self.bound)

    def label(self) -> str:
        """``NSF (4)``."""
        return f"NSF ({self.num_layers})"
