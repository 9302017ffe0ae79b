"""Training within a budget of CPU time instead of a number of epochs: for comparisons at equal computation."""

from __future__ import annotations

import math
import time
from typing import Any

from vi_flows.training.loop import Trainer
from vi_flows.training.run import Run
from vi_flows.training.signals import TrainingInterrupted, deferred_signals

__all__ = ["BudgetTrainer"]


class BudgetTrainer(Trainer):
    """Trains a run until its steps have used up a budget of the process's CPU time.

    The schedule's progress is the share of the budget that is used, so a cosine reaches zero at its end whatever a step
    costs. Only steps count: validation, checkpoints and the start of the process don't. At the first step, every
    ``validate_seconds`` of the budget and at its end, or when the process is asked to stop, the weights (their average,
    if the run keeps one) are validated, the best are kept, and the checkpoint is written. Since the schedule follows a
    clock, two runs of one seed see the same data but are not equal to the bit.

    Args:
        run: the run's folder and settings; its ``epochs`` are an upper limit.
        cpu_seconds: the budget.
        validate_seconds: CPU seconds between validations.
        wall_seconds: time on the clock after which the trainer stops as if it had been asked to.

    Raises:
        ValueError: the budget is not positive.
    """

    def __init__(
        self, run: Run, cpu_seconds: float, validate_seconds: float = 60.0, wall_seconds: float = math.inf
    ) -> None:
        if not cpu_seconds > 0:
            raise ValueError(f"the budget must be positive, got {cpu_seconds} CPU seconds")
        super().__init__(run, progress=False)
        self.cpu_seconds, self.validate_seconds, self.wall_seconds = cpu_seconds, validate_seconds, wall_seconds
        self.state["cpu_seconds"] = 0.0
        self.state["validation_cpu_seconds"] = 0.0

    @property
    def used(self) -> float:
        """The share of the budget that is used, at most 1."""
        return min(1.0, self.state["cpu_seconds"] / self.cpu_seconds)

    def set_learning_rate(self, step: int) -> None:
        """The schedule's rate of ``step``, with the used share of the budget as its progress."""
        total = math.ceil(step / self.used) if self.used > 0 else self.total_steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(step, total)

    def _fit(self, until: int | None) -> dict[str, Any]:
        begun, before = time.monotonic(), self.state["seconds"]
        until = self.total_steps if until is None else min(until, self.total_steps)
        last = self.state["cpu_seconds"]
        with deferred_signals() as stop:
            self.module.train()
            while not self.state["finished"]:
                for batch in self.batches():
                    started = time.process_time()
                    self.take_step(batch)
                    self.state["cpu_seconds"] += time.process_time() - started
                    self.state["seconds"] = before + time.monotonic() - begun
                    self.state["finished"] = self.used >= 1.0 or self.state["step"] >= self.total_steps
                    leave = bool(stop) or time.monotonic() - begun > self.wall_seconds or self.state["step"] >= until
                    due = self.state["cpu_seconds"] - last >= self.validate_seconds or self.state["step"] == 1
                    if due or leave or self.state["finished"]:
                        last = self.state["cpu_seconds"]
                        self.validate()
                    if self.state["finished"]:
                        break
                    if stop:
                        raise TrainingInterrupted(stop[0])
                    if leave:
                        return self.state
        return self.state

    def validate(self) -> None:
        """Validate, keep the best weights, write a line of metrics and the checkpoint."""
        self._check_weights()
        started, epoch = time.process_time(), self.state["step"] // self.steps_per_epoch
        loss = self.judge(epoch)
        self.state["validation_cpu_seconds"] += time.process_time() - started
        metrics = {
            "epoch": epoch,
            "step": self.state["step"],
            "train_bound": self.state["bound_sum"] / max(self.state["images"], 1),
            "valid_loss": loss,
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "cpu_seconds": round(self.state["cpu_seconds"], 2),
            "seconds": round(self.state["seconds"], 2),
        }
        self.state["bound_sum"], self.state["images"] = 0.0, 0
        self.log.add(metrics)
        self.save()
