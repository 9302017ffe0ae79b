"""One thread at a time: Pyro's handlers, its switches and the random generators are those of the process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from types import TracebackType

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state

__all__ = ["alone", "preserved_generators"]

_LOCK = threading.RLock()


class alone(ContextDecorator):
    """While a thread runs a Pyro program within, others that want to wait; the same thread may enter again."""

    def __enter__(self) -> None:
        _LOCK.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        _LOCK.release()


@contextmanager
def preserved_generators(seed: int | None) -> Iterator[None]:
    """Seed the generators of Python, NumPy and PyTorch and put them back afterwards; ``None`` leaves all alone.

    One thread at a time. Gradients are on within, whatever is around.
    """
    with alone(), torch.inference_mode(False), torch.enable_grad():
        if seed is None:
            yield
            return
        state = get_rng_state()
        try:
            pyro.set_rng_seed(seed)
            yield
        finally:
            set_rng_state(state)
