"""Training several models of one table row, which differ in their seeds, as one stacked model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from vi_flows.training.loop import Trainer
from vi_flows.training.run import Run
from vi_flows.training.stacked_layers import MemberStreams, stack_modules
from vi_flows.training.tasks.base import StackableTask

__all__ = ["StackedTrainer", "stacks_of"]


class StackedTrainer(Trainer):
    """Trains the VAEs of several runs at once: one forward and backward pass, one optimizer step for all.

    Each run keeps its own folder, seed, data order, random stream, checkpoint, metrics and weights, and takes the same
    steps as if it were trained alone, up to rounding: each of them can be resumed, evaluated and sampled by itself.
    What is saved is the overhead of many small operations, so that it pays for small models and on GPUs. A run's
    ``seconds`` are those of the whole stack.

    A stack killed while it wrote its checkpoints goes on with the runs that are behind, alone, until all are level.

    Args:
        runs: of VAEs; equal settings but for the seed.
        progress: show a bar for all of them.

    Raises:
        ValueError: there is no run, a run is not of a VAE or asks for a CUDA graph, the settings differ in more than
            the seed, or a layer can't be stacked.
    """

    def __init__(self, runs: Sequence[Run], progress: bool = True) -> None:
        if not runs:
            raise ValueError("there is no run to train")
        for run in runs:
            if not run.config.stackable:
                raise ValueError(f"{run.folder} can't be stacked: it is of the kind {run.config.kind}")
        if any(run.config.captured for run in runs):
            raise ValueError("a stack can't be recorded as a CUDA graph")
        for run in runs[1:]:
            same = replace(run.config, seed=runs[0].config.seed, data_root=runs[0].config.data_root)
            if same != runs[0].config:
                raise ValueError(f"{run.folder} and {runs[0].folder} differ in more than the seed")
            run.data = runs[0].data
        self.members = [Trainer(run, progress=False) for run in runs]
        super().__init__(runs[0], progress)
        self.cpu_states: list[Tensor] = []
        self.generators: list[torch.Generator] = []

    def _stack(self) -> None:
        """Share the members' weights and optimizers, once they are where they start from."""
        self.module = stack_modules([member.module for member in self.members])
        alone = cast("StackableTask", self.members[0].task)  # the configuration is stackable
        self.task = self._stacked_task = alone.with_module(self.module)
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.step = self.make_step(self.make_optimizer(self.parameters), stacked=True)
        for n, parameter in enumerate(self.parameters):
            states = [member.optimizer.state.get(member.parameters[n]) or {} for member in self.members]
            if all(states):
                self.optimizer.state[parameter] = {
                    key: value.clone() if key == "step" else torch.stack([state[key] for state in states])
                    for key, value in states[0].items()
                }
        self.average = None  # the members keep their own
        self.state = {**self.members[0].state, "seconds": max(member.state["seconds"] for member in self.members)}
        self._share_optimizer()

    def _share_optimizer(self) -> None:
        """Show the members their parts of the optimizer's state, for their checkpoints."""
        for n, parameter in enumerate(self.parameters):
            for m, member in enumerate(self.members):
                member.optimizer.state[member.parameters[n]] = {
                    key: value if key == "step" else value[m] for key, value in self.optimizer.state[parameter].items()
                }

    @contextmanager
    def _as_alone(self, m: int) -> Iterator[Trainer]:
        """Member ``m`` with the global generators in the states that it left them in."""
        member, generator, device = self.members[m], self.generators[m], self.task.device
        cuda = device.type == "cuda"
        with torch.random.fork_rng([device] if cuda else []):
            torch.set_rng_state(self.cpu_states[m] if cuda else generator.get_state())
            if cuda:
                torch.cuda.set_rng_state(generator.get_state(), device)
            yield member
            self.cpu_states[m] = torch.get_rng_state()
            generator.set_state(torch.cuda.get_rng_state(device) if cuda else self.cpu_states[m])

    def start(self) -> None:
        """Draw the initial states of new runs."""
        self._begin(lambda member: member.start())

    def resume(self) -> None:
        """Go back to the last checkpoints, and bring runs that are behind up to the others.

        Raises:
            CheckpointError: one is damaged, or of another model.
        """
        self._begin(lambda member: member.resume())

    def _begin(self, action: Callable[[Trainer], None]) -> None:
        device = self.task.device
        cuda = device.type == "cuda"
        for member in self.members:
            with torch.random.fork_rng([device] if cuda else []):
                action(member)
                self.cpu_states.append(torch.get_rng_state())
                state = torch.cuda.get_rng_state(device) if cuda else self.cpu_states[-1]
                self.generators.append(torch.Generator(device).set_state(state))
        furthest = max(member.state["step"] for member in self.members)
        for m, member in enumerate(self.members):
            if member.state["step"] < furthest:
                with self._as_alone(m):
                    member.fit(until=furthest)
        self._stack()

    def save(self) -> None:
        """Write every member's checkpoint."""
        self._share_optimizer()
        for m, member in enumerate(self.members):
            with self._as_alone(m):
                member.state |= {figure: self.state[figure] for figure in ("seconds", "cpu_seconds")}
                member.save()
        self._last_save = time.monotonic()

    def batches(self) -> Iterator[Tensor]:
        """Indices of the minibatches that are left of this epoch, ``(B, M)``: a column a member."""
        for batches in zip(*(member.batches() for member in self.members), strict=True):
            yield torch.stack(batches, 1)

    def stop_diverged(self, figures: Sequence[Sequence[float]]) -> None:
        """Stop for the first member whose figures are not finite.

        Raises:
            TrainingDivergedError: always.
        """
        for member, each in zip(self.members, figures, strict=True):
            if not all(math.isfinite(figure) for figure in each):
                member.stop_diverged([each])

    def take_step(self, batch: Tensor) -> float:
        """Train every member on its own minibatch; the mean of their bounds."""
        step = self.state["step"]
        self.set_learning_rate(step)
        rows = self.task.train_rows[batch]
        with MemberStreams(self.generators):
            weighted, bounds = self._stacked_task.row_bounds(
                rows,
                self.config.kl_weight_at(step / self.steps_per_epoch),
                self.config.num_particles_at(step // self.steps_per_epoch),
            )
        figures = self.step(-weighted.mean(0), bounds.mean(0))
        assert figures is not None  # stop_diverged returns nothing, it raises
        for member, (_, bound, _) in zip(self.members, figures, strict=True):
            member.advance(bound, len(batch))
        self.state["step"] += 1
        return sum(bound for _, bound, _ in figures) / len(figures)

    def end_epoch(self, bar: tqdm) -> None:
        """Every member's."""
        self._share_optimizer()
        for m, member in enumerate(self.members):
            with self._as_alone(m):
                member.set_learning_rate(self.state["step"] - 1)
                member.state |= {figure: self.state[figure] for figure in ("seconds", "cpu_seconds")}
                member.end_epoch(bar)
        self._last_save = time.monotonic()


def stacks_of(runs: Iterable[Run], size: int) -> list[list[Run]]:
    """The unfinished runs in stacks: equal settings but for the seed, and stopped at the same step.

    Args:
        runs: any.
        size: most runs of a stack.

    Raises:
        ValueError: ``size`` is less than 1.
    """
    if size < 1:
        raise ValueError(f"a stack holds at least 1 run, got {size}")
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        state = run.saved_state
        if not state["finished"]:
            # what can't be stacked is a group of its own
            key = (replace(run.config, seed=0), state["step"], None if run.config.stackable else run.folder)
            groups.setdefault(key, []).append(run)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]
