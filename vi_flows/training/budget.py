"""Training within a budget, of steps or of CPU time, instead of a number of epochs: for comparisons of models."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vi_flows.training.errors import RunUnusableError
from vi_flows.training.loop import Trainer
from vi_flows.training.run import Run
from vi_flows.training.signals import TrainingInterrupted, deferred_signals

__all__ = ["Budget", "BudgetTrainer", "CPUSeconds", "Steps"]


@dataclass(frozen=True)
class Budget(ABC):
    """So much of something that a run's steps use up.

    Args:
        amount: how much.

    Raises:
        ValueError: the amount is not positive.
    """

    amount: float

    def __post_init__(self) -> None:
        if not self.amount > 0:
            raise ValueError(f"the budget must be positive, got {self}")

    @abstractmethod
    def spent(self, state: Mapping[str, Any]) -> float:
        """How much a run with this bookkeeping has used."""

    @abstractmethod
    def total_steps(self, state: Mapping[str, Any], step: int) -> int:
        """The number of steps that the budget will have held, as far as it is known at ``step``; 0 if it is not."""

    def __str__(self) -> str:
        return f"{self.amount:g} {type(self).__name__}"

    def share(self, state: Mapping[str, Any]) -> float:
        """The share that is used, at most 1."""
        return min(1.0, self.spent(state) / self.amount)


class Steps(Budget):
    """A number of training steps: the run is a function of its settings and seed, whatever the machine."""

    def spent(self, state: Mapping[str, Any]) -> float:
        """Steps taken."""
        return state["step"]

    def total_steps(self, state: Mapping[str, Any], step: int) -> int:
        """The budget itself."""
        return math.ceil(self.amount)


class CPUSeconds(Budget):
    """CPU time of the steps; validation, checkpoints and the start of the process don't count.

    Since the schedule follows a clock, two runs of one seed see the same data but are not equal to the bit; and a CPU
    second is another amount of work on another processor, and beside other processes.
    """

    def spent(self, state: Mapping[str, Any]) -> float:
        """CPU seconds of the steps."""
        return state["cpu_seconds"]

    def total_steps(self, state: Mapping[str, Any], step: int) -> int:
        """At the speed so far."""
        return math.ceil(step / self.share(state)) if self.spent(state) > 0 else 0


class BudgetTrainer(Trainer):
    """Trains a run until its steps have used up a budget.

    The schedule's progress is the share of the budget that is used, so a cosine reaches zero at its end whatever a step
    costs. At the first step, every ``validate_every`` of the budget and at its end, the weights (their average, if the
    run keeps one) are validated, the best are kept, and the checkpoint is written; it is also written when the process
    is asked to stop. A run that was stopped goes on as if it had not been, to the bit if the budget is of steps.

    Args:
        run: the run's folder and settings; its ``epochs`` are an upper limit.
        budget: what the steps may use.
        validate_every: of the budget, in its unit, between validations.
        wall_seconds: time on the clock after which the trainer stops as if it had been asked to.
    """

    def __init__(self, run: Run, budget: Budget, validate_every: float, wall_seconds: float = math.inf) -> None:
        super().__init__(run, progress=False)
        self.budget, self.validate_every, self.wall_seconds = budget, validate_every, wall_seconds
        self.state |= {"cpu_seconds": 0.0, "validation_cpu_seconds": 0.0, "budget": str(budget)}

    def resume(self) -> None:
        """See :meth:`Trainer.resume`.

        Raises:
            RunUnusableError: the run was begun with another budget, which its learning rates followed.
        """
        super().resume()
        begun = self.state.get("budget", "a budget that it does not say")
        if begun != str(self.budget):
            raise RunUnusableError(
                f"{self.run.folder} was begun with {begun}, not {self.budget}: go on with that, or move it away"
            )

    @property
    def used(self) -> float:
        """The share of the budget that is used, at most 1."""
        return self.budget.share(self.state)

    def set_learning_rate(self, step: int) -> None:
        """The schedule's rate of ``step``, with the used share of the budget as its progress."""
        total = self.budget.total_steps(self.state, step) or self.total_steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(step, total)

    def _fit(self, until: int | None) -> dict[str, Any]:
        begun, before = time.monotonic(), self.state["seconds"]
        until = self.total_steps if until is None else min(until, self.total_steps)
        with deferred_signals() as stop:
            self.module.train()
            while not self.state["finished"] and self.state["step"] < until:
                for batch in self.batches():
                    periods = self.budget.spent(self.state) // self.validate_every
                    started = time.process_time()
                    self.take_step(batch)
                    self.state["cpu_seconds"] += time.process_time() - started
                    self.state["seconds"] = before + time.monotonic() - begun
                    self.state["finished"] = self.used >= 1.0 or self.state["step"] >= self.total_steps
                    due = self.budget.spent(self.state) // self.validate_every > periods or self.state["step"] == 1
                    if due or self.state["finished"]:
                        self.validate()
                    if self.state["finished"]:
                        break
                    if stop or time.monotonic() - begun > self.wall_seconds or self.state["step"] >= until:
                        self.save()
                        if stop:
                            raise TrainingInterrupted(stop[0])
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
            **({} if loss is None else {"valid_loss": loss}),
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "cpu_seconds": round(self.state["cpu_seconds"], 2),
            "seconds": round(self.state["seconds"], 2),
        }
        self.state["bound_sum"], self.state["images"] = 0.0, 0
        self.log.add(metrics)
        self.save()
