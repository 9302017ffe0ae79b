"""Images pixel by pixel in raster order, and channel by channel within a pixel: what such models share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from vi_flows.autoregressive.base import Autoregressive, check_dropout
from vi_flows.autoregressive.outputs import Output
from vi_flows.autoregressive.stepping import Stepper, head_linears
from vi_flows.nn.masked import ContextBias, ContextMap, MaskedConv2d
from vi_flows.nn.typed import ModuleListOf
from vi_flows.progress import progress_bar

__all__ = ["RasterModel", "ResidualRasterModel"]

B = TypeVar("B", bound=nn.Module)

NUM_MAPS = 8
"""Features at a place that a placed context sets by weights of that place's own."""


class RasterModel(Autoregressive):
    """The order, a generation that remembers features, and the last two 1×1 layers.

    Attributes:
        halves: whether layers work on half the features, so that ``width`` must be a multiple of ``2 C``.

    Args:
        event_shape: ``(C, H, W)``.
        output: family of the conditionals.
        width: features of the last hidden layer, a multiple of ``C``.
        context_dim: see :class:`Autoregressive`.
        dropout: share of features that a training step leaves out.

    Raises:
        ValueError: the event is not ``(C, H, W)``, ``width`` is not a positive multiple of ``C`` (of ``2 C`` where
            layers halve it), or ``dropout`` is not in [0, 1).
    """

    halves: ClassVar[bool] = False

    def __init__(
        self, event_shape: Sequence[int], output: Output, width: int, context_dim: int, dropout: float
    ) -> None:
        super().__init__(event_shape, output, context_dim)
        check_dropout(dropout)
        if len(self.event_shape) != 3:
            raise ValueError(f"event_shape must be (C, H, W), got {tuple(self.event_shape)}")
        channels = self.event_shape[0]
        if width < 1 or width % (2 * channels if self.halves else channels):
            raise ValueError(
                f"width must be a positive multiple of {'twice ' * self.halves}the {channels} channels, got {width}"
            )
        self.width = width
        self.head = nn.Sequential(
            nn.ReLU(),
            MaskedConv2d(width, width, (1, 1), "B", channels),
            nn.ReLU(),
            MaskedConv2d(width, channels * output.num_params, (1, 1), "B", channels),
        )
        # Of the context, added to the last hidden features; none until place_context is called.
        self.context_maps: ModuleListOf[ContextMap] = ModuleListOf()

    def place_context(self) -> None:
        """Add a bias from the context to the last hidden features, another one at each place.

        Van den Oord et al. 2016, *Conditional Image Generation with PixelCNN Decoders*, section 2.3; convolutions
        alone have no way to tell places apart.

        Raises:
            ValueError: the model has no context.
        """
        if not self.context_dim:
            raise ValueError("a model without context has none to place; build it with context_dim")
        _, height, width = self.event_shape
        self.context_maps.append(ContextMap(self.context_dim, self.width, (height, width), NUM_MAPS))

    @abstractmethod
    def features(self, x: Tensor, context: Tensor) -> Tensor:
        """``(N, width, H, W)`` in ``C`` groups; a group sees earlier pixels, and earlier channels of its own."""

    @abstractmethod
    def stepper(self, context: Tensor) -> Stepper:
        """What goes through images pixel by pixel and remembers, for a batch of the context's rows."""

    def extend(self, x: Tensor, num_known: int, context: Tensor, progress: bool = False) -> Tensor:
        """See :meth:`Autoregressive.extend`; with features remembered, so that a pixel costs one pixel's products."""
        x = self.beginning(x, num_known)
        channels, height, width = self.event_shape
        stepper, head = self.stepper(context), head_linears(self.head)
        shifts = [context_map(context) for context_map in self.context_maps]
        bar = progress_bar(total=height * width, unit="pixel", shown=progress)
        entry = 0
        for row in range(height):
            stepper.begin_row(row)
            for column in range(width):
                for channel in range(channels):
                    if entry >= num_known:
                        h = stepper.at(row, column, self.output.encode(x[:, :, row, column]))
                        for shift in shifts:
                            h = h + shift[:, :, row, column]
                        for linear in head:
                            h = linear(h.relu())
                        params = h.unflatten(1, (channels, -1))[:, channel]
                        x[:, channel, row, column] = self.output.sample(params)
                    entry += 1
                # Features never depend on a pixel's last entry: where that was drawn, they stand.
                finish = stepper.write if entry > num_known else stepper.at
                finish(row, column, self.output.encode(x[:, :, row, column]))
                bar.update()
        bar.close()
        return x

    def params(self, x: Tensor, context: Tensor) -> Tensor:
        """See :meth:`Autoregressive.params`."""
        h = self.features(self.output.encode(x), context)
        for context_map in self.context_maps:
            h = h + context_map(context)
        out = self.head(h)
        return out.unflatten(1, (self.event_shape[0], self.output.num_params)).movedim(2, -1)

    def generation_order(self) -> Tensor:
        """Rows, then columns, then channels."""
        return torch.arange(self.event_shape.numel()).reshape(self.event_shape).permute(1, 2, 0).flatten()


class ResidualRasterModel(RasterModel, Generic[B]):
    """A masked k×k convolution of type A with the context, and residual blocks: PixelCNN and the PixelRNNs.

    A family makes its ``blocks``, each ``(N, width, H, W)`` and a context to the same shape.

    Args:
        event_shape: ``(C, H, W)``.
        output: family of the conditionals.
        width: features, a multiple of ``2 C``.
        first_kernel: side of the first kernel, odd.
        context_dim: see :class:`Autoregressive`.
        dropout: share of features that a training step leaves out.

    Raises:
        ValueError: see :class:`RasterModel` and :class:`~vi_flows.nn.MaskedConv2d`.
    """

    halves: ClassVar[bool] = True
    blocks: ModuleListOf[B]

    def __init__(
        self,
        event_shape: Sequence[int],
        output: Output,
        width: int,
        first_kernel: int,
        context_dim: int,
        dropout: float,
    ) -> None:
        super().__init__(event_shape, output, width, context_dim, dropout)
        channels = self.event_shape[0]
        self.first = MaskedConv2d(channels, width, (first_kernel, first_kernel), "A", channels)
        self.first_context = ContextBias(context_dim, width)

    def features(self, x: Tensor, context: Tensor) -> Tensor:
        """See :meth:`RasterModel.features`."""
        h = self.first_context(self.first(x), context)
        for block in self.blocks:
            h = block(h, context)
        return h
