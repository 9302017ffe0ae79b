"""The training task of VAEs: bounds in nats, and likelihoods by importance sampling and annealing."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
import tyro
from torch import Tensor, nn

from vi_flows.data import ImageData, draw_binary
from vi_flows.evaluation import NOT_KEPT, Parts, evenly
from vi_flows.evaluation.nll import interval_in_words
from vi_flows.objectives import DIRECT_OBJECTIVES
from vi_flows.settings import LATER, Bounds, NonNegativeFloat, Positive, SettingsError
from vi_flows.training.config import TrainConfig
from vi_flows.training.tasks.base import BinaryDrawingSettings, Evaluation, EvaluationSettings, StepResult
from vi_flows.vae import VAE, AISSettings, RefinementSettings, VAEConfig, build_vae, evaluate_vae

__all__ = ["VAEEvaluationSettings", "VAETask", "VAETrainConfig"]


@dataclass(frozen=True)
class VAEEvaluationSettings(EvaluationSettings):
    """How a VAE is judged: by importance sampling, and by annealing too."""

    num_samples: Positive = 5000
    """Importance samples an image."""
    ais: AISSettings | None = None
    """Annealed importance sampling beside them; ``None`` for none."""
    refine: RefinementSettings | None = None
    """Samples from the guide refined for each image beside them; ``None`` for none."""

    @property
    def words(self) -> list[str]:
        """See :class:`EvaluationSettings`."""
        return super().words + ([] if self.refine is None else [f"refined{self.refine.steps}"])

    def tightness(self, score: str) -> dict[str, Any]:
        """See :meth:`EvaluationSettings.tightness`: more draws, or a longer annealing, come closer."""
        if score == "ais_nll" and self.ais is not None:
            return {
                "--ais-chains": self.ais.chains,
                "--ais-temperatures": self.ais.temperatures,
                "--ais-leapfrog": self.ais.leapfrog,
                "--ais-start": self.ais.start,
            }
        found: dict[str, Any] = {"--num-samples": self.num_samples} if score in ("nll", "refined_nll") else {}
        if score.startswith("refined_") and self.refine is not None:
            found |= {
                "--refine": self.refine.steps,
                "refine.particles": self.refine.particles,
                "refine.learning_rate": self.refine.learning_rate,
            }
        return found


@dataclass(frozen=True)
class VAETrainConfig(TrainConfig):
    """Train a VAE on binary images, with or without a flow posterior."""

    kind: ClassVar[str] = "vae"
    stackable: ClassVar[bool] = True
    of_the_machine: ClassVar[tuple[str, ...]] = (*TrainConfig.of_the_machine, "cuda_graph")

    vae: Annotated[VAEConfig, tyro.conf.arg(name="")] = field(default_factory=VAEConfig)
    """The VAE and its guide."""
    objective: Literal["elbo", "stl", "iwae", "dreg"] = "elbo"
    """Bound to maximise: elbo, or stl, the same with the path gradient (sticking the landing); iwae, or dreg, the same
    with the doubly reparameterised gradient."""
    num_particles: Positive = 1
    """Posterior draws of each image (IW of the paper for `iwae`)."""
    particles_schedule: tuple[Positive, ...] = ()
    """Draws of each image that change in training, such as `1 5 50`, instead of one number throughout."""
    particles_epochs: tuple[Positive, ...] = ()
    """Epochs after which the schedule goes on to its next number; default: equal parts."""
    kl_warmup_epochs: NonNegativeFloat = 0.0
    """Epochs over which the KL term's weight rises linearly from 0 to 1 (the reported bound is never weighted)."""
    output_bias: bool = True
    """Start the decoder's output bias at the logit of the mean training image."""
    valid_particles: Positive = 1
    """Draws an image of the validation bound: the objective's own, of these many draws."""
    redrawn: Annotated[float, Bounds(least=0, below=1)] = field(default=0.0, metadata=LATER)
    """Share of the training images in whose place a step sees draws of the model's own reconstructions: against
    over-fitting to pixels that were drawn once. The training bound is that of the images seen."""
    cuda_graph: bool = False
    """Record the training step on a GPU once and replay it (elsewhere without effect on speed)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        schedule, ends = self.particles_schedule, self.particles_epochs
        if schedule and self.num_particles != 1:
            raise SettingsError(
                f"num_particles={self.num_particles} and particles_schedule={schedule} exclude each other"
            )
        if len(schedule) > self.epochs:
            raise SettingsError(f"particles_schedule has {len(schedule)} parts, and there are {self.epochs} epochs")
        if ends and (len(ends) != len(schedule) - 1 or list(ends) != sorted({*ends}) or ends[-1] >= self.epochs):
            raise SettingsError(
                f"particles_epochs must be {max(len(schedule) - 1, 0)} rising epochs below {self.epochs}, one less "
                f"than particles_schedule has numbers, got {ends}"
            )

    @property
    def name(self) -> str:
        """Such as ``g1-conv_flow-amortized-k4-iwae50``."""
        return self.vae.name + ("" if self._is_plain else f"-{self.objective}{self.final_particles}")

    @property
    def label(self) -> str:
        """Such as ``VAE + ConvFlow (K = 4), amortized, IW = 50``."""
        words = {"elbo": "draws = ", "iwae": "IW = "}.get(self.objective, f"{self.objective}, draws = ")
        return self.vae.label + ("" if self._is_plain else f", {words}{self.final_particles}")

    @classmethod
    def scored(cls, settings: Mapping[str, Any]) -> str:
        """See :meth:`TrainConfig.scored`."""
        return "binary pixels"

    @property
    def final_particles(self) -> int:
        """Draws a row in the last epoch."""
        return self.particles_schedule[-1] if self.particles_schedule else self.num_particles

    @property
    def _is_plain(self) -> bool:
        return (self.objective, self.final_particles) == ("elbo", 1)

    @property
    def model_settings(self) -> VAEConfig:
        """The VAE's."""
        return self.vae

    @property
    def captured(self) -> bool:
        """Whether the training step is to be recorded on a GPU and replayed."""
        return self.cuda_graph

    def check_batches(self, rows: int) -> None:
        """See :meth:`TrainConfig.check_batches`: batch normalisation takes the variance of a minibatch's rows."""
        if self.vae.batch_norm:
            self._check_pairs(rows, "batch_norm", "leave --batch-norm out")

    def kl_weight_at(self, epoch: float) -> float:
        """Weight of the KL term after ``epoch`` epochs, counted in fractions."""
        return 1.0 if self.kl_warmup_epochs <= 0 else min(1.0, epoch / self.kl_warmup_epochs)

    def num_particles_at(self, epoch: int) -> int:
        """Draws a row in epoch ``epoch``, counted from 0."""
        if not self.particles_schedule:
            return self.num_particles
        if self.particles_epochs:
            return self.particles_schedule[sum(epoch >= end for end in self.particles_epochs)]
        return self.particles_schedule[epoch * len(self.particles_schedule) // self.epochs]


def _annealing_lines(ais: dict[str, Any]) -> list[str]:
    lines = [
        f"AIS  {ais['nll']:.3f} nats on {ais['num_rows']} images spread over all, where {ais['nll_importance']:.3f} by "
        f"importance sampling: {ais['gap']:.3f} lower",
        f"AIS: {ais['chains']} chains of {ais['temperatures']} temperatures from the {ais['start']}, "
        f"{ais['mean_effective_chains']:.1f} effective, acceptance {ais['mean_acceptance']:.2f}",
    ]
    if "bdmc" in ais:
        bdmc = ais["bdmc"]
        low, high = bdmc["nll_lower"], bdmc["nll_upper"]
        crossed = f": bounds in the mean, which cross by {low - high:.3f}; take more images or temperatures"
        lines.append(
            f"BDMC on {bdmc['num_rows']} images of the model's own: NLL between {low:.3f} and {high:.3f}"
            f"{crossed if low > high else ''}"
        )
    return lines


def _refinement_lines(record: dict[str, Any]) -> list[str]:
    refined = record["refined"]
    return [
        f"refined for each image ({refined['steps']} steps): ELBO {record['elbo']:.3f} to {refined['elbo']:.3f}, "
        f"{refined['elbo_gain']:.3f} higher; NLL {record['nll']:.3f} to {refined['nll']:.3f}, "
        f"{refined['nll_gain']:.3f} lower; mean ESS {record['mean_ess']:.0f} to {refined['mean_ess']:.0f}"
    ]


class VAETask:
    """A VAE on binary (or dynamically binarised) images.

    Args:
        config: settings of the run.
        data: the images.

    Raises:
        ValueError: the objective needs an inverse that a flow doesn't have, or a log-determinant without jumps.
    """

    unit = "nats"
    row_dim = -2

    def __init__(self, config: VAETrainConfig, data: ImageData) -> None:
        self.config = config
        self.data = data
        self.device = torch.device(config.device)
        splits = data.split(config.protocol)
        self.train_rows = splits.train
        self.test_rows = splits.test
        self.dynamic = data.binarization == "dynamic"
        self.valid_rows = data.binarized(splits.valid).to(self.device) if len(splits.valid) else None
        self.module = self.build_module().to(self.device)
        self.objective = DIRECT_OBJECTIVES[config.objective]
        if self.objective.path:
            self.module.guide.check_path_gradient()
        if self.objective.gated:
            self.module.check_gated_gradient()

    def build_module(self) -> VAE:
        """The VAE with fresh weights."""
        return build_vae(self.config.vae, self.data.num_pixels)

    def initialize(self) -> None:
        """Set the decoder's output bias from the mean training image."""
        if self.config.output_bias:
            self.module.model.set_output_bias(self.data.means(self.train_rows).mean(0).to(self.device))

    def with_module(self, module: nn.Module) -> VAETask:
        """See :class:`~vi_flows.training.tasks.base.StackableTask`.

        Args:
            module: of several VAEs, stacked.
        """
        other = copy.copy(self)
        other.module = cast("VAE", module)  # it has a VAE's interface
        return other

    def row_bounds(self, rows: Tensor, kl_weight: float | Tensor, num_particles: int) -> tuple[Tensor, Tensor]:
        """The bound of each row with its KL term weighted, and the bound itself without a graph, both ``(B,)``.

        Args:
            rows: bytes ``(B, D)``; a dynamic set is binarised anew each time.
            kl_weight: of the KL term; a tensor of one element where the step is recorded.
            num_particles: draws a row.
        """
        return self.objective.row_bounds(self.module, self._seen(rows), num_particles, kl_weight)

    def _seen(self, rows: Tensor) -> Tensor:
        means = self.data.means(rows).to(self.device)
        x = draw_binary(means) if self.dynamic else means
        if not self.config.redrawn:
            return x
        chosen = torch.rand((*x.shape[:-1], 1), device=x.device) < self.config.redrawn
        return torch.where(chosen, draw_binary(self.module.reconstruct(x)), x)

    def step(self, rows: Tensor, kl_weight: float | Tensor, num_particles: int) -> StepResult:
        """The negative bound of a minibatch, averaged over rows."""
        weighted, bound = self.row_bounds(rows, kl_weight, num_particles)
        return StepResult(-weighted.mean(), bound.mean())

    def weigh(self, rows: Tensor) -> float:
        """The number of rows."""
        return len(rows)

    @torch.no_grad()
    def validate(self) -> float | None:
        """Mean negative bound over the validation rows, in nats: the ELBO, or IWAE's where that is trained.

        Training by IWAE lowers the ELBO in the end, which would choose the weights of its beginning.
        """
        if self.valid_rows is None:
            return None
        total = 0.0
        for rows in self.valid_rows.split(1000):
            terms = self.module.log_weight_terms(rows, self.config.valid_particles)
            total -= self.objective.bound(terms, 1.0).double().sum().item()
        return total / len(self.valid_rows)

    def evaluate(
        self, rows: Tensor, settings: VAEEvaluationSettings, progress: bool, parts: Parts = NOT_KEPT
    ) -> Evaluation:
        """The NLL in nats by importance sampling, and by annealing too; see :func:`~vi_flows.vae.evaluate_vae`.

        Args:
            rows: a whole split, ``(N, D)``: the one binary draw of a dynamic set is that of the split.
            settings: how.
            progress: show a bar.
            parts: where what was evaluated before is taken from.
        """
        x = settings.chosen(self.data.binarized(rows)).to(self.device)
        found = evaluate_vae(
            self.module, x, settings.num_samples, ais=settings.ais, refinement=settings.refine, seed=settings.seed,
            progress=progress, parts=parts,
        )  # fmt: skip
        return Evaluation(found.summary(), found.scores())

    def report(self, record: dict[str, Any]) -> list[str]:
        """NLL, ELBO and the reliability of the importance weights."""
        interval = interval_in_words(record["interval"], 3)
        shape, untrusted = record["median_k_hat"], 100 * record["share_k_hat_above_0.7"]
        lines = [
            f"NLL  {record['nll']:.3f} nats, {interval}, {record['num_samples']} samples",
            f"ELBO {record['elbo']:.3f} nats; mean ESS {record['mean_ess']:.0f}",
            f"Pareto k-hat: {record['num_samples']} samples are too few to estimate it"
            if math.isnan(untrusted)
            else f"Pareto k-hat: median {shape:.2f}, {untrusted:.1f} % of the images above 0.7",
        ]
        lines += _refinement_lines(record) if "refined" in record else []
        return lines + _annealing_lines(record["ais"]) if "ais" in record else lines

    @torch.no_grad()
    def pictures(self, settings: BinaryDrawingSettings) -> dict[str, Tensor]:
        """Samples, training images, and test images, spread over all, beside their reconstructions.

        Args:
            settings: size of the grids, and whether pixels are drawn.
        """
        count = settings.rows * settings.columns
        samples = self.module.sample(count).cpu()
        chosen = self.train_rows[torch.randperm(len(self.train_rows))[:count]]
        test = evenly(self.data.binarized(self.test_rows), max(count // 2, 1))
        pairs = torch.stack([test, self.module.reconstruct(test.to(self.device)).cpu()], 1).flatten(0, 1)
        grids = {
            "samples": torch.bernoulli(samples) if settings.binary else samples,
            "data": self.data.binarized(chosen) if settings.binary else self.data.means(chosen),
            "reconstructions": pairs,
        }
        return {name: images.reshape(-1, *self.data.shape) for name, images in grids.items()}
