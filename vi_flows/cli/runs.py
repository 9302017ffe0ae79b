"""The commands that train, evaluate and draw: each a dataclass whose fields are its options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar, Union

import torch
import tyro

from vi_flows.parallel import Ranks
from vi_flows.records import from_json
from vi_flows.settings import Positive, Seed, Threads, check_settings
from vi_flows.training.captured import trainer_for
from vi_flows.training.config import TrainConfig, check_device
from vi_flows.training.distributed import joined
from vi_flows.training.errors import in_shell
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.kinds import KINDS
from vi_flows.training.loop import Trainer
from vi_flows.training.run import Run, RunUnusableError
from vi_flows.training.tasks.base import DrawingSettings
from vi_flows.vae import AISSettings, RefinementSettings
from vi_flows.vae.annealing import ForcePrecision, StartName

__all__ = ["Evaluate", "Resume", "Sample", "Train", "resumption"]

RunFolder = Annotated[Path, tyro.conf.arg(metavar="RUN")]
PRETRAINED = Path(__file__).parents[2] / "experiments" / "pretrained"
PUBLISHED = PRETRAINED.with_name("published.json")


C = TypeVar("C", bound=TrainConfig)


@dataclass(frozen=True)
class NewRun(Generic[C]):
    """Train a new run of one kind."""

    out: Path
    """Folder of the run: a new one."""
    config: Annotated[C, tyro.conf.arg(name="")]
    """Settings of the run."""
    tensorboard: bool = False
    """Write TensorBoard's curves and samples into the run's folder too (needs the extra `tensorboard`)."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Train to the end; exit code 0."""
        with joined(self.config.device) as (ranks, device):
            run = Run(self.out, replace(self.config, device=device))
            # Before a folder is made: the device and the data are there, and the settings describe a model.
            with ranks.together():
                check_device(device)
            ranks.from_first(lambda: run.data.sha256)  # before the others, who read what it has put by
            with ranks.together():
                trainer_for(run, False, self.tensorboard, ranks)
            ranks.from_first(lambda: Run.create(self.out, self.config).folder)
            return _train(run, self.tensorboard, self.quiet, ranks, Trainer.start)


if TYPE_CHECKING:
    Kinds = NewRun[TrainConfig]
else:
    # One subcommand a kind, from the registry.
    Kinds = Union[  # noqa: UP007
        tuple(
            Annotated[
                NewRun[kind.config], tyro.conf.subcommand(name, description=kind.config.__doc__, prefix_name=False)
            ]
            for name, kind in KINDS.items()
        )
    ]


@dataclass(frozen=True)
class Train:
    """Train a model of one kind, or go on with a run that was stopped: train --resume RUN."""

    command: Kinds

    def run(self) -> int:
        """The chosen command's exit code."""
        return self.command.run()


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped, from its last checkpoint and with the settings it was started with."""

    resume: RunFolder
    """Folder of the run. No setting can be given beside it."""
    previous: bool = False
    """Go on from the checkpoint before the last, where the last one is damaged; the last one is given up."""
    data_root: Path | None = None
    """Where the data are now, if not where they were."""
    tensorboard: bool = False
    """Write TensorBoard's curves and samples into the run's folder too (needs the extra `tensorboard`)."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Train to the end; exit code 0."""
        run = Run.open(self.resume, self.data_root)
        with joined(run.config.device) as (ranks, device):
            run = Run(run.folder, replace(run.config, device=device))
            return _train(run, self.tensorboard, self.quiet, ranks, self._go_back if self.previous else Trainer.resume)

    def _go_back(self, trainer: Trainer) -> None:
        """Resume from the previous checkpoint."""
        step = trainer.ranks.from_first(trainer.run.checkpoints.go_back)
        if trainer.ranks.first:
            print(f"{trainer.run.folder}: going on from step {step}, the checkpoint before the last")
        trainer.resume()


def resumption(words: Sequence[str]) -> type[Resume] | None:
    """What ``vi-flows train`` becomes by ``--resume``: a run that goes on takes no settings and has no kind to name.

    Raises:
        ValueError: a kind is named beside it.
    """
    asked = any(word.partition("=")[0] == "--resume" for word in words) or words[:1] == ["--previous"]
    if asked and words[0] in KINDS:
        raise ValueError(
            f"a run that goes on keeps its kind and settings: vi-flows train --resume RUN, without {words[0]!r} and "
            "what belongs to it"
        )
    return Resume if asked else None


