"""A bound on what a flow's networks see."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["squash"]

INPUT_BOUND = 8.0


def squash(x: Tensor) -> Tensor:
    """``8 tanh(x/8)``: close to ``x`` where normalised data are, and never beyond ±8.

    A network of rectifiers grows linearly away from its data. In a deep flow what one layer makes of an entry is the
    input of the next network, so without a bound each layer multiplies what the one before it got wrong.
    """
    return INPUT_BOUND * torch.tanh(x / INPUT_BOUND)
