"""Locks on files and folders that the system frees with their holder, however that ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["LockedError", "is_locked", "locked"]

TRIES, PAUSE_SECONDS = 20, 0.01


class LockedError(RuntimeError):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made if it isn't there, or of a folder.

    Args:
        path: which; its folder is there.

    Raises:
        LockedError: another process holds it. Whoever only looks (:func:`is_locked`) has it for an instant, and is
            waited for: twenty tries, a hundredth of a second apart.
    """
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT)
    try:
        for _ in range(TRIES):
            if _try_lock(handle, fcntl.LOCK_EX):
                break
            time.sleep(PAUSE_SECONDS)
        else:
            raise LockedError(f"another process holds {path}")
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock of a file or folder; nobody does of one that isn't there."""
    if not path.exists():
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        return not _try_lock(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def _try_lock(handle: int, operation: int) -> bool:
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
