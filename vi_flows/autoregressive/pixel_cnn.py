r"""PixelCNN: images pixel by pixel by masked convolutions.

Van den Oord, Kalchbrenner and Kavukcuoglu 2016, *Pixel Recurrent Neural Networks*, section 3.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vi_flows.autoregressive.base import check_not_negative
from vi_flows.autoregressive.outputs import Output
from vi_flows.autoregressive.raster import ResidualRasterModel
from vi_flows.autoregressive.stepping import ConvWindow, PixelLinear, Stepper
from vi_flows.nn.masked import ContextBias, MaskedConv2d
from vi_flows.nn.typed import ModuleListOf

__all__ = ["PixelCNN"]


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


class PixelCNN(ResidualRasterModel[ResidualBlock]):
    """A masked k×k convolution of type A, residual blocks, and two 1×1 layers.

    Its receptive field has a blind spot: pixels above and far to the right are not seen; :class:`GatedPixelCNN`
    has none.

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
        ValueError: see :class:`ResidualRasterModel`; or ``num_blocks`` is negative.
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
        super().__init__(event_shape, output, width, first_kernel, context_dim, dropout)
        check_not_negative("num_blocks", num_blocks)
        self.blocks = ModuleListOf(
            ResidualBlock(width, kernel_size, self.event_shape[0], context_dim, dropout) for _ in range(num_blocks)
        )

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
            for block in model.blocks
        ]

    def begin_row(self, row: int) -> None:
        pass

    def write(self, row: int, column: int, pixel: Tensor) -> None:
        self.first.write(row, column, pixel)

    def at(self, row: int, column: int, pixel: Tensor) -> Tensor:
        self.write(row, column, pixel)
        h = self.model.first_context(self.first.at(row, column), self.context)
        for block, down, conv, up in self.blocks:
            conv.write(row, column, down(h.relu()).relu())
            h = h + up(block.context(conv.at(row, column), self.context).relu())
        return h
