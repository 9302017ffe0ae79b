r"""Gated PixelCNN: two stacks of gated masked convolutions, without a blind spot.

Van den Oord et al. 2016, *Conditional Image Generation with PixelCNN Decoders*, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vi_flows.autoregressive.base import check_not_negative
from vi_flows.autoregressive.outputs import Output
from vi_flows.autoregressive.raster import RasterModel
from vi_flows.autoregressive.stepping import ConvWindow, PixelLinear, Stepper
from vi_flows.nn.masked import ContextBias, MaskedConv2d
from vi_flows.nn.typed import ModuleListOf

__all__ = ["GatedPixelCNN"]


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
        first_kernel: side of the first kernel, odd; by 1 no pixel sees another one.
        kernel_size: side of the others, odd.
        context_dim: see :class:`Autoregressive`; the context reaches both stacks in every layer (paper, eq. 4).
        dropout: share of each layer's horizontal features that a training step leaves out.

    Raises:
        ValueError: see :class:`RasterModel` and :class:`~vi_flows.nn.MaskedConv2d`; or ``num_layers`` is negative.
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
        super().__init__(event_shape, output, width, context_dim, dropout)
        check_not_negative("num_layers", num_layers)
        channels = self.event_shape[0]
        # Of each layer: input features, kernel, mask type.
        plan = [(channels, first_kernel, "A"), *[(width, kernel_size, "B")] * num_layers]
        self.layers = ModuleListOf(
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
            for layer in model.layers
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

    def write(self, row: int, column: int, pixel: Tensor) -> None:
        _, vertical, horizontal, _ = self.layers[0]
        vertical.write(row, column, pixel)
        horizontal.write(row, column, pixel)

    def at(self, row: int, column: int, pixel: Tensor) -> Tensor:
        self.layers[0][1].write(row, column, pixel)
        h = pixel
        for (layer, _, horizontal, mix), across in zip(self.layers, self.across, strict=True):
            horizontal.write(row, column, h)
            inner = layer.horizontal_context(horizontal.at(row, column) + across[..., column], self.context)
            out = mix(layer.gate(inner))
            h = h + out if layer.residual else out
        return h
