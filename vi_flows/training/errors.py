"""What can be wrong with a run's folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vi_flows.locks import LockedError, locked

__all__ = [
    "RunError",
    "RunUnusableError",
    "holding",
    "in_shell",
]


class RunError(ValueError):
    """A run's folder does not fit what was asked."""


class RunUnusableError(RunError):
    """A run's folder is missing, damaged, or in the hands of another process."""


@contextmanager
def holding(folder: Path, doing: str) -> Iterator[None]:
    """Hold the lock of a folder; the system frees it with the process, however that ends.

    Args:
        folder: which.
        doing: what a process that holds it is doing, as ``another process is training it``.

    Raises:
        RunUnusableError: another process holds it.
    """
    with ExitStack() as lock:
        try:
            lock.enter_context(locked(folder))
        except LockedError as error:
            raise RunUnusableError(f"{doing}; wait for it, or stop it") from error
        yield


def in_shell(path: Path) -> str:
    """A path as a word of a command line that is offered."""
    return shlex.quote(str(path))
