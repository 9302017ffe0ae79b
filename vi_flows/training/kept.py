"""Parts of an evaluation in files, so that one that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

from vi_flows.evaluation import Parts
from vi_flows.training.checkpoint import CheckpointError, load_tensors, save_tensors
from vi_flows.training.errors import holding

__all__ = ["KeptParts", "code_of"]


def code_of(made_by: Mapping[str, Any]) -> list[str | None]:
    """The code that makes an evaluation's parts, for their identity; another one each time where it has been changed.

    Args:
        made_by: see :func:`~vi_flows.records.provenance`.
    """
    # Changed code is not known by its revision: nothing that it made before is taken up.
    changed = uuid4().hex if str(made_by["revision"]).endswith("-dirty") else None
    return [made_by["revision"], changed, made_by["vi_flows"], made_by["torch"]]


class KeptParts(Parts):
    """Parts in a folder beside the record that they are for.

    They are taken up only by an evaluation of the same ``identity``: another one finds none of them, and removes them.

    Args:
        record: the file to be written in the end; the folder is ``.NAME.parts`` beside it.
        identity: all that the figures depend on, JSON-ready: weights, data, settings, code, device.
    """

    def __init__(self, record: Path, identity: Mapping[str, Any]) -> None:
        self.record, self.folder = record, record.with_name(f".{record.stem}.parts")
        self.identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def part(self, name: str, first: int, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """See :class:`~vi_flows.evaluation.Parts`; a part that is damaged is made again.

        Raises:
            CheckpointWriteError: the part can't be written.
        """
        path = self.folder / f"{name}-{first}.safetensors"
        try:
            tensors, state = load_tensors(path)
            if state["identity"] == self.identity:
                self.seconds_before += state["seconds"]
                self.cpu_seconds_before += state["cpu_seconds"]
                return tensors
            self._clear()  # of other weights, settings or code, all of them
        except CheckpointError:
            pass
        begun = time.monotonic(), time.process_time()
        tensors = make()
        spent = {"seconds": time.monotonic() - begun[0], "cpu_seconds": time.process_time() - begun[1]}
        self.folder.mkdir(parents=True, exist_ok=True)
        save_tensors(path, tensors, {"identity": self.identity, **spent})
        return tensors

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder: another evaluation for the same record would remove these parts, or write the same files.

        Raises:
            RunUnusableError: another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with holding(self.folder, f"another evaluation is writing {self.record}"):
            try:
                yield
            finally:
                with suppress(OSError):
                    self.folder.rmdir()  # where nothing has been kept

    def _clear(self) -> None:
        for path in self.folder.iterdir():  # not the folder, whose lock is held
            path.unlink()

    @property
    def cost_before(self) -> dict[str, float]:
        """For a record: what the parts taken up had cost, where there were any."""
        if not self.seconds_before:
            return {}
        return {
            "seconds_before": round(self.seconds_before, 1), "cpu_seconds_before": round(self.cpu_seconds_before, 1),
        }  # fmt: skip

    def remove(self) -> None:
        """Remove the folder: its parts are in the record, or of no use."""
        shutil.rmtree(self.folder, ignore_errors=True)
