"""Networks whose products are taken in another type."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["autocast_to"]


def autocast_to(dtype: torch.dtype | None, device_type: str) -> AbstractContextManager[object]:
    """Autocast of a network to ``dtype``; ``None`` leaves it in its parameters' type.

    Args:
        dtype: ``torch.bfloat16``, say.
        device_type: of the network's input.
    """
    return nullcontext() if dtype is None else torch.autocast(device_type, dtype)
