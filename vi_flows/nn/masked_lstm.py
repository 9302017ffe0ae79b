r"""LSTMs over images that see only earlier pixels.

Van den Oord et al. 2016, *Pixel Recurrent Neural Networks*, section 3. Both go through the image in few large products,
one a diagonal or one a row, for the whole batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vi_flows.nn.diagonal_lstm import GATES, diagonal_lstm, diagonals, lstm_update
from vi_flows.nn.masked import ContextBias, MaskedConv2d
from vi_flows.nn.typed import ModuleListOf

__all__ = ["DiagonalBiLSTM", "InputToState", "RowLSTM", "from_diagonals", "to_diagonals"]


class InputToState(nn.Module):
    """The gates' share that comes from the input, masked (type B), with the context's share; the forget bias is 1.

    Args:
        in_channels: of the input.
        hidden: ``h``, a multiple of ``data_channels``.
        kernel_width: odd; the kernel has one row.
        data_channels: see :class:`~vi_flows.nn.MaskedConv2d`.
        context_dim: size of the context.
    """

    def __init__(self, in_channels: int, hidden: int, kernel_width: int, data_channels: int, context_dim: int) -> None:
        super().__init__()
        self.data_channels = data_channels
        self.conv = MaskedConv2d(in_channels, GATES * hidden, (1, kernel_width), "B", data_channels)
        self.context = ContextBias(context_dim, GATES * hidden)
        with torch.no_grad():
            assert self.conv.bias is not None
            self.conv.bias.unflatten(0, (data_channels, GATES, -1))[:, 1] = 1.0

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(H, W, N, 4 h)``, gate by gate, each in the order of the image's channels."""
        out = self.context(self.conv(x), context)
        # The mask's groups come first in the convolution's features, the gates first in the recurrence's.
        return out.unflatten(1, (self.data_channels, GATES, -1)).permute(4, 5, 0, 2, 1, 3).flatten(3)

    def arranged(self, convolved: Tensor, context: Tensor) -> Tensor:
        """The gates ``(N, 4 h)`` at one pixel, from the convolution's output ``(N, 4 h)`` there."""
        out = self.context(convolved, context)
        return out.unflatten(1, (self.data_channels, GATES, -1)).transpose(1, 2).flatten(1)

    def as_product(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """``W`` ``(in_channels, 4 h)`` and ``b`` ``(N, 4 h)`` of the gates ``x W + b`` at a pixel, for a 1×1 kernel."""
        assert self.conv.bias is not None
        weight = self.conv.live_weight().flatten(1).mT
        columns = weight.unflatten(1, (self.data_channels, GATES, -1)).transpose(1, 2).flatten(1)
        return columns, self.arranged(self.conv.bias.expand(len(context), -1), context)


class DiagonalBiLSTM(nn.Module):
    r"""LSTMs from both upper corners along the diagonals: together a pixel sees itself and all pixels before it.

    From the left the state at ``(r, c)`` is made of those at ``(r, c−1)`` and ``(r−1, c)``, the two neighbours on the
    diagonal before: the paper's column-wise convolution of size 2 on the skewed map (section 3.2). The other direction
    is the same on the mirrored image, with weights of its own; its output goes down by one row before it is added, for
    it has seen what is right of the pixel.

    Only pixels of the image are computed, not the skewed map's empty corners; both directions share each operation.

    Args:
        in_channels: of the input, a multiple of ``data_channels``.
        hidden: ``h``, a multiple of ``data_channels``.
        data_channels: see :class:`~vi_flows.nn.MaskedConv2d`.
        context_dim: size of the context.
    """

    def __init__(self, in_channels: int, hidden: int, data_channels: int, context_dim: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.input_to_state = ModuleListOf(
            InputToState(in_channels, hidden, 1, data_channels, context_dim) for _ in range(2)
        )
        bound = 1 / math.sqrt(hidden)
        # Direction, where from (left, above), and the product's two sides.
        self.state_to_state = nn.Parameter(torch.empty(2, 2, hidden, GATES * hidden).uniform_(-bound, bound))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, h, H, W)``."""
        size = x.shape[2], x.shape[3]
        return from_diagonals(self.along_diagonals(to_diagonals(x), context, size), size)

    def along_diagonals(self, x: Tensor, context: Tensor, size: tuple[int, int]) -> Tensor:
        """The same for ``(H·W, N, in_channels)`` in the order of :class:`~vi_flows.nn.diagonal_lstm.Diagonals`."""
        found = diagonals(*size, x.device)
        weights, biases = zip(*(layer.as_product(context) for layer in self.input_to_state), strict=True)
        inputs = torch.stack([x, x.index_select(0, found.mirrored)])
        left, right = diagonal_lstm(inputs, torch.stack(weights), torch.stack(biases), self.state_to_state, size)
        return left + F.pad(right, (0, 0, 0, 0, 1, 0)).index_select(0, found.above_mirrored)


def to_diagonals(x: Tensor) -> Tensor:
    """``(N, C, H, W)`` to ``(H·W, N, C)`` in the order of :class:`~vi_flows.nn.diagonal_lstm.Diagonals`."""
    return x.flatten(2).permute(2, 0, 1).index_select(0, diagonals(x.shape[2], x.shape[3], x.device).order)


def from_diagonals(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of :func:`to_diagonals`; ``size`` is ``(H, W)``."""
    return x.index_select(0, diagonals(*size, x.device).places).unflatten(0, size).permute(2, 3, 0, 1)


class RowLSTM(nn.Module):
    r"""An LSTM from the top down that goes a row at a time: a pixel sees itself and a triangle above it.

    The gates are a masked one-row convolution of the input and a convolution of the row of states above (section 3.1).

    Args:
        in_channels: of the input, a multiple of ``data_channels``.
        hidden: ``h``, a multiple of ``data_channels``.
        data_channels: see :class:`~vi_flows.nn.MaskedConv2d`.
        context_dim: size of the context.
        kernel_size: of both convolutions, odd (3 in the paper).

    Raises:
        ValueError: the kernel is even.
    """

    def __init__(
        self, in_channels: int, hidden: int, data_channels: int, context_dim: int, kernel_size: int = 3
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.input_to_state = InputToState(in_channels, hidden, kernel_size, data_channels, context_dim)
        # All of the row above is known, so that nothing of it is masked.
        self.state_to_state = nn.Conv1d(hidden, GATES * hidden, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, h, H, W)``."""
        gates = self.input_to_state(x, context).transpose(1, 2)
        state = cell = gates.new_zeros(*gates.shape[1:3], self.hidden)
        outputs = []
        for part in gates:
            total = part + self.state_to_state(state.mT).mT
            state, cell = lstm_update(total, cell)
            outputs.append(state)
        return torch.stack(outputs).permute(1, 3, 0, 2)
