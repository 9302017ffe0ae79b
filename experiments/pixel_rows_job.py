"""The rows of the autoregressive models' table, and how one is trained and scored; see ``pixel_rows.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from vi_flows.autoregressive.config import Diagonal, Gated, Made, PixelConfig, Residual, Row
from vi_flows.records import Record
from vi_flows.table import Job, Workplace
from vi_flows.training import Run
from vi_flows.training.captured import trainer_for
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.pixel import PixelTrainConfig

__all__ = ["ROWS", "SOURCES", "Device", "PixelJob"]

MNIST = PixelTrainConfig(dataset="binarized_mnist", lr_warmup_steps=200, ema_decay=0.999)
HALF = replace(MNIST, precision="bf16", cuda_graph=True)
RECURRENT = replace(MNIST, epochs=6, batch_size=200, learning_rate=2e-3, clip_norm=500.0, cuda_graph=True)
# One more epoch, of smaller minibatches, for a model that has seen few steps.
FINISH = replace(
    MNIST, epochs=1, batch_size=50, learning_rate=1e-3, lr_warmup_steps=50, ema_decay=0.99, clip_norm=500.0
)

ROWS: Mapping[str, PixelTrainConfig] = {
    "binarized_mnist-made500-direct-clean": replace(
        MNIST, epochs=40, validate_every=2, pixel=PixelConfig(Made(hidden_dims=(500,), direct=True))
    ),
    "binarized_mnist-made4000-direct-clean": replace(
        MNIST, epochs=30, validate_every=2, pixel=PixelConfig(Made(hidden_dims=(4000,), direct=True, dropout=0.3))
    ),
    "binarized_mnist-made4000-direct-networks4-clean": replace(
        MNIST, epochs=96, validate_every=8,
        pixel=PixelConfig(Made(hidden_dims=(4000,), direct=True, dropout=0.4, num_networks=4)),
    ),
    "binarized_mnist-made8000x8000-clean": replace(
        HALF, epochs=150, learning_rate=3e-4, validate_every=10,
        pixel=PixelConfig(Made(hidden_dims=(8000, 8000), num_masks=32)),
    ),
    "binarized_mnist-pixel_cnn-w128-b12-clean": replace(
        HALF, epochs=50, pixel=PixelConfig(Residual(width=128, num_blocks=12, dropout=0.1))
    ),
    "binarized_mnist-gated-w96-l10-clean": replace(
        HALF, epochs=32, pixel=PixelConfig(Gated(width=96, num_layers=10, dropout=0.2))
    ),
    "binarized_mnist-diagonal_bilstm-w128-l5-clean": replace(
        RECURRENT, pixel=PixelConfig(Diagonal(width=128, num_layers=5, dropout=0.1))
    ),
    "binarized_mnist-diagonal_bilstm-w128-l5-finish-clean": replace(
        FINISH, pixel=PixelConfig(Diagonal(width=128, num_layers=5, dropout=0.1))
    ),
    "binarized_mnist-row_lstm-w128-l5-clean": replace(
        RECURRENT, pixel=PixelConfig(Row(width=128, num_layers=5, dropout=0.1))
    ),
    "digits-gated-w32-l4-labels-clean": PixelTrainConfig(
        labels=True, epochs=60, batch_size=50, learning_rate=3e-3, lr_warmup_steps=50, ema_decay=0.99,
        validate_every=2, pixel=PixelConfig(Gated(width=32, num_layers=4, first_kernel=5, dropout=0.2)),
    ),
}  # fmt: skip
"""By name the settings of a run, with seed 0. The name says data set, model, sizes and protocol."""

SOURCES: Mapping[str, str] = {
    "binarized_mnist-diagonal_bilstm-w128-l5-finish-clean": "binarized_mnist-diagonal_bilstm-w128-l5-clean",
}
"""Rows that start from the weights of another one, of the same seed."""


@dataclass(frozen=True)
class Device:
    """What computes."""

    stack: ClassVar[int] = 1

    device: str = "cpu"
    """Torch device; processes share a GPU."""


@dataclass(frozen=True)
class PixelJob(Job[Device]):
    """One row and one seed.

    Attributes:
        row: of :data:`ROWS`.
        seed: of everything.
        epochs: of this run, as the row says, or as asked for instead.
        source: the run whose weights it starts from.
    """

    progress_name: ClassVar[tuple[str, str]] = ("epoch", "epoch")
    score_name: ClassVar[tuple[str, str]] = ("nll", "NLL")
    digits: ClassVar[int] = 2

    row: str
    seed: int
    epochs: int
    source: PixelJob | None = None

    @property
    def name(self) -> str:
        """``binarized_mnist-made500-direct-clean-e40-s0``; of a run that starts from another one, ``…-e6+1-s0``."""
        before = "" if self.source is None else f"{self.source.epochs}+"
        return f"{self.row}-e{before}{self.epochs}-s{self.seed}"

    @property
    def total(self) -> float:
        """Its epochs."""
        return self.epochs

    def record(self, workplace: Workplace) -> Path:
        """See :meth:`Job.record`."""
        return workplace.results / f"{self.name}.json"

    def settings(self, workplace: Workplace) -> PixelTrainConfig:
        """See :meth:`Job.settings`; one thread."""
        start = None if self.source is None else self.source.folder(workplace)
        return replace(
            ROWS[self.row], seed=self.seed, epochs=self.epochs, start_from=start, threads=1,
            data_root=workplace.data_root,
        )  # fmt: skip

    def _open(self, workplace: Workplace, machine: Device) -> Run:
        config = replace(self.settings(workplace), device=machine.device)
        return Run.open_or_create(self.folder(workplace), config)

    def train(self, others: Sequence[PixelJob], workplace: Workplace, machine: Device) -> None:
        """See :meth:`Job.train`."""
        run = self._open(workplace, machine)
        with run.locked():
            trainer = trainer_for(run, progress=False)
            trainer.resume()
            trainer.fit()

    def evaluate(self, workplace: Workplace, machine: Device) -> Record:
        """See :meth:`Job.evaluate`."""
        run = self._open(workplace, machine)
        return evaluate_run(run, record=self.record(workplace), progress=False)[0]

    def summary(self, record: Record) -> str:
        """NLL with its interval."""
        low, high = record.figures["interval"]
        return f"NLL {record.figures['nll']:.3f} [{low:.3f}, {high:.3f}] (exact)"
