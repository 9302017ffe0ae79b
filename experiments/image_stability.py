"""Whether samples and inverses of trained image flows can be trusted, with today's bounds and with those of before.

    VI_FLOWS_DATA=… python -m experiments.image_stability run      # trains what the records lack
    python -m experiments.image_stability render                   # the records as a Markdown table

Every row of :data:`MODELS` is trained for the same CPU time (``BudgetTrainer``: validation chooses the weights), with
the sizes and learning rates of ``image_benchmark.py``. Then 10 000 samples are drawn at temperature 1, test images are
taken to their latents and back in float32, and scored.

*Before* is the definition before 8b9847f: Glow's sigmoid scale without a floor as the step flows' default, networks
that see their inputs as they are, and split priors with deviations up to e⁸. It is had by patching today's code
(``first_losses.as_before``, whose losses are equal to that revision's to the bit), so that all else is equal. Flow++
came later and NICE has none of the three parts: they have no *before*.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from experiments.first_losses import as_before
from experiments.image_benchmark_rows import BENCHMARKS
from vi_flows.cli.outcome import exit_with
from vi_flows.distributions.image_checks import check_samples, round_trip_error
from vi_flows.evaluation.nll import half_width
from vi_flows.flows.image_steps import StepFlow
from vi_flows.records import Clock, Record, provenance, row_key
from vi_flows.settings import Positive, PositiveFloat, check_settings
from vi_flows.training import ImageTrainConfig, Run, TrainingDivergedError
from vi_flows.training.budget import BudgetTrainer, CPUSeconds

RECORDS = Path(__file__).parent / "results" / "image_stability"
DATASETS = {"mnist": "mnist", "cifar": "cifar10-jpeg.zip"}
FAR = 4.0
"""Logits beyond the range of images by so much are far out: no grey value's noise comes near."""
OLD = ("glow", "emerging", "inv3x3-block", "inv3x3-quad", "real_nvp", "mconv-cepstrum")
"""Rows that the old definition had with other bounds."""
MODELS = {
    "mnist": ("nice", *OLD, "flow_pp-mixture", "flow_pp-spline"),
    "cifar": OLD,
}


