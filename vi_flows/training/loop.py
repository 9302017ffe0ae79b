"""The training loop: resumable to the bit, never training on after a NaN."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from vi_flows.objectives.step import OptimizerStep
from vi_flows.parallel import ALONE, Ranks
from vi_flows.progress import progress_bar
from vi_flows.settings import check_types
from vi_flows.training.average import WeightAverage
from vi_flows.training.checkpoint import (
    CheckpointError,
    first_not_finite,
    load_tensors,
    save_tensors,
)
from vi_flows.training.config import check_device
from vi_flows.training.errors import in_shell
from vi_flows.training.log import RunLog
from vi_flows.training.run import Run
from vi_flows.training.signals import TrainingInterrupted, deferred_signals
from vi_flows.training.snapshot import check_snapshot, restore, snapshot

__all__ = ["Trainer", "TrainingDivergedError", "TrainingInterrupted"]

EPOCH_CHECKPOINT_SECONDS = 2.0  # a checkpoint at the end of an epoch is left out while the last one is younger
TRACES = ("metrics.jsonl", "best.safetensors", "previous.safetensors", "checkpoint.safetensors")  # of a run that began


class TrainingDivergedError(FloatingPointError):
    """The loss or its gradient became NaN or infinite."""


class Trainer:
    """Trains a run's task to the end of its epochs.

    The order of the data is a function of (seed, epoch) alone; every other draw comes from torch's global generator,
    whose state is part of the checkpoint. A run killed at any moment therefore repeats, from its last checkpoint,
    the very same steps.

    Several processes may train one run: each takes its share of every minibatch, and the steps are those of one process
    up to rounding (:mod:`vi_flows.parallel`), whatever their number, which may be another one after a stop. The first
    process holds the lock, validates, and writes all files.

    Args:
        run: the run's folder and settings.
        progress: show a bar with bound, speed and time left.
        tensorboard: write TensorBoard events too (needs the extra ``tensorboard``).
        ranks: the processes that train the run.

    Raises:
        ValueError: a setting can't be had here, or the model can't be trained on one of the data's minibatches.
    """

    def __init__(self, run: Run, progress: bool = True, tensorboard: bool = False, ranks: Ranks = ALONE) -> None:
        check_types(Run, "; Run.open(folder) and Run.create(folder, config) make one", run=run)
        check_device(run.config.device)
        self.run, self.config, self.progress, self.ranks = run, run.config, progress and ranks.first, ranks
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        self.task = run.build_task()
        self.module = self.task.module
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.step = self.make_step(self.make_optimizer(self.parameters))
        self.average: WeightAverage | None = None
        self.rows = len(self.task.train_rows)
        self.config.check_batches(self.rows)
        self.steps_per_epoch = math.ceil(self.rows / self.config.batch_size)
        self.total_steps = self.steps_per_epoch * self.config.epochs
        # All that a resumed run needs besides tensors; sums are over the images (of sound, the samples) of the
        # unfinished epoch.
        self.state: dict[str, Any] = {
            "step": 0, "seconds": 0.0, "cpu_seconds": 0.0, "bound_sum": 0.0, "images": 0, "best": None,
            "finished": False, "data_sha256": run.data.sha256, "settings": run.distinguishing,
        }  # fmt: skip
        self.log = RunLog(run, tensorboard and ranks.first)
        self._last_save, self._save_seconds = time.monotonic(), 0.0

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What updates the parameters."""
        return self.step.optimizer

    def make_optimizer(self, parameters: Sequence[Tensor]) -> torch.optim.Adam:
        """AdamW, which is Adam where the weights don't decay."""
        decay, rate = self.config.weight_decay, self.config.learning_rate
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)

    def make_step(self, optimizer: torch.optim.Optimizer, stacked: bool = False) -> OptimizerStep:
        """The training step with this run's clipping, which stops the training at a number that is not finite."""
        clip = math.inf if self.config.clip_norm is None else self.config.clip_norm
        return OptimizerStep(optimizer, self.stop_diverged, clip, stacked, self.ranks)

    # State ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Draw the initial state of a new run."""
        torch.manual_seed(self.config.seed)
        self.task.initialize()
        self.run.load_start(self.task)
        if self.config.ema_decay is not None:
            self.average = WeightAverage(self.module, self.config.ema_decay, self.config.num_in_turn)
        with self.run.writing():
            self.save()

    def resume(self) -> None:
        """Go back to the last checkpoint; a run that was stopped before its first one starts again.

        Raises:
            CheckpointError: it is damaged, of another model, or gone while its metrics or weights are there; how to go
                on nevertheless.
            RunError: the settings or the data are not those that it was trained with.
        """
        path = self.run.checkpoints.newest
        begun = self.ranks.from_first(lambda: [name for name in TRACES if (self.run.folder / name).exists()])
        if not begun:
            return self.start()
        with self.run.offering_a_way():
            if path.name not in begun:
                raise CheckpointError(f"there is no checkpoint {path}, though {begun[0]} shows that the run had begun")
            tensors, state = load_tensors(path)
            self.run.check_settings(state)
            check_snapshot(path, tensors, state, self.state, self.total_steps, self.task.device)
        self.run.check_data(state)
        # Not known to the versions that wrote older checkpoints.
        younger = {name: self.state[name] for name in ("data_sha256", "settings")}
        self.state = {"cpu_seconds": None, **younger, **state}
        averaged = self.config.ema_decay is not None
        average = restore(tensors, self.module, self.optimizer, self.task.device, averaged)
        if self.config.ema_decay is not None:
            self.average = WeightAverage(self.module, self.config.ema_decay, self.config.num_in_turn)
            self.average.restore(average)
        if self.ranks.first:
            self.log.truncate(self.state["step"])

    def save(self) -> None:
        """Write the checkpoint: weights, average, optimizer, generators and bookkeeping in one file.

        Raises:
            TrainingDivergedError: a weight is NaN or infinite; the checkpoint of before stays.
        """
        self._check_weights()
        if not self.ranks.first:
            return
        begun = time.monotonic()
        tensors = snapshot(
            self.module, None if self.average is None else self.average.tensors, self.optimizer, self.task.device
        )
        self.run.checkpoints.write(tensors, self.state)
        self._last_save = time.monotonic()
        self._save_seconds = self._last_save - begun

    # Training ---------------------------------------------------------------------------------------------------

    def fit(self, until: int | None = None) -> dict[str, Any]:
        """Train to the end.

        Args:
            until: stop after so many steps of the whole run, with a checkpoint.

        Returns:
            The final bookkeeping: steps, seconds, the best validation loss and its epoch.

        Raises:
            TrainingDivergedError: a loss or gradient was NaN or infinite; nothing was updated with it.
            TrainingInterrupted: Ctrl-C or SIGTERM; the checkpoint is up to date.
            RunError: another process trains this run.
            ProcessLostError: another process that trains it with this one is gone.
        """
        with self.holding_the_run(), self.run.writing():
            return self._fit(until)

    @contextmanager
    def holding_the_run(self) -> Iterator[None]:
        """The run's lock, which the first process holds for all.

        Raises:
            RunUnusableError: somebody else holds it.
        """
        with ExitStack() as lock:
            with self.ranks.together():
                if self.ranks.first:
                    lock.enter_context(self.run.locked())
            yield

    def _fit(self, until: int | None) -> dict[str, Any]:
        begun, before = time.monotonic(), self.state["seconds"]
        cpu_begun, cpu_before = time.process_time(), self.state["cpu_seconds"]
        until = self.total_steps if until is None else min(until, self.total_steps)
        bar = progress_bar(
            total=self.total_steps * self.config.batch_size, initial=self.state["step"] * self.config.batch_size,
            unit="img", unit_scale=True, shown=self.progress, smoothing=0.05,
        )  # fmt: skip
        with bar, deferred_signals() as received:
            self.module.train()
            while self.state["step"] < until:
                for batch in self.batches():
                    bound = self.take_step(batch)
                    # Whoever was asked to stop, all stop; and all have worked.
                    reports = self.ranks.numbers(received[0] if received else 0, time.process_time() - cpu_begun)
                    stop = int(max(number for number, _ in reports))
                    self.state["seconds"] = before + time.monotonic() - begun
                    if cpu_before is not None:
                        self.state["cpu_seconds"] = cpu_before + sum(seconds for _, seconds in reports)
                    bar.update(self.config.batch_size)
                    if self.state["step"] % 20 == 0:
                        bar.set_postfix_str(f"bound {bound:.2f} {self.task.unit}", refresh=False)
                    last = self.state["step"] % self.steps_per_epoch == 0
                    if last:
                        break
                    arrived = self.state["step"] == until
                    if stop or arrived or time.monotonic() - self._last_save > self.config.checkpoint_seconds:
                        self.save()
                    if stop:
                        self._leave(stop)
                    if arrived:
                        return self.state
                self.end_epoch(bar)
                stop = stop or int(max(n for (n,) in self.ranks.numbers(received[0] if received else 0)))  # came since
                if self.state["step"] < self.total_steps and (stop or self.state["step"] == until):
                    self.save()
                    if stop:
                        self._leave(stop)
        return self.state

    def _leave(self, number: int) -> NoReturn:
        """Stop, once the first process has written its checkpoint.

        Raises:
            TrainingInterrupted: always.
        """
        self.ranks.gather(None)
        raise TrainingInterrupted(number, f"vi-flows train --resume {in_shell(self.run.folder)} goes on")

    def _check_weights(self) -> None:
        """The last update may have overflowed though its loss and gradient were finite: nothing is saved then."""
        bad = first_not_finite(self.module.named_parameters())
        if bad is not None:
            raise TrainingDivergedError(self._divergence(self.state["step"], f"{bad} is not finite"))

    def batches(self) -> Iterator[Tensor]:
        """Indices into ``task.train_rows`` of the minibatches that are left of this epoch."""
        epoch, done = divmod(self.state["step"], self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order = torch.randperm(self.rows, generator=generator)
        yield from order.split(self.config.batch_size)[done:]

    def take_step(self, batch: Tensor) -> float:
        """Train on one minibatch.

        Args:
            batch: from :meth:`batches`.

        Returns:
            The bound before the update, in the task's unit a row, for the progress bar.

        Raises:
            TrainingDivergedError: a figure was NaN or infinite; nothing was updated with it.
        """
        step = self.state["step"]
        self.set_learning_rate(step)
        weight = self.config.kl_weight_at(step / self.steps_per_epoch)
        particles = self.config.num_particles_at(step // self.steps_per_epoch)
        rows = self.task.train_rows[batch]
        with self.ranks.share(len(rows), self.task.row_dim) as share:
            result = self.task.step(rows[share.rows], weight, particles)
            parts = [share.part(mean, self.task.weigh, rows) for mean in result]
            figures = self.step(*parts)
        assert figures is not None  # stop_diverged returns nothing, it raises
        ((_, bound, _),) = figures
        self.advance(bound, self.task.weigh(rows))
        return bound

    def set_learning_rate(self, step: int) -> None:
        """Set the optimizer to the schedule's rate of ``step``."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(step, self.total_steps)

    def stop_diverged(self, figures: Sequence[Sequence[float]]) -> None:
        """The policy of every training: the first step whose loss, bound or gradient is not finite is the last.

        Raises:
            TrainingDivergedError: always.
        """
        ((_, bound, norm),) = figures
        raise TrainingDivergedError(self._divergence(self.state["step"], f"bound {bound}, gradient norm {norm}"))

    def advance(self, bound: float, weight: float) -> None:
        """Bookkeeping after an update with ``bound``, the mean over ``weight`` of what :meth:`Task.weigh` counts."""
        if self.average is not None:
            self.average.update(1 - self.average.decay_at(self.state["step"]))
        self.state["step"] += 1
        self.state["bound_sum"] += bound * weight
        self.state["images"] += weight

    def _divergence(self, step: int, found: str) -> str:
        checkpoint = self.run.checkpoints.newest
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint.exists() else "no checkpoint was written yet"
        return (
            f"step {step} (epoch {step // self.steps_per_epoch + 1}): {found}. "
            f"Nothing was saved of it; {kept}. Try a lower --learning-rate, --clip-norm 100, or --lr-warmup-steps."
        )

    # Epoch ends -------------------------------------------------------------------------------------------------

    @contextmanager
    def _evaluation_weights(self) -> Iterator[None]:
        """The averaged weights if there are any, in evaluation mode, with the generators left as they were."""
        devices = [self.task.device] if self.task.device.type == "cuda" else []
        with torch.random.fork_rng(devices), nullcontext() if self.average is None else self.average.in_place():
            self.module.eval()
            try:
                yield
            finally:
                self.module.train()

    def end_epoch(self, bar: tqdm) -> None:
        """Validate, keep the best weights, write the metrics and, unless one was just written, the checkpoint."""
        self._check_weights()
        self.ranks.check_equal(self.module.state_dict())
        if not self.ranks.first:
            self.state |= {"bound_sum": 0.0, "images": 0, "finished": self.state["step"] >= self.total_steps}
            return
        epoch = self.state["step"] // self.steps_per_epoch
        metrics = {
            "epoch": epoch,
            "step": self.state["step"],
            "train_bound": self.state["bound_sum"] / self.state["images"],
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "seconds": round(self.state["seconds"], 3),
        }
        self.state["bound_sum"], self.state["images"] = 0.0, 0
        finished = self.state["step"] >= self.total_steps
        if epoch % self.config.validate_every == 0 or finished:
            self.state["finished"] = finished
            loss = self.judge(epoch)
            if loss is not None:
                metrics["valid_loss"] = loss
                best = self.state["best"]["valid_loss"] if self.state["best"] else math.nan
                bar.set_description(f"valid {loss:.2f} (best {best:.2f})", refresh=False)
        self.log.add(metrics)
        # Short epochs share a checkpoint: writing takes at most a twentieth of the time.
        if finished or time.monotonic() - self._last_save > max(EPOCH_CHECKPOINT_SECONDS, 20 * self._save_seconds):
            self.save()

    def judge(self, epoch: int) -> float | None:
        """The validation loss of the weights that are evaluated; keep them where they are the best, or the last.

        Args:
            epoch: that is written beside them.
        """
        with self._evaluation_weights():
            torch.manual_seed(self.config.seed)
            loss = self.task.validate()
            # A loss that is not finite is never the best: no later one would compare as less than a NaN.
            best = math.nan if self.state["best"] is None else self.state["best"]["valid_loss"]
            if loss is not None and loss < (math.inf if math.isnan(best) else best):
                self.state["best"] = {"epoch": epoch, "valid_loss": loss}
                self._save_weights("best", epoch)
            if self.state["finished"]:
                self._save_weights("last", epoch)
            # Here, where the weights are those that count and the training's generators are put away.
            self.log.show(self.task, self.state["step"], self.state["finished"])
        return loss

    def _save_weights(self, name: str, epoch: int) -> None:
        state = {"epoch": epoch, "steps": self.state["step"]}
        state |= {figure: self.state[figure] for figure in ("seconds", "cpu_seconds", "data_sha256", "settings")}
        if name == "best":
            state["valid_loss"] = self.state["best"]["valid_loss"]
        save_tensors(self.run.folder / f"{name}.safetensors", self.module.state_dict(), state)
