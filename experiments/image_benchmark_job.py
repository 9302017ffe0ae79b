"""How a row of the benchmarks of image flows is trained and scored; see ``image_benchmark.py``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import tyro
from image_benchmark_rows import Benchmark

from vi_flows.distributions.image_checks import check_samples, extreme_share, round_trip_error
from vi_flows.evaluation.nll import half_width
from vi_flows.records import Record, from_json, provenance, row_key
from vi_flows.settings import Positive
from vi_flows.table import Job, OutOfTimeError, Workplace
from vi_flows.training import ImageTrainConfig, Run, RunError, TrainingDivergedError
from vi_flows.training.budget import BudgetTrainer, Steps
from vi_flows.training.kept import KeptParts, code_of

NUM_DRAWS = 8
NUM_VALIDATIONS = 20
CHUNK = 250  # test images scored between two saves


@dataclass(frozen=True)
class Limits:
    """What a run may take beside its budget, and what it is scored by."""

    device: ClassVar[str] = "cpu"
    stack: ClassVar[int] = 1

    wall_seconds: float = math.inf
    """Stop (and save) every run that is still training so long after the start."""
    evaluate_seconds: float = 60.0
    """CPU seconds for the scores of test images; the rest of the images is left to `evaluate`."""
    num_samples: Positive = 256
    """Samples drawn for the check of stability."""
    began: tyro.conf.Suppress[float] = field(default_factory=time.time)


@dataclass(frozen=True)
class BudgetJob(Job[Limits]):
    """One row and one seed; in its folder are the run and its record.

    Attributes:
        benchmark: the table.
        row: of the table.
        seed: of everything.
        steps: the budget.
        only_scores: whether it is only scored, and finished with all test images.
    """

    source: ClassVar[None] = None
    progress_name: ClassVar[tuple[str, str]] = ("step", "step")
    score_name: ClassVar[tuple[str, str]] = ("bits_per_dim", "bits/dim")
    digits: ClassVar[int] = 4

    benchmark: Benchmark
    row: str
    seed: int
    steps: int
    only_scores: bool = False

    @property
    def name(self) -> str:
        """``glow-s0``."""
        return f"{self.row}-s{self.seed}"

    @property
    def total(self) -> float:
        """The budget."""
        return self.steps

    def record(self, workplace: Workplace) -> Path:
        """See :meth:`Job.record`."""
        return self.folder(workplace) / "record.json"

    def has_record(self, workplace: Workplace) -> bool:
        """See :meth:`Job.has_record`."""
        path = self.record(workplace)
        if not (path.exists() and self.only_scores):
            return path.exists()
        figures = Record.read(path).figures
        return figures["num_images"] == figures["num_test_images"]

    def settings(self, workplace: Workplace) -> ImageTrainConfig:
        """See :meth:`Job.settings`."""
        return self.benchmark.config(self.row, self.seed, workplace.data_root)

    def record_differs(self, workplace: Workplace) -> str:
        """See :meth:`Job.record_differs`; the budget counts too."""
        record = Record.read(self.record(workplace))
        found = record.settings.get("steps", record.figures["steps"])  # older ones had a budget of CPU time
        budget = "" if found == self.steps else f"{found} steps, not {self.steps}"
        return budget or super().record_differs(workplace)

    def train(self, others: Sequence[BudgetJob], workplace: Workplace, machine: Limits) -> None:
        """Train to the end of the budget; a run that diverges keeps the weights of before."""
        if self.only_scores:
            return
        run = Run.open_or_create(self.folder(workplace), self.settings(workplace))
        wall_seconds = machine.began + machine.wall_seconds - time.time()
        trainer = BudgetTrainer(run, Steps(self.steps), math.ceil(self.steps / NUM_VALIDATIONS), wall_seconds)
        size = sum(p.numel() for p in trainer.parameters)
        if size > self.benchmark.max_parameters:
            raise ValueError(f"{self.row} has {size} parameters; the table allows {self.benchmark.max_parameters}")
        trainer.resume()
        try:
            trainer.fit()
        except TrainingDivergedError as error:
            (run.folder / "diverged.txt").write_text(f"{error}\n", encoding="utf-8")
            if not (run.folder / "best.safetensors").exists():
                raise
        else:
            if not trainer.state["finished"]:
                raise OutOfTimeError(self.name)

    def evaluate(self, workplace: Workplace, machine: Limits) -> Record:
        """Score test images in parts, each kept as soon as it is there, check samples, and write the record.

        Raises:
            RunError: the record that is there is another run's, or the run is not trained to its end.
            OutOfTimeError: the time for scores is up; the record is of the images that are scored.
        """
        folder, path = self.folder(workplace), self.record(workplace)
        differs = self.record_differs(workplace) if path.exists() else ""
        if differs:
            raise RunError(f"{path} is of a run with {differs}")
        run = Run.open(folder, workplace.data_root)
        state = run.saved_state
        # What diverged once and was trained to its end by other code since then has not diverged.
        diverged = not state["finished"] and (folder / "diverged.txt").exists()
        if not (state["finished"] or diverged):
            raise RunError(f"{self.name} has {state['step']} of its {self.steps} steps: `run` trains it to its end")
        task = run.build_task()
        trained = run.load_weights(task, "best")
        density, data, test = task.module, run.data, run.data.split("clean").test
        made_by = provenance(data_sha256=data.sha256, trained_at_revision=run.trained_at)
        parts = KeptParts(path, {
            "weights": run.weights.sha256("best"), "data": data.sha256, "run": run.key, "num_draws": NUM_DRAWS,
            "chunk": CHUNK, "code": code_of(made_by),
        })  # fmt: skip
        scores = self._scores(parts, density, data.images(test), machine.evaluate_seconds)
        torch.manual_seed(0)
        samples = check_samples(density, machine.num_samples)
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"] | {"data_root": None}
        settings |= {"steps": self.steps, "num_draws": NUM_DRAWS}
        figures = {
            "benchmark": self.benchmark.name,
            "row": self.row,
            "seed": run.config.seed,
            "bits_per_dim": scores.double().mean().item(),
            "half_width": half_width(scores.double()),
            "num_images": len(scores),
            "num_test_images": len(test),
            "num_draws": NUM_DRAWS,
            "valid_bits_per_dim": trained["valid_loss"],
            "parameters": sum(p.numel() for p in density.parameters()),
            "budget_used": Steps(self.steps).share(state),
            "cpu_seconds": state["cpu_seconds"],
            "validation_cpu_seconds": state["validation_cpu_seconds"],
            "seconds": state["seconds"],
            "steps": state["step"],
            "images_seen": state["step"] * run.config.batch_size,
            "diverged": diverged,
            "round_trip_error": round_trip_error(density, data.images(test[:100])),
            "samples": samples._asdict(),
            "test_extreme_pixels": extreme_share(data.images(test), density.num_levels),
            "curve": [from_json(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()],
        }
        record = Record(
            kind="image_benchmark",
            key=row_key(f"{self.benchmark.name}-{self.name}", {"run": run.key, "steps": self.steps}),
            label=self.row,
            settings=settings,
            figures=figures,
            scores={"bits_per_dim": scores.numpy()},
            provenance=made_by,
        )
        record.write(path, overwrite=True)
        if len(scores) == len(test):
            parts.remove()
        if not self.has_record(workplace):
            raise OutOfTimeError(f"{len(scores)} of {len(test)} test images are scored")
        return record

    def _scores(self, parts: KeptParts, density: Any, images: torch.Tensor, seconds: float) -> torch.Tensor:
        """Bits/dim of the first images: of all that have been scored, and as many more as fit into the time."""
        began, scores = time.process_time(), []
        for first in range(0, len(images), CHUNK):

            @torch.no_grad()
            def score(first: int = first) -> dict[str, torch.Tensor]:
                torch.manual_seed(first)
                return {"bits_per_dim": density.bits_per_dim(images[first : first + CHUNK], NUM_DRAWS).float()}

            taken_up = parts.cpu_seconds_before
            scores.append(parts.part("test", first, score)["bits_per_dim"])
            made_now = parts.cpu_seconds_before == taken_up
            if made_now and time.process_time() - began > seconds:
                break
        return torch.cat(scores)

    def summary(self, record: Record) -> str:
        """Bits/dim, of how many images, and what was used."""
        figures = record.figures
        return (
            f"{figures['bits_per_dim']:.4f} bits/dim of {figures['num_images']} test images; "
            f"{100 * figures['budget_used']:.0f} % of the budget, {figures['steps']} steps"
        )