@dataclass(frozen=True)
class RunAll:
    """Train, sample and score what the records lack; they are written after every row."""

    records: Path = RECORDS
    """Folder with a record a data set."""
    data_root: Path | None = None
    """Folder with the data files; default: VI_FLOWS_DATA."""
    budget_seconds: PositiveFloat = 60.0
    """CPU seconds of training a row."""
    num_samples: Positive = 10_000
    """Samples at temperature 1."""
    num_images: Positive = 1000
    """Test images that are scored, two draws of the noise each."""
    seed: int = 0
    """Of everything."""
    datasets: tuple[str, ...] = tuple(MODELS)
    """Of :data:`MODELS`."""

    def __post_init__(self) -> None:
        check_settings(self)
        unknown = set(self.datasets) - set(MODELS)
        if unknown:
            raise ValueError(f"unknown data set {min(unknown)!r}; choose among {', '.join(MODELS)}")

    def settings(self, dataset: str) -> dict[str, Any]:
        """What makes rows comparable."""
        own = {name: value for name, value in asdict(self).items() if name not in ("records", "data_root", "datasets")}
        return {"dataset": DATASETS[dataset], **own}

    def run(self) -> int:
        """Exit code 0.

        Raises:
            ValueError: a record is there that was made with other settings.
        """
        for dataset in self.datasets:
            self.run_dataset(dataset, self.records / f"{dataset}.json")
        return 0

    def run_dataset(self, dataset: str, path: Path) -> None:
        """The rows of one record."""
        rows: list[dict[str, Any]] = []
        if path.exists():
            found = Record.read(path)
            if found.settings != self.settings(dataset):
                raise ValueError(f"{path} is of other settings, {found.settings}; name another folder by --records")
            rows = found.figures["rows"]
        clock = Clock()
        done = {(row["model"], row["bounds"]) for row in rows}
        for model in MODELS[dataset]:
            for bounds in ("before", "today") if model in OLD else ("today",):
                if (model, bounds) not in done:
                    rows.append(self.measure(dataset, model, bounds))
                    self.write(dataset, rows, path, clock)
                    print(table_line(rows[-1]), flush=True)

    def config(self, dataset: str, model: str, bounds: str) -> ImageTrainConfig:
        """The benchmark's, on this data set."""
        config = BENCHMARKS["mnist"].config(model, self.seed, self.data_root)
        flow = config.image.flow
        if bounds == "before" and isinstance(flow, StepFlow):
            flow = replace(flow, scale="sigmoid")
        return replace(
            config, dataset=DATASETS[dataset], valid_images=500, image=replace(config.image, flow=flow), seed=self.seed
        )

    def measure(self, dataset: str, model: str, bounds: str) -> dict[str, Any]:
        """One row of the table."""
        with tempfile.TemporaryDirectory() as folder, as_before() if bounds == "before" else nullcontext():
            run = Run.create(Path(folder) / "run", self.config(dataset, model, bounds))
            trainer = BudgetTrainer(run, CPUSeconds(self.budget_seconds), self.budget_seconds / 4)
            trainer.resume()
            diverged = False
            try:
                trainer.fit()
            except TrainingDivergedError:
                diverged = True
            task = run.build_task()
            run.load_weights(task, "best")
            density, test = task.module.eval(), run.data.split("clean").test[: self.num_images]
            torch.manual_seed(self.seed)
            with torch.no_grad():
                scores = torch.cat([density.bits_per_dim(run.data.images(part), 2) for part in test.split(100)])
            return {
                "dataset": dataset,
                "model": model,
                "bounds": bounds,
                "bits_per_dim": scores.double().mean().item(),
                "half_width": half_width(scores.double()),
                "parameters": sum(p.numel() for p in density.parameters()),
                "steps": trainer.state["step"],
                "diverged": diverged,
                "round_trip_error": round_trip_error(density, run.data.images(test[:200])),
                "samples": check_samples(density, self.num_samples, batch_size=250)._asdict(),
                "far": check_samples(density, min(self.num_samples, 2000), batch_size=250, margin=FAR)._asdict(),
            }

    def write(self, dataset: str, rows: list[dict[str, Any]], path: Path, clock: Clock) -> None:
        """The record as far as it is."""
        settings = self.settings(dataset)
        Record(
            kind="image_stability",
            key=row_key("image_stability", settings),
            label="samples and inverses of image flows, with today's bounds and with those of before",
            settings=settings,
            figures={"rows": rows},
            provenance=provenance(clock=clock),
        ).write(path, overwrite=True)


HEAD = (
    "| data | model | bounds | bits/dim | finite samples | pixels out of range | images with a pixel far out "
    "| largest logit | round trip |",
    "|---|---|---|---|---|---|---|---|---|",
)


def table_line(row: dict[str, Any]) -> str:
    """One line of the table."""
    samples = row["samples"]
    return (
        f"| {row['dataset']} | {row['model']} | {row['bounds']} | {row['bits_per_dim']:.3f} ± {row['half_width']:.3f} "
        f"| {100 * samples['finite_images']:.2f} % | {100 * samples['saturated_pixels']:.2f} % "
        f"| {100 * row['far']['saturated_images']:.1f} % | {samples['largest_logit']:.2g} "
        f"| {row['round_trip_error']:.1e} |"
    )


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """All rows in the order of :data:`MODELS`, a model's two beside each other."""
    order = [(dataset, model) for dataset, models in MODELS.items() for model in models]
    chosen = sorted(rows, key=lambda row: (order.index((row["dataset"], row["model"])), row["bounds"]))
    return "\n".join([*HEAD, *map(table_line, chosen)])


def stability_table(records: Path) -> str:
    """The table of the records in a folder, a record a data set."""
    found = [records / f"{dataset}.json" for dataset in MODELS]
    return markdown_table([row for path in found if path.exists() for row in Record.read(path).figures["rows"]])


@dataclass(frozen=True)
class Render:
    """Print the records as a Markdown table."""

    records: Path = RECORDS
    """Folder with a record a data set."""

    def run(self) -> int:
        """Exit code 0."""
        print(stability_table(self.records))
        return 0


Command = (
    Annotated[RunAll, tyro.conf.subcommand("run", prefix_name=False)]
    | Annotated[Render, tyro.conf.subcommand("render", prefix_name=False)]
)

if __name__ == "__main__":
    exit_with("image_stability", lambda words: tyro.cli(Command, args=words).run())
