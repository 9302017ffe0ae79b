"""What networks in bfloat16 cost a Glow in bits/dim, at the size that ``vi-flows bench --extra`` measures.

    VI_FLOWS_DATA=… python -m experiments.mixed_precision

Both precisions see the same images in the same order, from the same initial weights, and are scored in the precision
that they were trained in, by the same draws of the noise.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from vi_flows.cli.outcome import exit_with
from vi_flows.distributions.image_config import image_config
from vi_flows.evaluation.nll import half_width, student_half_width
from vi_flows.records import Clock, Record, provenance, row_key
from vi_flows.settings import NonNegative, Positive, SettingsError, check_settings
from vi_flows.training import ImageTrainConfig, Run, Trainer
from vi_flows.training.config import config_to_dict
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.image import ImageEvaluationSettings

SIZE = {"num_levels": 2, "num_steps": 4, "width": 128, "learned_prior": False, "scale": "sigmoid"}
PRECISIONS = {"float32": False, "bfloat16": True}


@dataclass(frozen=True)
class Options:
    """What to run."""

    dataset: str = "cifar10-jpeg.zip"
    """Images."""
    epochs: Positive = 1
    """Passes over the training images."""
    seeds: tuple[NonNegative, ...] = (0, 1, 2)
    """Of weights, order and noise."""
    num_samples: Positive = 8
    """Draws of the noise a test image."""
    record: Path = Path(__file__).parent / "results" / "mixed-precision.json"
    """Record to write."""

    def __post_init__(self) -> None:
        check_settings(self)
        if len(self.seeds) < 2:
            raise SettingsError(f"seeds must be two or more, for an interval over them, got {len(self.seeds)}")


def config_of(options: Options, seed: int, mixed_precision: bool) -> ImageTrainConfig:
    """One run's settings."""
    return ImageTrainConfig(
        dataset=options.dataset, epochs=options.epochs, batch_size=32, learning_rate=1e-3, threads=1, seed=seed,
        image=image_config("glow", mixed_precision=mixed_precision, alpha=0.05, **SIZE),
    )  # fmt: skip


def train(config: ImageTrainConfig, num_samples: int) -> tuple[torch.Tensor, float, str]:
    """Bits/dim of each test image, CPU seconds of the training, and the data's hash."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", config)
        trainer = Trainer(run, progress=False)
        trainer.start()
        state = trainer.fit()
        record, _ = evaluate_run(run, ImageEvaluationSettings(num_samples=num_samples), progress=False)
    return torch.as_tensor(record.scores["bits_per_dim"]).double(), state["cpu_seconds"], run.data.sha256


def row_of(options: Options, seed: int) -> tuple[dict[str, Any], str]:
    """Both precisions with one seed, and the data's hash."""
    scores, row = {}, {"seed": seed}
    for name, mixed in PRECISIONS.items():
        scores[name], seconds, sha256 = train(config_of(options, seed, mixed), options.num_samples)
        row |= {name: scores[name].mean().item(), f"{name}_cpu_seconds": round(seconds, 1)}
    more = scores["bfloat16"] - scores["float32"]
    return row | {"difference": more.mean().item(), "half_width": half_width(more), "num_images": len(more)}, sha256


def main(options: Options) -> None:
    """Train all, print the comparison and write the record."""
    clock = Clock()
    Record.refuse_to_replace(options.record, overwrite=True)
    torch.set_num_threads(1)
    rows = []
    for seed in options.seeds:
        row, sha256 = row_of(options, seed)
        rows.append(row)
        print(
            f"seed {seed}: {row['float32']:.4f} bits/dim in float32, {row['bfloat16']:.4f} in bfloat16: "
            f"{row['difference']:+.4f} ± {row['half_width']:.4f} over {row['num_images']} images",
            flush=True,
        )
    differences = [row["difference"] for row in rows]
    figures = {
        "rows": rows,
        "mean_difference": sum(differences) / len(differences),
        "half_width": student_half_width(differences),
    }
    print(f"bfloat16 less float32: {figures['mean_difference']:+.4f} ± {figures['half_width']:.4f} over seeds")
    settings = {key: value for key, value in asdict(options).items() if key != "record"}
    settings |= {"seeds": list(options.seeds), "data_sha256": sha256}
    settings["run"] = config_to_dict(config_of(options, options.seeds[0], True))
    Record(
        kind="mixed-precision",
        key=row_key("mixed-precision", settings),
        label="Glow with its networks in bfloat16 and in float32, bits/dim of the test images",
        settings=settings,
        figures=figures,
        provenance=provenance(clock=clock),
    ).write(options.record, overwrite=True)


if __name__ == "__main__":
    exit_with("mixed_precision", lambda words: main(tyro.cli(Options, description=__doc__, args=words)))
