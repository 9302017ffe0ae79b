"""What is computed in another type than that of its tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["autocast_to", "own_precision", "with_32_bits"]


def autocast_to(dtype: torch.dtype | None, device_type: str) -> AbstractContextManager[object]:
    """Autocast of a network to ``dtype``; ``None`` leaves it in its parameters' type.

    Args:
        dtype: ``torch.bfloat16``, say.
        device_type: of the network's input.
    """
    return nullcontext() if dtype is None else torch.autocast(device_type, dtype)


def own_precision(device_type: str) -> AbstractContextManager[object]:
    """Within, an autocast around rounds nothing; what a layer chose for its own networks (:func:`autocast_to`) stays.

    For what must be undone exactly.

    Args:
        device_type: of what is computed.
    """
    return torch.autocast(device_type, enabled=False)


def with_32_bits(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, those of 16 bits as float32: PyTorch solves no equations and transforms no signals in 16.

    What is computed from them goes back by ``.to``.
    """
    return tuple(tensor.float() if torch.finfo(tensor.dtype).bits < 32 else tensor for tensor in tensors)
