"""Training steps from static buffers, which a GPU records once as CUDA graphs and then replays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vi_flows.training.loop import Trainer
from vi_flows.training.run import Run

__all__ = ["CapturedTrainer", "trainer_for"]

EAGER_STEPS = 3  # before recording: libraries, kernels and the optimiser set themselves up at their first calls


class CapturedTrainer(Trainer):
    """A trainer that launches two recorded graphs for a full minibatch on a GPU instead of some hundred operations.

    The gradients and the update are two graphs: between them the step's figures are read once, so that nothing is
    updated with a NaN, as in every training here. Steps of the KL warm-up and shorter minibatches are taken operation
    by operation. On the CPU nothing is recorded; the same functions run on the same buffers.

    The recording itself has been tried on no GPU yet: ``pytest -m gpu tests/training/test_captured.py`` compares it
    with eager steps.

    Args:
        run: of a VAE.
        progress: show a bar.
        tensorboard: write TensorBoard events too.
    """

    def __init__(self, run: Run, progress: bool = True, tensorboard: bool = False) -> None:
        super().__init__(run, progress, tensorboard)
        device = self.task.device
        rate = torch.tensor(self.config.learning_rate, device=device)
        self.optimizer = torch.optim.Adam(self.parameters, lr=rate, fused=True, capturable=True)
        self._rows = torch.empty(
            self.config.batch_size, self.task.train_rows.shape[1], dtype=self.task.train_rows.dtype, device=device
        )
        self._figures = torch.zeros(3, device=device)
        self._eager_steps = 0
        self._replays: tuple[Callable[[], Any], Callable[[], Any]] | None = None

    def _set_learning_rate(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(self.config.learning_rate_at(step, self.total_steps))

    def _gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        result = self.task.step(self._rows, 1.0)
        result.loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        self._figures.copy_(torch.stack([result.loss.detach(), result.bound, norm]))

    def _update(self) -> None:
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, self._figures[2])
        self.optimizer.step()

    def _record(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        if self.task.device.type != "cuda":
            return self._gradients, self._update
        graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[0]):
            self._gradients()
        with torch.cuda.graph(graphs[1], pool=graphs[0].pool()):
            self._update()
        # The graphs read and write the gradients they were recorded with: keep them from being freed.
        self._static_gradients = [p.grad for p in self.parameters]
        return graphs[0].replay, graphs[1].replay

    def _step(self, rows: Tensor) -> float:
        step = self.state["step"]
        whole = len(rows) == self.config.batch_size and self.config.kl_weight_at(step / self.steps_per_epoch) == 1.0
        if not whole or self._eager_steps < EAGER_STEPS:
            self._eager_steps += whole
            return super()._step(rows)
        if self._replays is None:
            self._replays = self._record()
        gradients, update = self._replays
        self._set_learning_rate(step)
        self._rows.copy_(rows)
        gradients()
        loss, bound, norm = self._figures.tolist()
        self._check(step, loss, bound, norm)
        update()
        self._advance(bound, len(rows))
        return bound


def trainer_for(run: Run, progress: bool = True, tensorboard: bool = False) -> Trainer:
    """The trainer that a run's settings ask for; arguments as for :class:`~vi_flows.training.Trainer`."""
    kind = CapturedTrainer if run.config.cuda_graph else Trainer
    return kind(run, progress, tensorboard)
