"""What a run writes down epoch by epoch: lines of metrics, and TensorBoard's curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vi_flows.records import write_atomic
from vi_flows.training.checkpoint import CheckpointError

__all__ = ["RunLog"]


class RunLog:
    """``metrics.jsonl`` in a run's folder, and TensorBoard's events beside it where they are asked for.

    Args:
        folder: the run's.
        tensorboard: write events into its folder ``tensorboard`` (needs the extra ``tensorboard``).

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool = False) -> None:
        self.path = folder / "metrics.jsonl"
        self.writer = _tensorboard_writer(folder / "tensorboard") if tensorboard else None

    def add(self, metrics: dict[str, Any]) -> None:
        """One line, and a point of each curve at the line's ``step``."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        if self.writer is not None:
            for name, value in metrics.items():
                self.writer.add_scalar(name, value, metrics["step"])

    def truncate(self, step: int) -> None:
        """Drop the lines of epochs that will be trained again: those after ``step``.

        Raises:
            CheckpointError: a line is no epoch's metrics.
        """
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the kill came in mid-line
                continue
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                raise CheckpointError(f"{self.path} holds a line that is no epoch's metrics: {line[:60]}")
            if entry["step"] <= step:
                kept.append(line)
        write_atomic(self.path, "".join(line + "\n" for line in kept))


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard is not installed; pip install 'vi_flows[log]'") from error
    return SummaryWriter(folder)
