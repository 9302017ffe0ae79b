"""Masked autoregressive flows of images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch

from vi_flows.flows.image_base import ImageFlow, ImageShape
from vi_flows.nn.autoregressive_mlp import AutoregressiveMLP
from vi_flows.nn.mlp import ACTIVATIONS
from vi_flows.settings import LATER, OneOf, Positive
from vi_flows.transforms import AffineMap, Bijection, Chain, Checkpointed, ImageBatchNorm, Inverse
from vi_flows.transforms.image.reshaped import Reshaped
from vi_flows.transforms.vector.autoregressive import Autoregressive
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

    def build(
        self, image_shape: ImageShape, recompute: bool = False, conditioner_dtype: torch.dtype | None = None
    ) -> Inverse:
        """See :meth:`ImageFlow.build`."""
        channels, height, width = image_shape
        size = channels * height * width
        parts: list[Bijection] = []
        for index in range(self.num_layers):
            change = AffineMap(self.scale)
            network = AutoregressiveMLP(size, change.num_maps, self.hidden_dims, self.activation, bounded=self.bounded)
            layer: list[Bijection] = [Reshaped(Autoregressive(change, network, conditioner_dtype), (size,))]
            if self.norm == "batch":
                layer.append(Reshaped(ImageBatchNorm(size), (size, 1, 1)))
            if index < self.num_layers - 1:
                layer.append(Reshaped(Revert(), (size,)))
            parts += [Checkpointed(Chain(layer))] if recompute else layer
        return Inverse(Chain(parts))
