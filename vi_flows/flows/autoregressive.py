"""Autoregressive flows: IAF, MAF, and a rational-quadratic spline in place of their affine map."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from vi_flows.flows.base import VectorFlow, chain, conditional_chain
from vi_flows.nn.autoregressive_mlp import AutoregressiveMLP
from vi_flows.nn.mlp import ACTIVATIONS
from vi_flows.settings import Bounds, OneOf, Positive, PositiveFloat
from vi_flows.transforms import (
    AffineMap,
    Bijection,
    Chain,
    ConditionalBijection,
    ConditionalChain,
    ConditionalInverse,
    Inverse,
    SplineMap,
)
from vi_flows.transforms.coupling_maps import ElementwiseMap
from vi_flows.transforms.vector.autoregressive import Autoregressive, ConditionalAutoregressive

__all__ = ["IAF", "MAF", "Spline"]

ActivationName = Annotated[str, OneOf(tuple(ACTIVATIONS))]


@dataclass(frozen=True)
class _AutoregressiveFlow(VectorFlow):
    """Layers with masked networks; the order of the entries is flipped between them."""

    num_layers: Positive = 4
    """Layers, each with a masked network."""
    hidden_dims: tuple[Positive, ...] = (128,)
    """Widths of each masked network."""
    activation: ActivationName = "elu"
    """Of the masked networks."""

    @abstractmethod
    def change(self) -> ElementwiseMap:
        """The map of one entry."""

    def make(self, input_dim: int) -> Bijection:
        """See :meth:`VectorFlow.build`."""
        return self._chain(input_dim)

    def make_conditional(self, input_dim: int, context_dim: int) -> ConditionalBijection:
        """See :meth:`VectorFlow.build`."""
        return self._conditional_chain(input_dim, context_dim)

    def _chain(self, input_dim: int) -> Chain:
        return chain(lambda: Autoregressive(self.change(), self._network(input_dim, 0)), self.num_layers)

    def _conditional_chain(self, input_dim: int, context_dim: int) -> ConditionalChain:
        if context_dim < 1:
            raise ValueError(f"context_dim must be at least 1, got {context_dim}")
        return conditional_chain(
            lambda: ConditionalAutoregressive(self.change(), self._network(input_dim, context_dim)), self.num_layers
        )

    def _network(self, input_dim: int, context_dim: int) -> AutoregressiveMLP:
        return AutoregressiveMLP(input_dim, self.change().num_maps, self.hidden_dims, self.activation, context_dim)


@dataclass(frozen=True)
class IAF(_AutoregressiveFlow):
    """Inverse autoregressive flow (Kingma et al. 2016): sampling is one pass a layer, scoring is sequential."""

    name: ClassVar[str] = "iaf"

    scale: Literal["tanh", "exp", "sigmoid"] = "tanh"
    """Of the affine map: exp(2 tanh(g/2)), exp(g), or a gate like the paper's, 0.05 + 0.95 sigmoid(g + 2)."""

    def change(self) -> AffineMap:
        """``y = (x + t) s``."""
        return AffineMap(self.scale)

    def label(self) -> str:
        """``IAF (2)``."""
        return f"IAF ({self.num_layers})"


@dataclass(frozen=True)
class MAF(IAF):
    """Masked autoregressive flow (Papamakarios et al. 2017): IAF turned round; scoring is one pass a layer."""

    name: ClassVar[str] = "maf"

    def make(self, input_dim: int) -> Inverse:
        """See :meth:`VectorFlow.build`."""
        return Inverse(self._chain(input_dim))

    def make_conditional(self, input_dim: int, context_dim: int) -> ConditionalInverse:
        """See :meth:`VectorFlow.build`."""
        return ConditionalInverse(self._conditional_chain(input_dim, context_dim))

    def label(self) -> str:
        """``MAF (2)``."""
        return f"MAF ({self.num_layers})"


@dataclass(frozen=True)
class Spline(_AutoregressiveFlow):
    """Autoregressive rational-quadratic spline flow (Durkan et al. 2019); sampling is one pass a layer."""

    name: ClassVar[str] = "spline"

    num_bins: Annotated[int, Bounds(least=2)] = 8
    """Bins of each spline."""
    bound: PositiveFloat = 5.0
    """The splines act within ± this."""

    def change(self) -> SplineMap:
        """The spline of one entry."""
        return SplineMap(self.num_bins, self.bound)

    def label(self) -> str:
        """``RQ spline (2)``."""
        return f"RQ spline ({self.num_layers})"
