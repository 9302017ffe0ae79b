r"""LSTMs over images that see only earlier pixels.

Van den Oord et al. 2016, *Pixel Recurrent Neural Networks*, section 3. Both go through the image in few large products,
one a diagonal or one a row, for the whole batch.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vi_flows.nn.masked import ContextBias, MaskedConv2d

__all__ = ["DiagonalBiLSTM", "Diagonals", "RowLSTM", "diagonals"]

GATES = 4  # input, forget and output gate, candidate


class Diagonals(NamedTuple):
    """The pixels of an image by their diagonals ``t = row + column``, top row first.

    ``order``: their flat indices ``(H·W,)``; ``places``: where each pixel stands in it; ``ranges``: of every diagonal
    ``t = 0 … H+W−2`` its first row and the row after its last.
    """

    order: Tensor
    places: Tensor
    ranges: list[tuple[int, int]]


@functools.lru_cache(maxsize=64)
def diagonals(height: int, width: int, device: torch.device) -> Diagonals:
    """The diagonals of an ``H × W`` image, with their indices on a device."""
    # Kept, so that a step that is being recorded on a GPU finds them there and copies nothing.
    ranges = [(max(0, t - width + 1), min(height, t + 1)) for t in range(height + width - 1)]
    order = torch.tensor([r * width + t - r for t, (low, high) in enumerate(ranges) for r in range(low, high)])
    return Diagonals(order.to(device), order.argsort().to(device), ranges)


def lstm_update(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """``c' = σ(f) c + σ(i) tanh(g)`` and ``h' = σ(o) tanh(c')``; ``gates`` holds ``i, f, o, g`` in its last dimension.

    Returns:
        ``h'`` and ``c'``, of the shape of ``cell``.
    """
    size = cell.shape[-1]
    i, f, o = gates[..., : 3 * size].sigmoid().split(size, -1)
    cell = f * cell + i * gates[..., 3 * size :].tanh()
    return o * cell.tanh(), cell


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


class DiagonalBiLSTM(nn.Module):
    r"""LSTMs from both upper corners along the diagonals: together a pixel sees itself and all pixels before it.

    From the left the state at ``(r, c)`` is made of those at ``(r, c−1)`` and ``(r−1, c)``, the two neighbours on the
    diagonal before: the paper's column-wise convolution of size 2 on the skewed map (section 3.2). The other direction
    is the same on the mirrored image, with weights of its own; its output goes down by one row before it is added, for
    it has seen what is right of the pixel.

    Only pixels of the image are computed, not the skewed map's empty corners; both directions share each product.

    Args:
        in_channels: of the input, a multiple of ``data_channels``.
        hidden: ``h``, a multiple of ``data_channels``.
        data_channels: see :class:`~vi_flows.nn.MaskedConv2d`.
        context_dim: size of the context.
    """

    def __init__(self, in_channels: int, hidden: int, data_channels: int, context_dim: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.input_to_state = nn.ModuleList(
            InputToState(in_channels, hidden, 1, data_channels, context_dim) for _ in range(2)
        )
        bound = 1 / math.sqrt(hidden)
        # Direction, where from (left, above), and the product's two sides.
        self.state_to_state = nn.Parameter(torch.empty(2, 2, hidden, GATES * hidden).uniform_(-bound, bound))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, h, H, W)``."""
        rows, _, height, width = x.shape
        order, places, ranges = diagonals(height, width, x.device)
        left, right = (gates(x, context) for gates in self.input_to_state)
        gates = torch.stack([left, right.flip(1)]).flatten(1, 2).index_select(1, order)
        state = cell = gates.new_zeros(2, 0, rows, self.hidden)
        before, outputs = 0, []
        for (low, high), part in zip(ranges, gates.split([b - a for a, b in ranges], 1), strict=True):
            # A row of zeros on both sides stands for what lies outside of the image.
            state, cell = (F.pad(s, (0, 0, 0, 0, 1, 1)) for s in (state, cell))
            own = slice(low - before + 1, high - before + 1)
            above = slice(low - before, high - before)
            total = part.flatten(1, 2)
            for place, weight in zip((own, above), self.state_to_state.unbind(1), strict=True):
                total = torch.baddbmm(total, state[:, place].flatten(1, 2), weight)
            state, cell = lstm_update(total.unflatten(1, (high - low, rows)), cell[:, own])
            outputs.append(state)
            before = low
        left, right = torch.cat(outputs, 1).index_select(1, places).unflatten(1, (height, width))
        right = F.pad(right.flip(1), (0, 0, 0, 0, 0, 0, 1, 0))[:height]
        return (left + right).permute(2, 3, 0, 1)


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
