r"""PixelCNN and Gated PixelCNN: images pixel by pixel in raster order, and channel by channel within a pixel.

Van den Oord, Kalchbrenner and Kavukcuoglu 2016, *Pixel Recurrent Neural Networks* (PixelCNN, section 3.5); van den
Oord et al. 2016, *Conditional Image Generation with PixelCNN Decoders* (Gated PixelCNN, section 2).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from vi_flows.autoregressive.base import Autoregressive, check_dropout
from vi_flows.autoregressive.outputs import Output
from vi_flows.autoregressive.stepping import ConvWindow, PixelLinear, Stepper, head_linears
from vi_flows.nn.masked import ContextBias, MaskedConv2d

__all__ = ["GatedPixelCNN", "PixelCNN"]


class RasterModel(Autoregressive):
    """What both models share: the order, and the last two 1×1 layers.

    Args:
        event_shape: ``(C, H, W)``.
        output: family of the conditionals.
        width: features of the last hidden layer, a multiple of ``C``.
        context_dim: see :class:`Autoregressive`.

    Raises:
        ValueError: the event is not ``(C, H, W)``, or ``width`` is not a positive multiple of ``C``.
    """

    def __init__(self, event_shape: Sequence[int], output: Output, width: int, context_dim: int) -> None:
        super().__init__(event_shape, output, context_dim)
        if len(self.event_shape) != 3:
            raise ValueError(f"event_shape must be (C, H, W), got {tuple(self.event_shape)}")
        channels = self.event_shape[0]
        if width < 1 or width % channels:
            raise ValueError(f"width must be a positive multiple of the {channels} channels, got {width}")
        self.head = nn.Sequential(
            nn.ReLU(),
            MaskedConv2d(width, width, (1, 1), "B", channels),
            nn.ReLU(),
            MaskedConv2d(width, channels * output.num_params, (1, 1), "B", channels),
        )

    @abstractmethod
    def features(self, x: Tensor, context: Tensor) -> Tensor:
        """``(N, width, H, W)`` in ``C`` groups; a group sees earlier pixels, and earlier channels of its own."""

    @abstractmethod
    def stepper(self, context: Tensor) -> Stepper:
        """What goes through images pixel by pixel and remembers, for a batch of the context's rows."""

    def extend(self, x: Tensor, num_known: int, context: Tensor, progress: bool = False) -> Tensor:
        """See :meth:`Autoregressive.extend`; with features remembered, so that a pixel costs one pixel's products."""
        x = x.clone()
        channels, height, width = self.event_shape
        stepper, head = self.stepper(context), head_linears(self.head)
        bar = tqdm(total=height * width, unit="pixel", disable=not progress)
        entry = 0
        for row in range(height):
            stepper.begin_row(row)
            for column in range(width):
                for channel in range(channels):
                    if entry >= num_known:
                        h = stepper.at(row, column, self.output.encode(x[:, :, row, column]))
                        for linear in head:
                            h = linear(h.relu())
                        params = h.unflatten(1, (channels, -1))[:, channel]
                        x[:, channel, row, column] = self.output.sample(params)
                    entry += 1
                stepper.at(row, column, self.output.encode(x[:, :, row, column]))
                bar.update()
        bar.close()
        return x

    def params(self, x: Tensor, context: Tensor) -> Tensor:
        """See :meth:`Autoregressive.params`."""
        out = self.head(self.features(self.output.encode(x), context))
        return out.unflatten(1, (self.event_shape[0], self.output.num_params)).movedim(2, -1)

    def generation_order(self) -> Tensor:
        """Rows, then columns, then channels."""
        return torch.arange(self.event_shape.numel()).reshape(self.event_shape).permute(1, 2, 0).flatten()


class ResidualBlock(nn.Module):
    """ReLU and 1×1 to half the features, ReLU and k×k, ReLU and 1×1 back, plus the input; all of type B.

    Args:
        width: features, a multiple of twice ``data_channels``.
        kernel_size: odd.
        data_channels: see :class:`~vi_flows.nn.MaskedConv2d`.
        context_dim: size of the context.
        dropout: share of the inner features that a training step leaves out.
    """

    def __init__(self, width: int, kernel_size: int, data_channels: int, context_dim: int, dropout: float) -> None:
        super().__init__()
        half = width // 2
        self.down = MaskedConv2d(width, half, (1, 1), "B", data_channels)
        self.conv = MaskedConv2d(half, half, (kernel_size, kernel_size), "B", data_channels)
        self.up = MaskedConv2d(half, width, (1, 1), "B", data_channels)
        self.context = ContextBias(context_dim, half)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        """``(N, width, H, W)`` to the same shape."""
        inner = self.context(self.conv(F.relu(self.down(F.relu(h)))), context)
        return h + self.up(self.dropout(F.relu(inner)))


