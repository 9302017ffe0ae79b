"""What is trained: a task turns rows of data into a loss, and says how good the present weights are."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vi_flows.data import ImageData, binarize
from vi_flows.objectives import elbo_bound, iwae_bound
from vi_flows.train.config import TrainConfig
from vi_flows.vae import build_vae

__all__ = ["StepResult", "Task", "VAETask"]

BOUNDS = {"elbo": elbo_bound, "iwae": iwae_bound}


class StepResult(NamedTuple):
    """A training step's loss (a scalar with a graph) and the unweighted bound (a scalar), both a row."""

    loss: Tensor
    bound: Tensor


class Task(Protocol):
    """A module and its data. Rows travel as bytes; the task turns them into what the module sees."""

    module: nn.Module
    train_rows: Tensor
    unit: str

    def initialise(self) -> None:
        """Data-dependent initialisation, once, before the first step."""

    def step(self, rows: Tensor, kl_weight: float) -> StepResult:
        """Loss of a minibatch of ``train_rows``."""

    def validate(self) -> float | None:
        """The mean validation loss, lower is better, or ``None`` where the protocol has no validation rows."""


class VAETask:
    """A VAE on binary (or dynamically binarised) images.

    Args:
        config: settings of the run.
        data: the images.
    """

    unit = "nats"

    def __init__(self, config: TrainConfig, data: ImageData) -> None:
        self.config = config
        self.data = data
        self.device = torch.device(config.device)
        splits = data.split(config.protocol)
        self.train_rows = splits.train
        self.dynamic = data.binarization == "dynamic"
        self.valid_rows = data.binarized(splits.valid).to(self.device) if len(splits.valid) else None
        self.module = build_vae(config.vae, data.num_pixels).to(self.device)

    def initialise(self) -> None:
        """Set the decoder's output bias from the mean training image."""
        if self.config.output_bias:
            self.module.model.set_output_bias(self.data.means(self.train_rows).mean(0).to(self.device))

    def step(self, rows: Tensor, kl_weight: float) -> StepResult:
        """The negative bound of a minibatch, averaged over rows; a dynamic set is binarised anew each time."""
        means = self.data.means(rows).to(self.device)
        x = binarize(means) if self.dynamic else means
        terms = self.module.log_weight_terms(x, self.config.num_particles)
        bound = BOUNDS[self.config.objective]
        loss = -bound(terms, kl_weight).mean()
        if kl_weight == 1.0:
            return StepResult(loss, -loss.detach())
        with torch.no_grad():
            return StepResult(loss, bound(terms).mean())

    @torch.no_grad()
    def validate(self) -> float | None:
        """Mean negative ELBO over the validation rows, in nats."""
        if self.valid_rows is None:
            return None
        total = 0.0
        for rows in self.valid_rows.split(1000):
            terms = self.module.log_weight_terms(rows, self.config.valid_particles)
            total -= elbo_bound(terms).double().sum().item()
        return total / len(self.valid_rows)
