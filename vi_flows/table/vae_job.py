"""The jobs of the VAE tables: a row, a seed, and the job that it starts from."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from vi_flows.records import Record
from vi_flows.settings import NonNegative, Positive, check_settings
from vi_flows.table.job import Job, Workplace
from vi_flows.table.rows import Row
from vi_flows.training import Run
from vi_flows.training.captured import trainer_for
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.stacked import StackedTrainer, stacks_of
from vi_flows.training.tasks.vae import VAEEvaluationSettings, VAETrainConfig
from vi_flows.vae import AISSettings, RefinementSettings

__all__ = ["Machine", "VAEJob"]


@dataclass(frozen=True)
class Machine:
    """What computes."""

    device: str = "cpu"
    """Torch device; processes share a GPU."""
    cuda_graph: bool = True
    """Record training steps on a GPU and replay them."""
    num_samples: Positive = 5000
    """Importance samples a test image."""
    ais_images: NonNegative = 0
    """Anneal so many test images too, spread evenly over all (AIS, with the settings of `vi-flows evaluate --ais`);
    0 for none."""
    refine: NonNegative = 0
    """Sample also from the guide refined for each image by so many steps (`vi-flows evaluate --refine`); 0: don't."""

    stack: Positive = 1
    """Seeds of a row that one process trains as one stacked model; it can't be recorded on a GPU."""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def records_steps(self) -> bool:
        """Whether training steps are recorded and replayed."""
        return self.cuda_graph and self.stack == 1 and self.device.startswith("cuda")


@dataclass(frozen=True)
class VAEJob(Job[Machine]):
    """One run of a row.

    Attributes:
        row: what is trained.
        seed: of everything.
        epochs: of this run, as the recipe says or as asked for instead.
        source: the run whose weights it starts from.
    """

    progress_name: ClassVar[tuple[str, str]] = ("epoch", "epoch")
    score_name: ClassVar[tuple[str, str]] = ("nll", "NLL")
    digits: ClassVar[int] = 2

    row: Row
    seed: int
    epochs: int
    source: VAEJob | None = None

    @property
    def name(self) -> str:
        """``binarized_mnist-g1-plain-clean-e800-s0``; of a run that starts from another one, ``…-e800+100-s0``."""
        before = "" if self.source is None else f"{self.source.epochs}+"
        return f"{self.row.name}-e{before}{self.epochs}-s{self.seed}"

    @property
    def total(self) -> float:
        """Its epochs."""
        return self.epochs

    @property
    def stack_key(self) -> Hashable | None:
        """Seeds of a row are trained together, where each starts from fresh weights."""
        return (self.row, self.epochs) if self.source is None else None

    def record(self, workplace: Workplace) -> Path:
        """What a finished job leaves; ablations in a folder of their own."""
        folder = workplace.results / "ablation" if self.row.change else workplace.results
        return folder / f"{self.name}.json"

    def settings(self, workplace: Workplace) -> VAETrainConfig:
        """See :meth:`Job.settings`."""
        return self.config(workplace)

    def config(self, workplace: Workplace, device: str = "cpu", cuda_graph: bool = False) -> VAETrainConfig:
        """The run's settings, with one thread on a CPU."""
        start = None if self.source is None else self.source.folder(workplace)
        return replace(
            self.row.with_epochs(self.epochs), seed=self.seed, start_from=start, device=device, threads=1,
            cuda_graph=cuda_graph, data_root=workplace.data_root,
        )  # fmt: skip

    def open(self, workplace: Workplace, machine: Machine) -> Run:
        """The run, new or as it was left.

        Raises:
            RunError: see :meth:`~vi_flows.training.Run.open_or_create`.
        """
        config = self.config(workplace, machine.device, machine.records_steps)
        return Run.open_or_create(self.folder(workplace), config)

    def train(self, others: Sequence[VAEJob], workplace: Workplace, machine: Machine) -> None:
        """See :meth:`Job.train`."""
        for stack in stacks_of([job.open(workplace, machine) for job in (self, *others)], machine.stack):
            with ExitStack() as locks:
                for run in stack:
                    locks.enter_context(run.locked())
                alone = len(stack) == 1
                trainer = trainer_for(stack[0], progress=False) if alone else StackedTrainer(stack, progress=False)
                trainer.resume()
                trainer.fit()

    def evaluate(self, workplace: Workplace, machine: Machine) -> Record:
        """See :meth:`Job.evaluate`."""
        ais = AISSettings(images=machine.ais_images) if machine.ais_images else None
        refine = RefinementSettings(machine.refine) if machine.refine else None
        settings = VAEEvaluationSettings(split=self.row.split, num_samples=machine.num_samples, ais=ais, refine=refine)
        record, _ = evaluate_run(
            self.open(workplace, machine), settings, record=self.record(workplace), progress=False,
            paper_row=self.row.paper_row,
        )  # fmt: skip
        return record

    def summary(self, record: Record) -> str:
        """NLL with its interval, and ELBO."""
        low, high = record.figures["interval"]
        return f"NLL {record.figures['nll']:.3f} [{low:.3f}, {high:.3f}], ELBO {record.figures['elbo']:.3f}"
