"""Who works on a run: a lock that the system frees with its holder, and a note that outlives it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from vi_flows.locks import LockedError, is_locked, locked
from vi_flows.records import from_json, to_json, write_atomic

__all__ = ["Claim", "HeldError", "is_held", "last_note"]


class HeldError(RuntimeError):
    """Another process works on the run."""


def _path(runs: Path, name: str, kind: str) -> Path:
    return runs / ".claims" / f"{name}.{kind}"


class Claim:
    """A run that is this process's own, until it says so or dies.

    Args:
        runs: folder of the runs.
        name: of the run.
    """

    def __init__(self, runs: Path, name: str) -> None:
        self.runs, self.name = runs, name

    @contextmanager
    def held(self) -> Iterator[Claim]:
        """Hold the run.

        Raises:
            HeldError: another process does.
        """
        path = _path(self.runs, self.name, "lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as lock:
            try:
                lock.enter_context(locked(path))
            except LockedError as error:
                raise HeldError(f"another process works on {self.name}") from error
            yield self

    def note(self, state: str, **more: Any) -> None:
        """Write down what is being done, or how it ended.

        Args:
            state: ``training``, ``evaluating``, ``done``, ``stopped`` or ``failed``.
            more: JSON-ready.
        """
        what = {"state": state, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), **more}
        write_atomic(_path(self.runs, self.name, "json"), to_json(what) + "\n")


def is_held(runs: Path, name: str) -> bool:
    """Whether a living process holds the run."""
    return is_locked(_path(runs, name, "lock"))


def last_note(runs: Path, name: str) -> dict[str, Any]:
    """What was written down last, ``{"state": "new"}`` or, of a note that can't be read, ``failed`` with the reason."""
    path = _path(runs, name, "json")
    if not path.exists():
        return {"state": "new"}
    try:
        found = from_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("state"), str):
        return {"state": "failed", "error": f"the note {path} can't be read: delete it, and run the row again"}
    return {"error": "it does not say why", **found}
