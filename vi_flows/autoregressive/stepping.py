r"""Generation of images that remembers what it has computed: a pixel costs what one pixel costs, not a whole image.

Every model of a raster order has a stepper. For each pixel it is told the pixel's entries so far and gives the features
from which the next one's conditional is made; it keeps the feature maps that later pixels will look at. The numbers are
those of the whole pass: the same products over the same windows. Dropout is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vi_flows.nn.diagonal_lstm import lstm_update
from vi_flows.nn.masked import MaskedConv2d
from vi_flows.nn.masked_lstm import DiagonalBiLSTM, InputToState, RowLSTM

__all__ = ["ConvWindow", "DiagonalState", "PixelLinear", "RowState", "Stepper"]


class Stepper(Protocol):
    """Goes through an image, row by row and pixel by pixel, for a batch."""

    def begin_row(self, row: int) -> None:
        """All rows above are finished."""

    def at(self, row: int, column: int, pixel: Tensor) -> Tensor:
        """Features ``(N, width)`` at a pixel.

        Called for each entry of the pixel before that is drawn, or once, with all entries, where none is drawn. Never
        does a feature depend on the pixel's last entry; where that is drawn, :meth:`write` is called afterwards.

        Args:
            row: of the pixel.
            column: of the pixel.
            pixel: its encoded entries ``(N, C)``; those that are not drawn yet may be anything.
        """

    def write(self, row: int, column: int, pixel: Tensor) -> None:
        """Enter the finished pixel where later ones will see it, its features being what they are.

        Args:
            row: of the pixel.
            column: of the pixel.
            pixel: its encoded entries ``(N, C)``.
        """


class PixelLinear:
    """A masked 1×1 convolution at one pixel; the mask is applied once.

    Args:
        conv: the convolution.
    """

    def __init__(self, conv: MaskedConv2d) -> None:
        self.weight, self.bias = conv.live_weight().flatten(1), conv.bias

    def __call__(self, h: Tensor) -> Tensor:
        """``(N, in_channels)`` to ``(N, out_channels)``."""
        return F.linear(h, self.weight, self.bias)


class ConvWindow:
    """A masked convolution with the map of its inputs so far, for its outputs at one pixel or along one row.

    Args:
        conv: the convolution.
        rows: of the batch.
        height: of the image.
        width: of the image.
    """

    def __init__(self, conv: MaskedConv2d, rows: int, height: int, width: int) -> None:
        self.kernel, self.bias = conv.live_weight(), conv.bias
        self.flat = self.kernel.flatten(1)
        self.up, self.left = conv.kernel_size[0] // 2, conv.kernel_size[1] // 2
        # Zeros all around: the convolution's padding.
        self.map = self.kernel.new_zeros(rows, conv.in_channels, height + 2 * self.up, width + 2 * self.left)

    def write(self, row: int, column: int, h: Tensor) -> None:
        """Enter the input ``(N, in_channels)`` at a pixel."""
        self.map[:, :, row + self.up, column + self.left] = h

    def write_row(self, row: int, h: Tensor) -> None:
        """Enter the inputs ``(N, in_channels, 1, W)`` along a row."""
        self.map[:, :, row + self.up, self.left : self.left + h.shape[-1]] = h[:, :, 0]

    def at(self, row: int, column: int) -> Tensor:
        """The output ``(N, out_channels)`` at a pixel."""
        height, width = self.kernel.shape[2:]
        window = self.map[:, :, row : row + height, column : column + width]
        return F.linear(window.flatten(1), self.flat, self.bias)

    def row(self, row: int) -> Tensor:
        """The outputs ``(N, out_channels, 1, W)`` along a row."""
        out = F.conv2d(self.map[:, :, row : row + self.kernel.shape[2]], self.kernel, self.bias)
        return out[..., : self.map.shape[-1] - 2 * self.left]


class DiagonalState:
    """A diagonal BiLSTM's states in the row above and at the left.

    Args:
        layer: the layer.
        rows: of the batch.
        width: of the image.
        context: ``(N, context_dim)``.
    """

    def __init__(self, layer: DiagonalBiLSTM, rows: int, width: int, context: Tensor) -> None:
        (self.weight, self.bias), (self.back_weight, self.back_bias) = (
            direction.as_product(context) for direction in layer.input_to_state
        )
        (self.from_left, self.from_above), (self.from_right, self.back_from_above) = layer.state_to_state
        self.zero = layer.state_to_state.new_zeros(rows, layer.hidden)
        # Along the row: the gates' share that the row above gives, and the other direction's states in that row.
        self.given: Sequence[Tensor] = [self.bias] * width
        self.back = self.zero.expand(width, -1, -1)
        self.begin_row()

    def begin_row(self) -> None:
        """Nothing is to the left."""
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.state = self.cell = self.zero

    def at(self, column: int, h: Tensor) -> Tensor:
        """The layer's output ``(N, h)`` at the next pixel of the row, or the same once more, from its input there."""
        if column < len(self.inputs):  # the pixel again, with one more entry
            self.inputs.pop()
            self.outputs.pop()
        else:
            self.before = self.state, self.cell
        state, cell = self.before
        gates = torch.addmm(torch.addmm(self.given[column], h, self.weight), state, self.from_left)
        self.state, self.cell = lstm_update(gates, cell)
        self.inputs.append(h)
        self.outputs.append(self.state)
        return self.state + self.back[column]

    def end_row(self) -> None:
        """The row is finished: let the other direction go back through it."""
        given = self.back_bias + torch.stack(self.inputs) @ self.back_weight + self.back @ self.back_from_above
        state = cell = self.zero
        states = []
        for gates in reversed(given.unbind()):
            state, cell = lstm_update(torch.addmm(gates, state, self.from_right), cell)
            states.append(state)
        self.back = torch.stack(states[::-1])
        self.given = (self.bias + torch.stack(self.outputs) @ self.from_above).unbind()
        self.begin_row()


class RowState:
    """A Row LSTM's states and cells in the row above.

    Args:
        layer: the layer.
        rows: of the batch.
        height: of the image.
        width: of the image.
        context: ``(N, context_dim)``.
    """

    def __init__(self, layer: RowLSTM, rows: int, height: int, width: int, context: Tensor) -> None:
        self.layer, self.context = layer, context
        self.window = ConvWindow(layer.input_to_state.conv, rows, height, width)
        self.states = self.window.map.new_zeros(rows, layer.hidden, width)
        self.cells = torch.zeros_like(self.states)
        self.begin_row()

    def begin_row(self) -> None:
        """The row above is finished."""
        self.from_above = self.layer.state_to_state(self.states)
        self.cells_above = self.cells.clone()

    def at(self, row: int, column: int, h: Tensor) -> Tensor:
        """The layer's output ``(N, h)`` at a pixel from its input there."""
        self.window.write(row, column, h)
        to_state: InputToState = self.layer.input_to_state
        gates = to_state.arranged(self.window.at(row, column), self.context) + self.from_above[..., column]
        state, cell = lstm_update(gates, self.cells_above[..., column])
        self.states[..., column], self.cells[..., column] = state, cell
        return state


def head_linears(head: nn.Sequential) -> list[PixelLinear]:
    """The 1×1 layers of a model's head; a ReLU comes before each."""
    return [PixelLinear(layer) for layer in head if isinstance(layer, MaskedConv2d)]
