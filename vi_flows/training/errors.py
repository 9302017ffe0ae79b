"""What can be wrong with a run's folder."""

from __future__ import annotations

import shlex
from pathlib import Path

__all__ = [
    "RunError",
    "RunUnusableError",
    "in_shell",
]


class RunError(ValueError):
    """A run's folder does not fit what was asked."""


class RunUnusableError(RunError):
    """A run's folder is missing, damaged, or in the hands of another process."""


def in_shell(path: Path) -> str:
    """A path as a word of a command line that is offered."""
    return shlex.quote(str(path))
