"""Some of a data set's rows, spread evenly over all: data may be sorted, and the first ones are then of one class."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["evenly", "spread_evenly"]


def spread_evenly(size: int, count: int) -> Tensor:
    """``count`` places of ``size``, or all: ``⌊(i + ½) size / count⌋``, shape ``(min(size, count),)``.

    Static MNIST's test images begin with a thousand zeros; of its places at equal distances a tenth are of each class.
    """
    count = min(size, count)
    return (2 * torch.arange(count) + 1) * size // (2 * count)


def evenly(rows: Tensor, count: int) -> Tensor:
    """The rows at these places, ``(min(N, count), …)``; where that is all of them, the rows themselves."""
    return rows if count >= len(rows) else rows[spread_evenly(len(rows), count).to(rows.device)]