def _train(run: Run, tensorboard: bool, quiet: bool, ranks: Ranks, begin: Callable[[Trainer], None]) -> int:
    with ranks.together():
        trainer = trainer_for(run, not quiet, tensorboard, ranks)
    if len(set(ranks.gather(run.data.sha256))) > 1:
        raise ValueError(f"the processes have read different data for {run.config.dataset}: see vi-flows data check")
    with trainer.holding_the_run():  # resuming trims the metrics: only the one who trains may do so
        with ranks.together():
            begin(trainer)
        state = trainer.fit()
    if not ranks.first:
        return 0
    best = state["best"]
    chosen = f"; best validation {best['valid_loss']:.3f} {trainer.task.unit} at epoch {best['epoch']}" if best else ""
    print(f"{run.folder}: {state['step']} steps in {state['seconds']:.0f} s{chosen}")
    lost = not best and run.weights.chosen == "best"
    if lost:
        print("no validation loss was finite: train anew with a lower --learning-rate, or take the last step's weights")
    print(f"next: vi-flows evaluate {in_shell(run.folder)}{' --weights last' if lost else ''}")
    return 0


@dataclass(frozen=True)
class Evaluate:
    """Estimate the negative log-likelihood (VAE) or the bits/dim (image flow) of a run and write its record."""

    folder: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="[RUN]")]] = None
    """Folder of the run."""
    pretrained: str | None = None
    """Evaluate one of the trained runs in the source repository's experiments/pretrained instead."""
    num_samples: Positive | None = None
    """Importance samples an image of a VAE, default 5000 (with a PixelCNN decoder 100); of an image flow, draws of the
    noise, default 8."""
    split: Literal["test", "valid"] = "test"
    """Images to score; `valid` while choosing settings."""
    weights: Literal["auto", "best", "last"] = "auto"
    """auto: chosen by validation (clean protocol) or last (paper protocol)."""
    limit: Positive | None = None
    """Score only so many images, spread evenly over all."""
    seed: Seed = 0
    """Of the importance samples."""
    refine: Positive | None = None
    """Steps of Adam by which the guide of a VAE is fitted to each image before it is sampled from a second time: the
    record then says what the encoder's guesses cost (the amortisation gap)."""
    ais: bool = False
    """Anneal the images of a VAE too (annealed importance sampling), which takes longer and says more."""
    ais_chains: int = AISSettings.chains
    """Weighted chains an image."""
    ais_temperatures: int = AISSettings.temperatures
    """Intervals of the annealing path."""
    ais_leapfrog: int = AISSettings.leapfrog
    """Leapfrog steps of each HMC transition."""
    ais_images: int = AISSettings.images
    """Anneal so many images, spread evenly over all."""
    ais_start: StartName = AISSettings.start
    """Where the path begins: gaussian (mean and covariance of the guide's draws), guide or prior."""
    ais_model_images: int = AISSettings.model_images
    """Images drawn from the model itself, whose likelihood is bounded from above too (BDMC); 0 for none."""
    ais_forces: ForcePrecision = AISSettings.forces
    """Precision of the gradients inside a trajectory: bf16 takes less time where the processor is fast in it (AMX,
    GPUs); the steps are accepted, and the likelihoods weighed, in float32 all the same."""
    device: str | None = None
    """Where to evaluate; default: where the run was trained."""
    record: Path | None = None
    """Record to write: a .json file, or a folder; default: `results` in the run's folder, for --pretrained the folder
    runs/pretrained."""
    paper_row: str | None = None
    """Row of the papers' numbers that belongs beside it; see experiments/published.json."""
    overwrite: bool = False
    """Replace an existing record."""
    data_root: Path | None = None
    """Where the data are now, if not where they were."""
    threads: Threads | None = None
    """CPU threads; default: torch's own choice."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Print the figures and where the record is; exit code 0."""
        check_settings(self)
        if self.paper_row is not None:
            check_paper_row(self.paper_row)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        run = Run.open(self._run_folder(), self.data_root)
        record, path = evaluate_run(
            run,
            KINDS[run.config.kind].evaluation_settings(self.given()),
            weights=self.weights,
            device=self.device,
            record=Path("runs/pretrained") if self.pretrained and self.record is None else self.record,
            overwrite=self.overwrite,
            progress=not self.quiet,
            paper_row=self.paper_row,
        )
        config, figures = run.config, record.figures
        print(f"{record.label} on {config.dataset} ({config.protocol}), {figures['num_rows']} images:")
        for line in run.on(self.device).build_task().report(figures):
            print(f"  {line}")
        limit = record.settings["evaluation"]["limit"]
        if limit is not None:
            print(f"  {limit} alone, spread evenly over all of the split")
        if run.is_unfinished:
            print(
                f"  the training is not finished: these are weights of epoch {figures['epoch_of_weights']} of "
                f"{config.epochs}; vi-flows train --resume {in_shell(run.folder)} goes on"
            )
        print(f"record: {path}")
        return 0

    def _run_folder(self) -> Path:
        if self.pretrained is None and self.folder is not None:
            return self.folder
        if self.pretrained is not None and self.folder is None:
            return pretrained_run(self.pretrained)
        raise ValueError("evaluate takes the folder of a run, or --pretrained NAME")

    def given(self) -> dict[str, Any]:
        """Settings of the evaluation, without those that a kind's own class decides about or does not have.

        Raises:
            ValueError: see :meth:`annealing`.
        """
        annealing = self.annealing()
        return {
            "split": self.split,
            "limit": self.limit,
            "seed": self.seed,
            **({} if self.num_samples is None else {"num_samples": self.num_samples}),
            **({} if annealing is None else {"ais": annealing}),
            **({} if self.refine is None else {"refine": RefinementSettings(self.refine)}),
        }

    def annealing(self) -> AISSettings | None:
        """Settings of the annealing, or ``None`` where it is not asked for.

        Raises:
            ValueError: one is given without --ais, or is out of its bounds.
        """
        given = {item.name: getattr(self, f"ais_{item.name}") for item in fields(AISSettings)}
        if self.ais:
            try:
                return AISSettings(**given)
            except ValueError as error:
                raise ValueError(f"annealing: {error}") from None
        for name, value in given.items():
            if value != getattr(AISSettings, name):
                raise ValueError(f"--ais-{name.replace('_', '-')} needs --ais beside it")
        return None


