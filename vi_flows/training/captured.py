"""Training steps that a GPU records once as CUDA graphs and then replays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from vi_flows.parallel import ALONE, Ranks
from vi_flows.training.loop import Trainer
from vi_flows.training.run import Run

__all__ = ["CapturedTrainer", "trainer_for"]

WARM_UP_STEPS = 3  # before recording: libraries, kernels and the optimizer set themselves up at their first calls
READ_EVERY = 50  # steps between two looks at the device's figures


class CapturedTrainer(Trainer):
    """A trainer that launches one recorded graph a full minibatch on a GPU instead of some hundred operations.

    The graph picks its rows from the data on the device, takes learning rate and KL weight from tables, and updates
    weights, averages and figures: between two steps nothing is read back. A step whose loss, bound or gradient is not
    finite, and every one after it, updates no weight; the host finds it when it next looks at the figures (every 50
    steps, and before anything is saved). Shorter minibatches are taken operation by operation.

    Before recording some steps are taken for warmth, and all that they changed is put back: a resumed run replays the
    same graph from the same state as an uninterrupted one.

    On the CPU nothing is recorded; the same function runs on the same buffers.

    Args:
        run: of a kind whose step reads nothing back.
        progress: show a bar.
        tensorboard: write TensorBoard events too.
    """

    def __init__(self, run: Run, progress: bool = True, tensorboard: bool = False) -> None:
        super().__init__(run, progress, tensorboard)
        device, config = self.task.device, self.config
        self._halted = torch.zeros((), device=device)  # 1 once a step was not finite
        optimizer = self.step.optimizer
        # What a gradient scaler would set: where found_inf is 1, the fused update leaves everything as it was.
        optimizer.grad_scale = None  # type: ignore[attr-defined]  # PyTorch reads both and declares neither
        optimizer.found_inf = self._halted  # type: ignore[attr-defined]
        self._data = self.task.train_rows.to(device)
        steps = range(self.total_steps)
        self._rates = torch.tensor([config.learning_rate_at(s, self.total_steps) for s in steps], device=device)
        self._kl_weights = torch.tensor([config.kl_weight_at(s / self.steps_per_epoch) for s in steps], device=device)
        self._count = torch.zeros(1, dtype=torch.long, device=device)  # steps of the whole run
        self._slot = torch.zeros(1, dtype=torch.long, device=device)  # … and of this epoch
        whole = self.rows // config.batch_size
        self._order = torch.zeros(max(whole, 1), config.batch_size, dtype=torch.long, device=device)
        self._bound_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._figures = torch.zeros(4, dtype=torch.float64, device=device)  # step, loss, bound, norm of the bad step
        self._unread = 0
        self._bound = float("nan")
        self._replays: dict[tuple[bool, int], Callable[[], None]] = {}

    def make_optimizer(self, parameters: Sequence[Tensor]) -> torch.optim.Adam:
        """The ordinary trainer's, with its rate and counters on the device."""
        rate = torch.tensor(self.config.learning_rate, device=self.task.device)
        decay = self.config.weight_decay
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True, capturable=True)

    @property
    def _rate(self) -> Tensor:
        return self.optimizer.param_groups[0]["lr"]  # another tensor once a checkpoint was loaded

    # On the device ----------------------------------------------------------------------------------------------

    def _whole_step(self, warm: bool, num_particles: int) -> None:
        """One step from buffers to buffers; ``warm``: with the KL weight 1, else with the table's."""
        self._rate.copy_(self._rates.index_select(0, self._count)[0])
        rows = self._data.index_select(0, self._order.index_select(0, self._slot)[0])
        result = self.task.step(rows, 1.0 if warm else self._kl_weights.index_select(0, self._count), num_particles)
        norm = self.step.differentiate(result.loss)
        with torch.no_grad():
            figures = torch.stack([result.loss.detach(), result.bound, norm]).double()
            bad = ~figures.isfinite().all()
            first = bad & (self._halted == 0)
            self._figures.copy_(torch.where(first, torch.cat([self._count.double(), figures]), self._figures))
            self._halted.copy_(torch.where(bad, torch.ones_like(self._halted), self._halted))
            self.step.update(norm)
            self._bound_sum.add_(figures[1])
            if self.average is not None:
                self.average.update(self._average_weights.index_select(0, self._count)[0])
            self._count.add_(1)
            self._slot.add_(1)

    def _record(self, warm: bool, num_particles: int) -> Callable[[], None]:
        def step() -> None:
            self._whole_step(warm, num_particles)

        if self.task.device.type != "cuda":
            return step
        before, trained = self._snapshot(), bool(self.optimizer.state)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        self._put_back(before, trained)
        return graph.replay

    def _tensors(self) -> list[Tensor]:
        own = [self._rate, self._halted, self._count, self._slot, self._bound_sum, self._figures]
        kept = [*self.module.state_dict().values(), *(self.average.tensors if self.average else {}).values(), *own]
        return kept + [t for state in self.optimizer.state.values() for t in state.values()]

    def _snapshot(self) -> tuple[Tensor, list[Tensor]]:
        return torch.cuda.get_rng_state(self.task.device), [tensor.detach().clone() for tensor in self._tensors()]

    @torch.no_grad()
    def _put_back(self, before: tuple[Tensor, list[Tensor]], trained: bool) -> None:
        generator, values = before
        tensors = self._tensors()
        for tensor, value in zip(tensors, values, strict=trained):
            tensor.copy_(value)
        for tensor in tensors[len(values) :]:  # Adam's moments and counters, which the first step made
            tensor.zero_()
        torch.cuda.set_rng_state(generator, self.task.device)

    # On the host ------------------------------------------------------------------------------------------------

    def batches(self) -> Iterator[Tensor]:
        """As the ordinary trainer's; their order is put on the device first."""
        batches = list(super().batches())
        size, done = self.config.batch_size, self.state["step"] % self.steps_per_epoch
        whole = [batch for batch in batches if len(batch) == size]
        if whole:
            self._order[done : done + len(whole)].copy_(torch.stack(whole))
        self._slot.fill_(done)
        self._count.fill_(self.state["step"])
        yield from batches

    def take_step(self, batch: Tensor) -> float:
        """Train on one minibatch; the bound is that of the last look at the device's figures."""
        if len(batch) < self.config.batch_size:
            self.read_figures()
            self._rate.fill_(self.config.learning_rate_at(self.state["step"], self.total_steps))
            self._bound = super().take_step(batch)
            return self._bound
        warm = self.config.kl_weight_at(self.state["step"] / self.steps_per_epoch) == 1.0
        recorded = warm, self.config.num_particles_at(self.state["step"] // self.steps_per_epoch)
        if recorded not in self._replays:
            if self.average is not None:
                decays = [self.average.decay_at(s) for s in range(self.total_steps)]
                self._average_weights = 1 - torch.tensor(decays, device=self.task.device)
            self._replays[recorded] = self._record(*recorded)
        self._replays[recorded]()
        self.state["step"] += 1
        self._unread += 1
        if self._unread == READ_EVERY:
            self.read_figures()
        return self._bound

    def set_learning_rate(self, step: int) -> None:
        """The rate of ``step``, in the tensor that the recorded update reads."""
        self._rate.fill_(self.config.learning_rate_at(step, self.total_steps))

    def read_figures(self) -> None:
        """Wait for the device and enter what the steps since the last look have found.

        Raises:
            TrainingDivergedError: one of them was not finite; no weight was updated with it or after it.
        """
        if not self._unread:
            return
        total, halted = torch.stack([self._bound_sum, self._halted.double()]).tolist()
        if halted:
            step, *figures = self._figures.tolist()
            self.state["step"] = int(step)
            self.stop_diverged([figures])
        self._bound = total / self._unread
        self.state["bound_sum"] += total * self.config.batch_size
        self.state["images"] += self._unread * self.config.batch_size
        self._bound_sum.zero_()
        self._unread = 0

    def save(self) -> None:
        """Read the figures, then write the checkpoint."""
        self.read_figures()
        super().save()

    def end_epoch(self, bar: tqdm) -> None:
        """Read the figures, then end the epoch as the ordinary trainer."""
        self.read_figures()
        super().end_epoch(bar)


def trainer_for(run: Run, progress: bool = True, tensorboard: bool = False, ranks: Ranks = ALONE) -> Trainer:
    """The trainer that a run's settings ask for; arguments as for :class:`~vi_flows.training.Trainer`.

    Raises:
        ValueError: several processes are to train a run whose steps are recorded.
    """
    if not run.config.captured:
        return Trainer(run, progress, tensorboard, ranks)
    if ranks.size > 1:
        raise ValueError(
            f"a recorded CUDA graph belongs to one process, and there are {ranks.size}: leave --cuda-graph out, or "
            "train without torchrun"
        )
    return CapturedTrainer(run, progress, tensorboard)
