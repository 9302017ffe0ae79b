"""Signals that wait for the end of a step, and what they end in."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["TrainingInterrupted", "deferred_signals"]


class TrainingInterrupted(KeyboardInterrupt):
    """Training was asked to stop; the checkpoint was written.

    Args:
        number: the signal that asked.
        way: what goes on, in words.
    """

    def __init__(self, number: int = signal.SIGINT, way: str = "the same command goes on") -> None:
        super().__init__()
        self.number, self.way = number, way


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of stopping in the middle of a step; a second one stops at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals go to whoever is there
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
