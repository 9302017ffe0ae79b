"""What can be wrong with a run's folder."""

from __future__ import annotations

__all__ = ["RunError", "RunUnusableError"]


class RunError(ValueError):
    """A run's folder does not fit what was asked."""


class RunUnusableError(RunError):
    """A run's folder is missing, damaged, or in the hands of another process."""
