"""What a run writes down epoch by epoch: lines of metrics, and TensorBoard's curves and samples."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vi_flows.distributions.image import ImageOverflowError
from vi_flows.records import from_json, to_json, write_atomic
from vi_flows.training.checkpoint import CheckpointError
from vi_flows.training.kinds import KINDS
from vi_flows.training.run import Run
from vi_flows.training.tasks.base import Task

__all__ = ["RunLog", "metrics_in"]

_log = logging.getLogger(__name__)

GRID = {"rows": 4, "columns": 8}


class RunLog:
    """``metrics.jsonl`` in a run's folder, and TensorBoard's events beside it where they are asked for.

    Args:
        run: whose.
        tensorboard: write events into its folder ``tensorboard`` (needs the extra ``tensorboard``).

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, run: Run, tensorboard: bool = False) -> None:
        self.run, self.path = run, run.folder / "metrics.jsonl"
        self._writer_class = _writer_class() if tensorboard else None
        self._writer: Any = None  # made when there is something to write, so that a refused run leaves nothing
        self._from_step: int | None = None
        self._drawn, self._seconds = 0.0, 0.0

    def _events(self) -> Any:
        if self._writer is None and self._writer_class is not None:
            # Curves of steps that are taken again after a stop are cut off there.
            self._writer = self._writer_class(self.run.folder / "tensorboard", purge_step=self._from_step)
        return self._writer

    def add(self, metrics: dict[str, Any]) -> None:
        """One line, and a point of each curve at the line's ``step``."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(metrics) + "\n")
        events = self._events()
        if events is not None:
            for name, value in metrics.items():
                if name != "step":
                    events.add_scalar(name, value, metrics["step"])
            events.flush()

    def show(self, task: Task, step: int, finished: bool) -> None:
        """What ``vi-flows sample`` draws, small, from the present weights.

        At the first call, at the end, and in between as often as a twentieth of the time allows.

        Args:
            task: with weights to draw from, in evaluation mode.
            step: of the training.
            finished: whether it is the last.
        """
        events, begun = self._events(), time.monotonic()
        if events is None or not (finished or begun - self._drawn > 20 * self._seconds):
            return
        kind = KINDS[self.run.config.kind]
        try:
            files = kind.draw(task, self.run.folder / "tensorboard" / "drawn", kind.drawing_settings(GRID))
        except ImageOverflowError as error:  # of a flow that has hardly learned
            events.add_text("samples", str(error), step)
            files = []
        except Exception as error:  # a picture is not worth a training
            _log.warning("nothing was drawn at step %d: %s; the training goes on", step, error)
            events.add_text("samples", str(error), step)
            files = []
        for file in files:
            if file.suffix == ".wav":
                from scipy.io import wavfile

                rate, sound = wavfile.read(file)
                events.add_audio(file.stem, sound[None].astype(np.float32) / 32768, step, rate)
            else:
                with Image.open(file) as picture:
                    pixels = np.asarray(picture)
                events.add_image(file.stem, pixels, step, dataformats="HW" if pixels.ndim == 2 else "HWC")
        events.flush()
        self._drawn = time.monotonic()
        self._seconds = self._drawn - begun

    def truncate(self, step: int) -> None:
        """Drop the lines of epochs that will be trained again: those after ``step``.

        Raises:
            CheckpointError: a line is no epoch's metrics.
        """
        self._from_step = step + 1
        if not self.path.exists():
            return
        kept = []
        for line, entry in _lines(self.path):
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                shown = line.decode()[:60]
                raise CheckpointError(f"{self.path} holds a line that is no epoch's metrics: {shown}; remove it")
            if entry["step"] <= step:
                kept.append(line)
        with self.run.writing():
            write_atomic(self.path, b"".join(line + b"\n" for line in kept))


def metrics_in(path: Path) -> list[dict[str, Any]]:
    """The epochs that a run has written down; none where there is no such file.

    Args:
        path: of its ``metrics.jsonl``.
    """
    return [entry for _, entry in _lines(path) if isinstance(entry, dict)] if path.exists() else []


def _lines(path: Path) -> Iterator[tuple[bytes, Any]]:
    """Lines and what they say; one that is being written, or was when the process was killed, is left out."""
    for line in path.read_bytes().splitlines():
        try:
            entry = from_json(line.decode())
        except (ValueError, RecursionError):  # no JSON, or not even text
            continue
        yield line, entry


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard is not installed; pip install 'vi_flows[tensorboard]'") from error
    return SummaryWriter
