r"""The recurrence of a diagonal BiLSTM over all pixels of a batch of images, with a written backward pass.

Van den Oord et al. 2016, *Pixel Recurrent Neural Networks*, section 3.2. Pixels stand diagonal by diagonal,
``(H·W, N, features)``: the pixels of a diagonal wait for those of the one before alone, so a diagonal is a few products
for the whole batch, and a pixel's two neighbours of the diagonal before are contiguous rows of it.

What autograd would make of the loop spends most of its time on copies: slices whose gradients are filled with zeros,
padding, gates of the whole image that leave the cache before they are used. Here the input's product is part of the
diagonal, and the backward pass keeps neither the gates' gradients nor the hyperbolic tangents of the cells.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vi_flows.recording import is_recorded, is_transformed

__all__ = ["GATES", "Diagonals", "diagonal_lstm", "diagonals", "lstm_update", "plain_diagonal_lstm"]

GATES = 4  # input, forget and output gate, candidate


class Diagonals(NamedTuple):
    """The pixels of an image by their diagonals ``t = row + column``, top row first.

    ``order``: their flat indices ``(H·W,)``; ``places``: where each pixel stands in it; ``mirrored``: for each in this
    order, where its mirror image in the same row stands; ``above_mirrored``: the same in the row above, plus one, and 0
    in the first row; ``ranges``: of every diagonal ``t = 0 … H+W−2`` its first row and the row after its last.
    """

    order: Tensor
    places: Tensor
    mirrored: Tensor
    above_mirrored: Tensor
    ranges: list[tuple[int, int]]


def diagonals(height: int, width: int, device: torch.device) -> Diagonals:
    """The diagonals of an ``H × W`` image, with their indices on a device."""
    # Kept, so that a step that is being recorded on a GPU finds them there and copies nothing; but not what a tracer or
    # a transform makes of them, which is good for nobody else.
    make = _made_diagonals if is_recorded() or is_transformed() else _kept_diagonals
    return make(height, width, device)


def _made_diagonals(height: int, width: int, device: torch.device) -> Diagonals:
    ranges = [(max(0, t - width + 1), min(height, t + 1)) for t in range(height + width - 1)]
    order = torch.tensor([r * width + t - r for t, (low, high) in enumerate(ranges) for r in range(low, high)])
    places = order.argsort()
    mirrored = places.unflatten(0, (height, width)).flip(1)
    above = F.pad(mirrored[:-1] + 1, (0, 0, 1, 0))
    mirrored, above = mirrored.flatten()[order], above.flatten()[order]
    return Diagonals(order.to(device), places.to(device), mirrored.to(device), above.to(device), ranges)


@functools.lru_cache(maxsize=64)
def _kept_diagonals(height: int, width: int, device: torch.device) -> Diagonals:
    with torch.inference_mode(False):  # what is made in it can't be saved for a later backward pass
        return _made_diagonals(height, width, device)


def lstm_update(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """``c' = σ(f) c + σ(i) tanh(g)`` and ``h' = σ(o) tanh(c')``; ``gates`` holds ``i, f, o, g`` in its last dimension.

    Returns:
        ``h'`` and ``c'``, of the shape of ``cell``.
    """
    size = cell.shape[-1]
    i, f, o = gates[..., : 3 * size].sigmoid().split(size, -1)
    cell = f * cell + i * gates[..., 3 * size :].tanh()
    return o * cell.tanh(), cell


def diagonal_lstm(x: Tensor, weight: Tensor, bias: Tensor, state_weight: Tensor, size: tuple[int, int]) -> Tensor:
    r"""States of LSTMs that go through images by diagonals, each in a direction of its own.

    At row ``r`` of a diagonal the gates are ``x W + b + h_left U_0 + h_above U_1``, of the states in rows ``r`` and
    ``r − 1`` of the diagonal before (zero outside of the image), and the cell that is kept is the left one's
    (:func:`lstm_update`).

    Args:
        x: inputs ``(D, H·W, N, C)`` of ``D`` LSTMs, in the order of :class:`Diagonals`.
        weight: ``W``, ``(D, C, 4 h)``.
        bias: ``b`` of every image, ``(D, N, 4 h)``.
        state_weight: ``(U_0, U_1)``, ``(D, 2, h, 4 h)``.
        size: ``(H, W)``.

    Returns:
        ``(D, H·W, N, h)``.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias, state_weight = (t.to(dtype) for t in (x, weight, bias, state_weight))
    run = plain_diagonal_lstm if is_recorded() or is_transformed() else _DiagonalLSTM.apply
    return run(x, weight, bias, state_weight, size)


def plain_diagonal_lstm(x: Tensor, weight: Tensor, bias: Tensor, state_weight: Tensor, size: tuple[int, int]) -> Tensor:
    """:func:`diagonal_lstm` by operations that autograd, functorch and recorders follow one by one."""
    ranges = diagonals(*size, x.device).ranges
    gates = (x.flatten(1, 2) @ weight).unflatten(1, x.shape[1:3]) + bias[:, None]
    state = cell = gates.new_zeros(len(x), 0, x.shape[2], state_weight.shape[2])
    before, outputs = 0, []
    for (low, high), part in zip(ranges, gates.split([b - a for a, b in ranges], 1), strict=True):
        # A row of zeros on both sides stands for what lies outside of the image.
        state, cell = (F.pad(s, (0, 0, 0, 0, 1, 1)) for s in (state, cell))
        left = slice(low - before + 1, high - before + 1)
        above = slice(low - before, high - before)
        total = part.flatten(1, 2)
        for place, u in zip((left, above), state_weight.unbind(1), strict=True):
            total = torch.baddbmm(total, state[:, place].flatten(1, 2), u)
        state, cell = lstm_update(total.unflatten(1, part.shape[1:3]), cell[:, left])
        outputs.append(state)
        before = low
    return torch.cat(outputs, 1)


class _Place(NamedTuple):
    """A diagonal in memory.

    ``own``: its rows among all pixels; ``kept``: among the states, where a row of zeros stands on both sides of each
    diagonal; ``left`` and ``above``: there, its pixels' neighbours on the diagonal before.
    """

    own: slice
    kept: slice
    left: slice
    above: slice


@functools.lru_cache(maxsize=64)
def _places(size: tuple[int, int]) -> list[_Place]:
    found: list[_Place] = []
    own, kept, before, low_before = 0, 1, 0, 0
    for low, high in diagonals(*size, torch.device("cpu")).ranges:
        length, left = high - low, before + low - low_before
        found.append(
            _Place(
                slice(own, own + length),
                slice(kept, kept + length),
                slice(left, left + length),
                slice(left - 1, left - 1 + length),
            )
        )
        before, low_before = kept, low
        own, kept = own + length, kept + length + 2
    return found


def _add_products(total: Tensor, a: Tensor, b: Tensor) -> None:
    # One by one: a batched product into a part of a tensor goes through a copy.
    for t, left, right in zip(total, a, b, strict=True):
        t.addmm_(left, right)


class _DiagonalLSTM(torch.autograd.Function):
    """The recurrence diagonal by diagonal in place; its second derivative is the plain one's."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, state_weight: Tensor, size: tuple[int, int]
    ) -> Tensor:
        directions, pixels, rows, _ = x.shape
        hidden, places = state_weight.shape[2], _places(size)
        gates = x.new_empty(directions, pixels, rows, GATES * hidden)
        states = x.new_zeros(directions, pixels + 2 * len(places), rows, hidden)
        cells, out = torch.zeros_like(states), x.new_empty(directions, pixels, rows, hidden)
        from_left, from_above = state_weight.unbind(1)
        with torch.autocast(x.device.type, enabled=False):
            for t, (own, kept, left, above) in enumerate(places):
                here, cell, state = gates[:, own], cells[:, kept], states[:, kept]
                here.copy_(bias[:, None])
                flat = here.flatten(1, 2)
                _add_products(flat, x[:, own].flatten(1, 2), weight)
                if t:
                    _add_products(flat, states[:, left].flatten(1, 2), from_left)
                    _add_products(flat, states[:, above].flatten(1, 2), from_above)
                here[..., : 3 * hidden].sigmoid_()
                here[..., 3 * hidden :].tanh_()
                i, f, o, g = here.split(hidden, -1)
                torch.mul(i, g, out=cell)
                if t:
                    cell.addcmul_(f, cells[:, left])
                torch.tanh(cell, out=state).mul_(o)
                out[:, own] = state
        ctx.size = size
        ctx.save_for_backward(x, weight, bias, state_weight, gates, states, cells)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, state_weight, gates, states, cells = ctx.saved_tensors
        operands = x, weight, bias, state_weight
        if (graph := torch.is_grad_enabled()) or is_transformed():  # second derivatives, or many gradients at once
            with torch.enable_grad():
                return (*_plain_gradients(operands, grad, ctx.needs_input_grad, ctx.size, graph), None)
        with torch.autocast(grad.device.type, enabled=False):
            return (*_gradients(*operands, gates, states, cells, grad, ctx.size), None)


def _gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    state_weight: Tensor,
    gates: Tensor,
    states: Tensor,
    cells: Tensor,
    grad: Tensor,
    size: tuple[int, int],
) -> tuple[Tensor, ...]:
    hidden, places = state_weight.shape[2], _places(size)
    grad_x, grad_weight, grad_bias, grad_state_weight = (
        torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (x, weight, bias, state_weight)
    )
    from_left, from_above = state_weight.mT.unbind(1)
    to_left, to_above = grad_state_weight.unbind(1)
    longest = max(own.stop - own.start for own, *_ in places)
    # Of the states and cells of the diagonal that comes next, with a row of zeros on both sides.
    grad_states, grad_cells = (x.new_zeros(len(x), longest + 2, x.shape[2], hidden) for _ in range(2))
    rest = slice(1, 1 + places[-1].own.stop - places[-1].own.start)
    buffer = x.new_empty(*gates[:, :longest].shape)
    for t in reversed(range(len(places))):
        own, kept, left, above = places[t]
        here = gates[:, own]
        i, f, o, g = here.split(hidden, -1)
        squashed = cells[:, kept].tanh()
        by_state = grad[:, own] + grad_states[:, rest]
        by_cell = torch.ops.aten.tanh_backward(by_state * o, squashed) + grad_cells[:, rest]
        by_gates = buffer[:, : own.stop - own.start]
        by_i, by_f, by_o, by_g = by_gates.split(hidden, -1)
        torch.mul(by_state, squashed, out=by_o)
        torch.mul(by_cell, g, out=by_i)
        torch.mul(by_cell, i, out=by_g)
        if t:
            torch.mul(by_cell, cells[:, left], out=by_f)
        else:
            by_f.zero_()
        by_three, three = by_gates[..., : 3 * hidden], here[..., : 3 * hidden]
        torch.ops.aten.sigmoid_backward.grad_input(by_three, three, grad_input=by_three)
        torch.ops.aten.tanh_backward.grad_input(by_g, g, grad_input=by_g)
        grad_bias += by_gates.sum(1)
        flat, inputs = by_gates.flatten(1, 2), x[:, own].flatten(1, 2)
        _add_products(grad_weight, inputs.mT, flat)
        _add_products(grad_x[:, own].flatten(1, 2), flat, weight.mT)
        if t:
            _add_products(to_left, states[:, left].flatten(1, 2).mT, flat)
            _add_products(to_above, states[:, above].flatten(1, 2).mT, flat)
            before = places[t - 1].kept.start
            rest = slice(1, 1 + places[t - 1].own.stop - places[t - 1].own.start)
            grad_states.zero_()
            grad_cells.zero_()
            # The rows of the diagonal before that this one's neighbours are; a row of zeros may be among them.
            by_left, by_above = (slice(1 + p.start - before, 1 + p.stop - before) for p in (left, above))
            torch.mul(by_cell, f, out=grad_cells[:, by_left])
            _add_products(grad_states[:, by_left].flatten(1, 2), flat, from_left)
            _add_products(grad_states[:, by_above].flatten(1, 2), flat, from_above)
    return grad_x, grad_weight, grad_bias, grad_state_weight


def _plain_gradients(
    operands: tuple[Tensor, ...], grad: Tensor, needed: tuple[bool, ...], size: tuple[int, int], create_graph: bool
) -> list[Tensor | None]:
    # Aliases, so that the derivative stops at this function's own inputs and still belongs to the outer graph.
    x, weight, bias, state_weight = inputs = [t.view_as(t) for t in operands]
    out = plain_diagonal_lstm(x, weight, bias, state_weight, size)
    wanted = [t for t, need in zip(inputs, needed[:4], strict=True) if need]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=create_graph))
    return [next(found) if need else None for need in needed[:4]]
