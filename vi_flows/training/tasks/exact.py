"""What tasks share whose models have an exact likelihood: autoregressive ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from vi_flows.progress import progress_bar

__all__ = ["ExactTask"]


class ExactTask(ABC):
    """An autoregressive model: nothing is drawn, training may take its products in bfloat16, tests never do.

    A kind writes :meth:`log_probs`, and sets ``device``.

    Attributes:
        rows_scored: rows at once, without gradients.
        row_dim: see :class:`~vi_flows.training.tasks.base.Task`.

    Args:
        device: where the model and its data are.
        low_precision: whether training steps and validations take their products in bfloat16.
    """

    rows_scored: int
    row_dim = 0

    def __init__(self, device: torch.device, low_precision: bool) -> None:
        self.device, self.low_precision = device, low_precision

    @abstractmethod
    def log_probs(self, rows: Tensor) -> Tensor:
        """Log-likelihoods of rows in nats, ``(N,)``, as a trained model is judged."""

    def initialize(self) -> None:  # noqa: B027
        """Nothing, where no part of the initial weights depends on the data."""

    def weigh(self, rows: Tensor) -> float:
        """The number of rows."""
        return len(rows)

    def precision(self) -> AbstractContextManager[None]:
        """Products in bfloat16 where the run asks for it: for training steps and validations."""
        # No cache of cast weights: a recorded step would go on using those of its recording.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision, cache_enabled=False)

    def no_context(self, rows: int) -> Tensor:
        """The context of ``rows`` rows for a model without one."""
        return torch.zeros(rows, 0, device=self.device)

    @torch.no_grad()
    def scores(self, rows: Tensor, progress: bool = False) -> Tensor:
        """:meth:`log_probs` of many rows, float64 on the CPU."""
        parts = progress_bar(rows.split(self.rows_scored), unit="batch", shown=progress)
        return torch.cat([self.log_probs(part).float() for part in parts]).double().cpu()

    def exact_scores(self, rows: Tensor, progress: bool = False) -> Tensor:
        """:meth:`scores` in float32, without TF32."""
        cudnn = torch.backends.cudnn
        with cudnn.flags(enabled=True, benchmark=cudnn.benchmark, allow_tf32=False):
            return self.scores(rows, progress)
