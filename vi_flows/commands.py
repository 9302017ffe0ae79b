"""The commands that train, evaluate and draw: each a dataclass whose fields are its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from vi_flows.data import load
from vi_flows.plotting import save_image_grid
from vi_flows.train.config import TrainConfig
from vi_flows.train.evaluate import evaluate_run
from vi_flows.train.image_task import ImageFlowTask
from vi_flows.train.loop import Trainer
from vi_flows.train.run import Run

__all__ = ["Evaluate", "Sample", "Train"]

RunFolder = Annotated[Path, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True)
class Train:
    """Train a VAE with or without a flow posterior; go on with a killed run by --resume."""

    out: Path
    """Folder of the run: a new one, or with --resume an existing one."""
    resume: bool = False
    """Go on from the last checkpoint, with the settings the run was started with."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    """Settings of the run."""
    tensorboard: bool = False
    """Write TensorBoard events into the run's folder too (needs the extra `log`)."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Train to the end; exit code 0."""
        if self.resume:
            run = Run.open(self.out, self.config.data_root)
            run.check_same_settings(self.config)
        else:
            load(self.config.dataset, self.config.data_root)  # before a folder is made for data that are not there
            run = Run.create(self.out, self.config)
        trainer = Trainer(run, progress=not self.quiet, tensorboard=self.tensorboard)
        trainer.resume() if self.resume else trainer.start()
        state = trainer.fit()
        best = state["best"]
        chosen = (
            f"; best validation {best['valid_loss']:.3f} {trainer.task.unit} at epoch {best['epoch']}" if best else ""
        )
        print(f"{self.out}: {state['step']} steps in {state['seconds']:.0f} s{chosen}")
        print(f"next: vi-flows evaluate {self.out}")
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Estimate the negative log-likelihood (VAE) or the bits/dim (image flow) of a run and write its record."""

    folder: tyro.conf.Positional[RunFolder]
    """Folder of the run."""
    num_samples: int | None = None
    """Importance samples an image, default 5000; draws of the noise for an image flow, default 8."""
    split: Literal["test", "valid"] = "test"
    """Images to score; `valid` while choosing settings."""
    weights: Literal["auto", "best", "last"] = "auto"
    """auto: chosen by validation (clean protocol) or last (paper protocol)."""
    limit: int | None = None
    """Score only the first so many images."""
    seed: int = 0
    """Of the importance samples."""
    record: Path | None = None
    """Record to write: a .json file, or a folder; default: `results` in the run's folder."""
    overwrite: bool = False
    """Replace an existing record."""
    data_root: Path | None = None
    """Where the data are now, if not where they were."""
    threads: int | None = None
    """CPU threads; default: torch's own choice."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Print the figures and where the record is; exit code 0."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        record, path = evaluate_run(
            Run.open(self.folder, self.data_root),
            self.num_samples,
            split=self.split,
            weights=self.weights,
            limit=self.limit,
            seed=self.seed,
            record=self.record,
            overwrite=self.overwrite,
            progress=not self.quiet,
        )
        low, high = record["interval"]
        if "bits_per_dim" in record:
            print(f"{record['model']} on {record['dataset']} ({record['protocol']}), {record['num_rows']} images:")
            print(f"  {record['bits_per_dim']:.4f} bits/dim, 95 % interval [{low:.4f}, {high:.4f}]")
            print(f"  {record['nll']:.2f} nats; {record['num_draws']} draws of the noise an image")
            print(f"record: {path}")
            return 0
        print(f"{record['model']} on {record['dataset']} ({record['protocol']}), {record['num_rows']} images:")
        print(
            f"  NLL  {record['nll']:.3f} nats, 95 % interval [{low:.3f}, {high:.3f}], {record['num_samples']} samples"
        )
        print(f"  ELBO {record['elbo']:.3f} nats; mean ESS {record['mean_ess']:.0f}")
        print(
            f"  Pareto k-hat: median {record['median_k_hat']:.2f}, "
            f"{100 * record['share_k_hat_above_0.7']:.1f} % of the images above 0.7"
        )
        print(f"record: {path}")
        return 0


@dataclass(frozen=True)
class Sample:
    """Draw a grid of samples from a run, next to training images, and its reconstructions of test images."""

    folder: tyro.conf.Positional[RunFolder]
    """Folder of the run."""
    out: Path | None = None
    """Folder of the pictures; default: the run's folder."""
    rows: int = 10
    """Rows of the grid."""
    columns: int = 10
    """Columns of the grid."""
    temperature: float = 1.0
    """Scale of an image flow's base distribution; 1 is the model."""
    binary: bool = False
    """Draw pixels instead of showing their means."""
    seed: int = 0
    """Of the draws."""
    weights: Literal["auto", "best", "last"] = "auto"
    """See `vi-flows evaluate`."""
    data_root: Path | None = None
    """Where the data are now, if not where they were."""

    def run(self) -> int:
        """Write samples.png, data.png and reconstructions.png (image flows: interpolations.png); exit code 0."""
        for path in draw_pictures(self):
            print(path)
        return 0


def draw_pictures(options: Sample) -> list[Path]:
    """The pictures of ``vi-flows sample``; returns their paths.

    Raises:
        ValueError: the grid has no cell.
    """
    if options.rows < 1 or options.columns < 1:
        raise ValueError(f"rows and columns must be at least 1, got {options.rows} and {options.columns}")
    run = Run.open(options.folder, options.data_root)
    task = run.build_task()
    run.load_weights(task, options.weights)
    count, shape, data = options.rows * options.columns, run.data.shape, run.data
    folder = options.folder if options.out is None else options.out
    if isinstance(task, ImageFlowTask):
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            return task.draw_pictures(folder, options.rows, options.columns, options.temperature)
    splits = data.split(run.config.protocol)
    test = data.binarized(splits.test)[: max(count // 2, 1)]
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        samples = task.module.sample(count).cpu()
        if options.binary:
            samples = torch.bernoulli(samples)
        chosen = torch.randperm(len(splits.train))[:count]
        pairs = torch.stack([test, task.module.reconstruct(test.to(task.device)).cpu()], 1).flatten(0, 1)
    training = data.binarized(splits.train[chosen]) if options.binary else data.means(splits.train[chosen])
    pictures = {"samples.png": samples, "data.png": training, "reconstructions.png": pairs}
    scale = max(1, round(56 / shape[1]))
    return [
        save_image_grid(images.reshape(-1, *shape), folder / name, options.columns, scale)
        for name, images in pictures.items()
    ]
