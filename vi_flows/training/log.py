"""What a run writes down epoch by epoch: lines of metrics, and TensorBoard's curves and samples."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from PIL import Image

from vi_flows.distributions.image import ImageOverflowError
from vi_flows.records import from_json, to_json, write_atomic
from vi_flows.training.checkpoint import CheckpointError
from vi_flows.training.kinds import KINDS
from vi_flows.training.run import Run
from vi_flows.training.tasks.base import Task

__all__ = ["RunLog"]

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
        except ImageOverflowError as error:  # of a flow that has hardly learned; the training goes on
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
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = from_json(line)
            except ValueError:  # the kill came in mid-line
                continue
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                raise CheckpointError(f"{self.path} holds a line that is no epoch's metrics: {line[:60]}; remove it")
            if entry["step"] <= step:
                kept.append(line)
        write_atomic(self.path, "".join(line + "\n" for line in kept))


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard is not installed; pip install 'vi_flows[tensorboard]'") from error
    return SummaryWriter
