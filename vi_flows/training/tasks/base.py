"""What is trained: a task turns rows of data into a loss, and says how good the present weights are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vi_flows.evaluation import NOT_KEPT, Parts, evenly, spread_evenly
from vi_flows.settings import Positive, Seed, check_settings

__all__ = [
    "BinaryDrawingSettings", "DrawingSettings", "Evaluation", "EvaluationSettings", "PictureTask", "StackableTask",
    "StepResult", "Task",
]  # fmt: skip


@dataclass(frozen=True)
class EvaluationSettings:
    """How trained weights are judged: what every kind of run is told; a kind that draws has a class of its own."""

    split: Literal["test", "valid"] = "test"
    """Rows to score; `valid` while choosing settings."""
    limit: Positive | None = None
    """Score only so many rows, spread evenly over all; the record names them."""
    seed: Seed = 0
    """Of all draws."""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def words(self) -> list[str]:
        """What the name of a record's file says of it, beside the run's."""
        words = [] if self.split == "test" else [self.split]
        return words + ([] if self.limit is None else [f"spread{self.limit}"])

    def places(self, size: int) -> Tensor:
        """Which of a split's ``size`` rows are scored: all, or :func:`~vi_flows.evaluation.spread_evenly` of them."""
        return spread_evenly(size, size if self.limit is None else self.limit)

    def chosen(self, rows: Tensor) -> Tensor:
        """The rows at these places, of a whole split."""
        return rows if self.limit is None else evenly(rows, self.limit)

    def tightness(self, score: str) -> dict[str, Any]:
        """The options, with their values, on which it depends how close a bound comes to the likelihood; here none.

        Args:
            score: its name in the record.
        """
        return {}


@dataclass(frozen=True)
class DrawingSettings:
    """What is drawn from trained weights: what every kind of run is told."""

    rows: Positive = 10
    """Rows of the grid."""
    columns: Positive = 10
    """Columns of the grid."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class BinaryDrawingSettings(DrawingSettings):
    """What is drawn from models of binary pixels."""

    binary: bool = False
    """Draw pixels instead of showing their means."""


class StepResult(NamedTuple):
    """A training step's loss (a scalar with a graph) and the unweighted bound (a scalar), both a row."""

    loss: Tensor
    bound: Tensor


class Evaluation(NamedTuple):
    """What an evaluation found: the figures of its record, JSON-ready, and the scores they are the means of.

    ``scores`` holds one float32 vector a figure, an image an entry, in the order of the split. A vector that is of some
    of the scored images alone has their places among those beside it: ``ais_image`` for ``ais_nll`` and its like.
    """

    figures: dict[str, Any]
    scores: dict[str, Tensor]


E = TypeVar("E", bound=EvaluationSettings, contravariant=True)
D = TypeVar("D", bound=DrawingSettings, contravariant=True)


class Task(Protocol[E]):
    """A module and its data. Rows travel as bytes; the task turns them into what the module sees."""

    train_rows: Tensor
    unit: str
    device: torch.device
    row_dim: int
    """The dimension of a step's random draws that counts the rows."""

    @property
    def module(self) -> nn.Module:
        """What is trained, saved and loaded."""

    def initialize(self) -> None:
        """Data-dependent initialization, once, before the first step."""

    def step(self, rows: Tensor, kl_weight: float | Tensor, num_particles: int) -> StepResult:
        """Loss of a minibatch of ``train_rows``, from ``num_particles`` draws a row where the task draws."""

    def weigh(self, rows: Tensor) -> float:
        """What the loss of these rows is a mean over: their number, where all weigh the same."""

    def validate(self) -> float | None:
        """The mean validation loss, lower is better, or ``None`` where the protocol has no validation rows."""

    def evaluate(self, rows: Tensor, settings: E, progress: bool, parts: Parts = NOT_KEPT) -> Evaluation:
        """The figures of a record and their scores.

        Args:
            rows: a whole split: the one binary draw of a dynamic set is that of the split.
            settings: of the kind's class in :data:`~vi_flows.training.kinds.KINDS`; which rows count says ``chosen``.
            progress: show a bar.
            parts: where a task that takes long finds what it had done before it was stopped.
        """

    def report(self, record: dict[str, Any]) -> list[str]:
        """The record's figures for people, a line each."""


class StackableTask(Task[E], Protocol):
    """A task whose module can be that of several models at once; a configuration says so by ``stackable``."""

    def with_module(self, module: nn.Module) -> StackableTask[E]:
        """The same task on the same data with another module."""

    def row_bounds(self, rows: Tensor, kl_weight: float | Tensor, num_particles: int) -> tuple[Tensor, Tensor]:
        """Weighted and unweighted bounds of every row, without their mean."""


class PictureTask(Protocol[D]):
    """A task on images, which can be shown."""

    def pictures(self, settings: D) -> dict[str, Tensor]:
        """Grids to draw by name, each ``(N, C, H, W)`` in [0, 1] with ``settings.columns`` images a row."""
