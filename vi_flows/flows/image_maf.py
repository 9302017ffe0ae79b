"""Masked autoregressive flows of images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch

from vi_flows.flows.image_base import ImageFlow, ImageShape
from vi_flows.nn.autoregressive_mlp import AutoregressiveMLP
from vi_flows.nn.mlp import ACTIVATIONS
from vi_flows.settings import LATER, OneOf, Positive, check_counts, check_image_shape
from vi_flows.transforms import (
    AffineMap,
    Bijection,
    Chain,
    Checkpointed,
    ConditionalBijection,
    ConditionalChain,
    ConditionalCheckpointed,
    ConditionalInverse,
    ImageBatchNorm,
    Inverse,
)
from vi_flows.transforms.image.reshaped import ConditionalReshaped, Reshaped
from vi_flows.transforms.vector.autoregressive import Autoregressive, ConditionalAutoregressive
from vi_flows.transforms.vector.conv_flow import Revert

__all__ = ["ImageMAF"]


@dataclass(frozen=True, kw_only=True)
class ImageMAF(ImageFlow):
    """MAF (Papamakarios et al. 2017): fully connected autoregressive layers over the entries, their order reversed
    between layers, with batch normalisation after each. Scoring is one pass a layer, drawing one pass an entry.

    The paper's MAF (5) and MAF (10) on MNIST have 5 and 10 layers, each with one hidden layer of 1024.
    """

    name: ClassVar[str] = "maf"

    num_layers: Positive = 5
    """Autoregressive layers; 5 or 10 in the paper."""
    hidden_dims: tuple[Positive, ...] = (1024,)
    """Widths of each masked network; one of 1024 in the paper."""
    activation: Annotated[str, OneOf(tuple(ACTIVATIONS))] = "relu"
    """Of the masked networks."""
    scale: Literal["tanh", "exp", "sigmoid"] = "tanh"
    """Scale function of the affine maps; exp in the paper."""
    norm: Literal["batch", "none"] = "batch"
    """Normalisation after each layer, one mean and variance an entry."""
    bounded: bool = field(default=False, metadata=LATER)
    """The networks see ``8 tanh(x/8)`` of the entries. Without it, as in the paper, each of ten layers may multiply
    what the one before made of an unusual draw of the noise: one in 80 000 of MNIST's test set reached 4e9 bits/dim."""

    @property
    def normalizes_batches(self) -> bool:
        """See :attr:`ImageFlow.normalizes_batches`."""
        return self.norm == "batch"

    def build(
        self, image_shape: ImageShape, recompute: bool = False, conditioner_dtype: torch.dtype | None = None
    ) -> Inverse:
        """See :meth:`ImageFlow.build`."""
        check_image_shape(image_shape)
        change, size = AffineMap(self.scale), math.prod(image_shape)

        def layer() -> Bijection:
            return Reshaped(Autoregressive(change, self._network(size, 0), conditioner_dtype), (size,))

        steps = [[layer(), *self._after(size, index)] for index in range(self.num_layers)]
        if recompute:
            return Inverse(Chain([Checkpointed(Chain(step)) for step in steps]))
        return Inverse(Chain([part for step in steps for part in step]))

    def build_conditional(
        self,
        image_shape: ImageShape,
        context_dim: int,
        recompute: bool = False,
        conditioner_dtype: torch.dtype | None = None,
    ) -> ConditionalInverse:
        """See :meth:`ImageFlow.build_conditional`; each masked network sees the context (the paper's section 3.4)."""
        check_image_shape(image_shape)
        check_counts(1, context_dim=context_dim)
        change, size = AffineMap(self.scale), math.prod(image_shape)

        def layer() -> ConditionalBijection:
            network = self._network(size, context_dim)
            return ConditionalReshaped(ConditionalAutoregressive(change, network, conditioner_dtype), (size,))

        steps: list[list[Bijection | ConditionalBijection]]
        steps = [[layer(), *self._after(size, index)] for index in range(self.num_layers)]
        if recompute:
            return ConditionalInverse(ConditionalChain([ConditionalCheckpointed(ConditionalChain(s)) for s in steps]))
        return ConditionalInverse(ConditionalChain([part for step in steps for part in step]))

    def _network(self, size: int, context_dim: int) -> AutoregressiveMLP:
        num_maps = AffineMap(self.scale).num_maps
        return AutoregressiveMLP(size, num_maps, self.hidden_dims, self.activation, context_dim, self.bounded)

    def _after(self, size: int, index: int) -> list[Bijection]:
        """What stands between a layer and the next: the normalisation, and the reversal but for the last."""
        norm = [Reshaped(ImageBatchNorm(size), (size, 1, 1))] if self.norm == "batch" else []
        return [*norm, *([Reshaped(Revert(), (size,))] if index < self.num_layers - 1 else [])]
