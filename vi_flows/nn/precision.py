"""Networks whose products are taken in another type."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["autocast_to", "own_precision"]


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
