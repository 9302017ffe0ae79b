r"""PixelRNN: recurrent layers over the image.

Van den Oord et al. 2016, *Pixel Recurrent Neural Networks*, section 3.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from vi_flows.autoregressive.base import check_not_negative
from vi_flows.autoregressive.outputs import Output
from vi_flows.autoregressive.raster import ResidualRasterModel
from vi_flows.autoregressive.stepping import ConvWindow, DiagonalState, PixelLinear, RowState, Stepper
from vi_flows.nn.masked import MaskedConv2d
from vi_flows.nn.masked_lstm import DiagonalBiLSTM, RowLSTM, from_diagonals, to_diagonals
from vi_flows.nn.typed import ModuleListOf

__all__ = ["DiagonalPixelRNN", "RowPixelRNN"]


R = TypeVar("R", bound=nn.Module)


class RecurrentBlock(nn.Module, Generic[R]):
    """A recurrent layer to half the features, 1×1 back, plus the input (paper, figure 5).

    Args:
        recurrence: from ``width`` to ``width / 2`` features.
        width: features.
        data_channels: see :class:`~vi_flows.nn.MaskedConv2d`.
        dropout: share of the recurrent layer's outputs that a training step leaves out.
    """

    def __init__(self, recurrence: R, width: int, data_channels: int, dropout: float) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.dropout = nn.Dropout(dropout)
        self.up = MaskedConv2d(width // 2, width, (1, 1), "B", data_channels)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        """``(N, width, H, W)`` to the same shape."""
        return h + self.up(self.dropout(self.recurrence(h, context)))


class PixelRNN(ResidualRasterModel[RecurrentBlock[R]], Generic[R]):
    """A masked k×k convolution of type A, residual recurrent layers, and two 1×1 layers.

    A family writes :meth:`recurrence`.

    Args:
        event_shape: ``(C, H, W)``.
        output: family of the conditionals.
        width: features, a multiple of ``2 C`` (the paper's ``2h``).
        num_layers: recurrent layers (7 in the paper for binary MNIST).
        first_kernel: side of the first kernel, odd (7 in the paper).
        context_dim: see :class:`Autoregressive`; the context reaches the gates of every layer.
        dropout: share of each recurrent layer's outputs that a training step leaves out.

    Raises:
        ValueError: see :class:`ResidualRasterModel`; or ``num_layers`` is negative.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        output: Output,
        width: int = 64,
        num_layers: int = 7,
        first_kernel: int = 7,
        context_dim: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(event_shape, output, width, first_kernel, context_dim, dropout)
        check_not_negative("num_layers", num_layers)
        channels = self.event_shape[0]
        self.blocks = ModuleListOf(
            RecurrentBlock(self.recurrence(width, width // 2, channels, context_dim), width, channels, dropout)
            for _ in range(num_layers)
        )

    @abstractmethod
    def recurrence(self, in_channels: int, hidden: int, data_channels: int, context_dim: int) -> R:
        """A recurrent layer, ``(N, in_channels, H, W)`` and context to ``(N, hidden, H, W)``."""


class DiagonalPixelRNN(PixelRNN[DiagonalBiLSTM]):
    """PixelRNN with diagonal BiLSTMs: every pixel sees all pixels before it. Arguments and errors as above.

    The features of a pixel never see the pixel itself, so those of a whole row don't see the row's last one. A column
    of zeros right of the image does; the direction from the right begins there.
    """

    def recurrence(self, in_channels: int, hidden: int, data_channels: int, context_dim: int) -> DiagonalBiLSTM:
        """See :meth:`PixelRNN.recurrence`."""
        return DiagonalBiLSTM(in_channels, hidden, data_channels, context_dim)

    def features(self, x: Tensor, context: Tensor) -> Tensor:
        """See :meth:`RasterModel.features`."""
        h = self.first_context(self.first(F.pad(x, (0, 1))), context)
        size, h = (h.shape[2], h.shape[3]), to_diagonals(h)
        for block in self.blocks:
            outputs = block.dropout(block.recurrence.along_diagonals(h, context, size))
            h = h + PixelLinear(block.up)(outputs)
        return from_diagonals(h, size)[..., :-1]

    def stepper(self, context: Tensor) -> Stepper:
        """See :meth:`RasterModel.stepper`."""
        return _DiagonalStepper(self, context)


class _DiagonalStepper:
    def __init__(self, model: DiagonalPixelRNN, context: Tensor) -> None:
        self.model, self.context = model, context
        channels, height, self.width = model.event_shape
        self.nothing = context.new_zeros(len(context), channels)
        self.first = ConvWindow(model.first, len(context), height, self.width + 1)
        self.blocks = [
            (DiagonalState(block.recurrence, len(context), self.width + 1, context), PixelLinear(block.up))
            for block in model.blocks
        ]

    def begin_row(self, row: int) -> None:
        if row == 0:
            return
        self.at(row - 1, self.width, self.nothing)  # the column right of the image
        for state, _ in self.blocks:
            state.end_row()

    def write(self, row: int, column: int, pixel: Tensor) -> None:
        self.first.write(row, column, pixel)

    def at(self, row: int, column: int, pixel: Tensor) -> Tensor:
        self.write(row, column, pixel)
        h = self.model.first_context(self.first.at(row, column), self.context)
        for state, up in self.blocks:
            h = h + up(state.at(column, h))
        return h


class RowPixelRNN(PixelRNN[RowLSTM]):
    """PixelRNN with Row LSTMs: a pixel sees a triangle above it. Arguments and errors as above."""

    def recurrence(self, in_channels: int, hidden: int, data_channels: int, context_dim: int) -> RowLSTM:
        """See :meth:`PixelRNN.recurrence`."""
        return RowLSTM(in_channels, hidden, data_channels, context_dim)

    def stepper(self, context: Tensor) -> Stepper:
        """See :meth:`RasterModel.stepper`."""
        return _RowStepper(self, context)


class _RowStepper:
    def __init__(self, model: RowPixelRNN, context: Tensor) -> None:
        self.model, self.context = model, context
        _, height, width = model.event_shape
        rows = len(context)
        self.first = ConvWindow(model.first, rows, height, width)
        self.blocks = [(RowState(b.recurrence, rows, height, width, context), PixelLinear(b.up)) for b in model.blocks]

    def begin_row(self, row: int) -> None:
        for state, _ in self.blocks:
            state.begin_row()

    def write(self, row: int, column: int, pixel: Tensor) -> None:
        self.first.write(row, column, pixel)

    def at(self, row: int, column: int, pixel: Tensor) -> Tensor:
        self.write(row, column, pixel)
        h = self.model.first_context(self.first.at(row, column), self.context)
        for state, up in self.blocks:
            h = h + up(state.at(row, column, h))
        return h
