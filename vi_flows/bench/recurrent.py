"""A row about PixelRNN: its recurrence differentiated by autograd, and with the backward pass that is written out."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vi_flows.bench.measure import Measurement, Work, compare
from vi_flows.nn.diagonal_lstm import GATES, diagonal_lstm, plain_diagonal_lstm

__all__ = ["autograd_over_written", "recurrence_passes"]


def recurrence_passes(width: int, size: tuple[int, int], num_images: int) -> tuple[Work, Work]:
    """A training pass of one layer's two directions: states, and gradients by the input and all weights.

    Args:
        width: features of the input, twice those of the states.
        size: ``(H, W)``.
        num_images: rows.

    Returns:
        By autograd, and by the written backward pass.
    """
    torch.manual_seed(0)
    hidden, pixels = width // 2, size[0] * size[1]
    shapes = (
        (2, pixels, num_images, width),
        (2, width, GATES * hidden),
        (2, num_images, GATES * hidden),
        (2, 2, hidden, GATES * hidden),
    )
    leaves = [(torch.randn(shape) / width**0.5).requires_grad_() for shape in shapes]
    cotangent = torch.randn(2, pixels, num_images, hidden)

    def by(recurrence: Callable[..., torch.Tensor]) -> Work:
        def work() -> None:
            for leaf in leaves:
                leaf.grad = None
            recurrence(*leaves, size).backward(cotangent)

        return work

    return by(plain_diagonal_lstm), by(diagonal_lstm)


def autograd_over_written(
    rounds: int, width: int = 128, size: tuple[int, int] = (28, 29), num_images: int = 50
) -> tuple[Measurement, str]:
    """A training pass by autograd over one by the written backward pass; the default is a layer of the MNIST row."""
    measured = compare(*recurrence_passes(width, size, num_images), rounds)
    return measured, f"{num_images} images of {size[0]}x{size[1]}, width {width}"