class PixelCNN(RasterModel):
    """A masked k×k convolution of type A, residual blocks, and two 1×1 layers.

    Its receptive field has a blind spot: pixels above and far to the right are not seen; :class:`GatedPixelCNN` has
    none.

    Args:
        event_shape: ``(C, H, W)``.
        output: family of the conditionals.
        width: features, a multiple of ``2 C`` (the paper's ``2h``).
        num_blocks: residual blocks.
        first_kernel: side of the first kernel, odd (7 in the paper).
        kernel_size: side of the others, odd (3 in the paper).
        context_dim: see :class:`Autoregressive`; the context reaches every layer's features.
        dropout: share of each block's inner features that a training step leaves out.

    Raises:
        ValueError: see :class:`RasterModel` and :class:`~vi_flows.nn.MaskedConv2d`; or ``width`` is no multiple of
            ``2 C``, ``num_blocks`` is negative, or ``dropout`` is not in [0, 1).
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        output: Output,
        width: int = 64,
        num_blocks: int = 7,
        first_kernel: int = 7,
        kernel_size: int = 3,
        context_dim: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(event_shape, output, width, context_dim)
        check_dropout(dropout)
        channels = self.event_shape[0]
        if width % (2 * channels):
            raise ValueError(f"width must be a multiple of twice the {channels} channels, got {width}")
        if num_blocks < 0:
            raise ValueError(f"num_blocks must not be negative, got {num_blocks}")
        self.first = MaskedConv2d(channels, width, (first_kernel, first_kernel), "A", channels)
        self.first_context = ContextBias(context_dim, width)
        self.blocks = nn.ModuleList(
            ResidualBlock(width, kernel_size, channels, context_dim, dropout) for _ in range(num_blocks)
        )

    def features(self, x: Tensor, context: Tensor) -> Tensor:
        """See :meth:`RasterModel.features`."""
        h = self.first_context(self.first(x), context)
        for block in self.blocks:
            h = block(h, context)
        return h

    def stepper(self, context: Tensor) -> Stepper:
        """See :meth:`RasterModel.stepper`."""
        return _PixelCNNStepper(self, context)


class _PixelCNNStepper:
    def __init__(self, model: PixelCNN, context: Tensor) -> None:
        self.model, self.context = model, context
        size = len(context), *model.event_shape[1:]
        self.first = ConvWindow(model.first, *size)
        self.blocks = [
            (block, PixelLinear(block.down), ConvWindow(block.conv, *size), PixelLinear(block.up))
            for block in cast(list[ResidualBlock], list(model.blocks))
        ]

    def begin_row(self, row: int) -> None:
        pass

    def at(self, row: int, column: int, pixel: Tensor) -> Tensor:
        self.first.write(row, column, pixel)
        h = self.model.first_context(self.first.at(row, column), self.context)
        for block, down, conv, up in self.blocks:
            conv.write(row, column, down(h.relu()).relu())
            h = h + up(block.context(conv.at(row, column), self.context).relu())
        return h


class GatedLayer(nn.Module):
    r"""One layer of both stacks: ``tanh(a) · σ(b)`` of masked convolutions.

    The vertical stack sees the rows above only, all of their columns; the horizontal one what is left in the row,
    and the vertical stack's features at the pixel. Type A is the first layer: it has no residual connection, for
    the pixel itself must not come through.

    Args:
        in_channels: features of both inputs.
        width: features of both outputs.
        kernel_size: odd.
        mask_type: ``A`` or ``B``.
        data_channels: see :class:`~vi_flows.nn.MaskedConv2d`.
        context_dim: size of the context.
        last: whether nothing uses the vertical output, which then has no context of its own to learn.
        dropout: share of the horizontal stack's gated features that a training step leaves out.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        kernel_size: int,
        mask_type: str,
        data_channels: int,
        context_dim: int,
        last: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.residual, self.data_channels = mask_type == "B", data_channels
        both = 2 * width
        self.vertical = MaskedConv2d(in_channels, both, (kernel_size, kernel_size), mask_type, data_channels, "rows")
        self.horizontal = MaskedConv2d(in_channels, both, (1, kernel_size), mask_type, data_channels)
        self.across = nn.Conv2d(both, both, 1)
        self.mix = MaskedConv2d(width, width, (1, 1), "B", data_channels)
        self.vertical_context = ContextBias(0 if last else context_dim, both)
        self.horizontal_context = ContextBias(context_dim, both)
        self.dropout = nn.Dropout(dropout)

    def gate(self, h: Tensor) -> Tensor:
        """``tanh(a) · σ(b)``, ``(N, 2 width, …)`` to ``(N, width, …)``."""
        # Split within each group, so that a gate belongs to the same image channel as what it gates.
        a, b = h.unflatten(1, (self.data_channels, 2, -1)).unbind(2)
        return (a.tanh() * b.sigmoid()).flatten(1, 2)

    def forward(self, v: Tensor, h: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The vertical and horizontal features, ``(N, in_channels, H, W)`` each to ``(N, width, H, W)`` each."""
        seen = self.vertical(v)
        inner = self.horizontal_context(self.horizontal(h) + self.across(seen), context)
        out = self.mix(self.dropout(self.gate(inner)))
        return self.gate(self.vertical_context(seen, context)), h + out if self.residual else out


class GatedPixelCNN(RasterModel):
    """Vertical and horizontal stacks of gated layers, and two 1×1 layers; without a blind spot.

    With ``L`` layers, counting the first, a pixel sees all pixels before it at most ``first_kernel // 2 + (L − 1)
    (kernel_size // 2)`` columns or rows away.

    Args:
        event_shape: ``(C, H, W)``.
        output: family of the conditionals.
        width: features, a multiple of ``C``.
        num_layers: gated layers after the first.
        first_kernel: side of the first kernel, odd and at least 3.
        kernel_size: side of the others, odd.
        context_dim: see :class:`Autoregressive`; the context reaches both stacks in every layer (paper, eq. 4).
        dropout: share of each layer's horizontal features that a training step leaves out.

    Raises:
        ValueError: see :class:`RasterModel` and :class:`~vi_flows.nn.MaskedConv2d`; or ``num_layers`` is negative, or
            ``dropout`` is not in [0, 1).
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        output: Output,
        width: int = 64,
        num_layers: int = 7,
        first_kernel: int = 7,
        kernel_size: int = 3,
        context_dim: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(event_shape, output, width, context_dim)
        check_dropout(dropout)
        if num_layers < 0:
            raise ValueError(f"num_layers must not be negative, got {num_layers}")
        channels = self.event_shape[0]
        # Of each layer: input features, kernel, mask type.
        plan = [(channels, first_kernel, "A"), *[(width, kernel_size, "B")] * num_layers]
        self.layers = nn.ModuleList(
            GatedLayer(features, width, kernel, mask_type, channels, context_dim, index == num_layers, dropout)
            for index, (features, kernel, mask_type) in enumerate(plan)
        )

    def features(self, x: Tensor, context: Tensor) -> Tensor:
        """See :meth:`RasterModel.features`."""
        v = h = x
        for layer in self.layers:
            v, h = layer(v, h, context)
        return h

    def stepper(self, context: Tensor) -> Stepper:
        """See :meth:`RasterModel.stepper`."""
        return _GatedStepper(self, context)


class _GatedStepper:
    """The vertical stack goes a row at a time, when all rows above are there; the horizontal one pixel by pixel."""

    def __init__(self, model: GatedPixelCNN, context: Tensor) -> None:
        self.context = context
        size = len(context), *model.event_shape[1:]
        self.layers = [
            (layer, ConvWindow(layer.vertical, *size), ConvWindow(layer.horizontal, *size), PixelLinear(layer.mix))
            for layer in cast(list[GatedLayer], list(model.layers))
        ]

    def begin_row(self, row: int) -> None:
        self.across = []
        v = None
        for layer, vertical, _, _ in self.layers:
            if v is not None:  # the first layer's input is the image, entered pixel by pixel
                vertical.write_row(row, v)
            seen = vertical.row(row)
            self.across.append(layer.across(seen)[:, :, 0])
            v = layer.gate(layer.vertical_context(seen, self.context))

    def at(self, row: int, column: int, pixel: Tensor) -> Tensor:
        self.layers[0][1].write(row, column, pixel)
        h = pixel
        for (layer, _, horizontal, mix), across in zip(self.layers, self.across, strict=True):
            horizontal.write(row, column, h)
            inner = layer.horizontal_context(horizontal.at(row, column) + across[..., column], self.context)
            out = mix(layer.gate(inner))
            h = h + out if layer.residual else out
        return h