def check_paper_row(name: str) -> None:
    """Refuse a row that the papers' tables don't have; an installed package, which has no tables, takes any.

    Raises:
        ValueError: there is none of that name.
    """
    if not PUBLISHED.is_file():
        return
    published = from_json(PUBLISHED.read_text(encoding="utf-8"))
    rows = [*published["rows"], *published["pixel"]["rows"], *published["image"]["rows"]]
    if name not in rows:
        raise ValueError(f"the papers have no row {name!r}; choose among {', '.join(rows)}")


def pretrained_run(name: str) -> Path:
    """The folder of a trained run that comes with the source repository.

    Args:
        name: of a folder in ``experiments/pretrained``.

    Raises:
        RunUnusableError: this installation has none of them.
        ValueError: there is none of that name.
    """
    if not PRETRAINED.is_dir():
        raise RunUnusableError(
            "trained runs are no part of the installed package: they lie in experiments/pretrained of the source "
            "repository; clone it and give the folder, vi-flows evaluate CLONE/experiments/pretrained/NAME"
        )
    names = sorted(path.parent.name for path in PRETRAINED.glob("*/config.json"))
    if name not in names:
        raise ValueError(f"there is no pretrained run {name!r}; choose among {', '.join(names)}")
    return PRETRAINED / name


@dataclass(frozen=True)
class Sample:
    """Draw a grid of samples from a run next to training images, and reconstructions (VAE), interpolations (flow) or
    completions (autoregressive); WAV files from a WaveNet."""

    folder: tyro.conf.Positional[RunFolder]
    """Folder of the run."""
    out: Path | None = None
    """Folder of the pictures; default: the run's folder, where they take the place of those drawn before."""
    overwrite: bool = False
    """Replace pictures and sounds that are in `--out`."""
    rows: Positive = 10
    """Rows of the grid."""
    columns: Positive = 10
    """Columns of the grid."""
    temperature: float = 1.0
    """Scale of an image flow's base distribution; 1 is the model."""
    binary: bool = False
    """Draw pixels instead of showing their means."""
    seed: Seed = 0
    """Of the draws."""
    weights: Literal["auto", "best", "last"] = "auto"
    """See `vi-flows evaluate`."""
    device: str | None = None
    """Where to draw; default: where the run was trained."""
    data_root: Path | None = None
    """Where the data are now, if not where they were."""

    def run(self) -> int:
        """Write the pictures and print where they are; exit code 0.

        Raises:
            ValueError: ``out`` holds pictures or sounds, and they are not to be replaced.
        """
        check_settings(self)
        run = Run.open(self.folder, self.data_root)
        run = run.on(self.device)
        settings = KINDS[run.config.kind].drawing_settings(self.given())
        folder = self.folder if self.out is None else self.out
        there = next((path for ending in ("png", "wav") for path in sorted(folder.glob(f"*.{ending}"))), None)
        if there is not None and not self.overwrite and folder.resolve() != self.folder.resolve():
            raise ValueError(f"{folder} holds {there.name} already; give --overwrite, or name another folder by --out")
        for path in draw_samples(run, folder, settings, self.weights, self.seed):
            print(path)
        return 0

    def given(self) -> dict[str, Any]:
        """Settings of the drawing; those of single kinds where they are not at rest."""
        return {
            "rows": self.rows,
            "columns": self.columns,
            **({} if self.temperature == 1.0 else {"temperature": self.temperature}),
            **({"binary": True} if self.binary else {}),
        }


def draw_samples(run: Run, folder: Path, settings: DrawingSettings, weights: str = "auto", seed: int = 0) -> list[Path]:
    """The pictures or sounds of ``vi-flows sample``; returns their paths.

    Args:
        run: a trained run.
        folder: where to.
        settings: of the run's kind.
        weights: see :meth:`~vi_flows.training.Run.load_weights`.
        seed: of the draws.

    Raises:
        RunUnusableError: there are no such weights, or the data are not those that they were trained on.
    """
    task = run.build_task()
    run.check_data(run.load_weights(task, weights))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return KINDS[run.config.kind].draw(task, folder, settings)
