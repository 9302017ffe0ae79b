"""The training task of image flows: bits/dim of integer images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
import tyro
from torch import Tensor

from vi_flows.data import ImageData
from vi_flows.distributions.image import ImageDensity
from vi_flows.distributions.image_config import ImageFlowConfig, build_conditional_density, build_image_density
from vi_flows.evaluation import NOT_KEPT, Parts, evenly
from vi_flows.evaluation.nll import half_width, interval_in_words
from vi_flows.progress import progress_bar
from vi_flows.settings import Positive, PositiveFloat
from vi_flows.training.tasks import classes
from vi_flows.training.tasks.base import DrawingSettings, Evaluation, EvaluationSettings, StepResult
from vi_flows.training.tasks.classes import LabelledTrainConfig, ModelSettings

__all__ = ["ImageDrawingSettings", "ImageEvaluationSettings", "ImageFlowTask", "ImageTrainConfig"]


ROUND_TRIP_IMAGES = 100
"""At most so many are encoded and decoded at each evaluation."""


@dataclass(frozen=True)
class ImageTrainConfig(LabelledTrainConfig):
    """Train a flow on images as they are (bits/dim)."""

    kind: ClassVar[str] = "image"

    image: Annotated[ImageFlowConfig, tyro.conf.arg(name="")] = field(default_factory=ImageFlowConfig)
    """The image flow."""
    valid_images: Positive = 1_000_000
    """Validate on the first so many validation images (fewer save time)."""

    @property
    def name(self) -> str:
        """Such as ``inv_conv3x3-quad-l2-d4-w64``."""
        return self.image.name + self.told

    @classmethod
    def scored(cls, settings: Mapping[str, Any]) -> str:
        """See :meth:`TrainConfig.scored`."""
        return "pixels as they are" + classes.given(settings)

    @property
    def model_settings(self) -> ModelSettings:
        """The flow's, and whether it is told the class."""
        return ModelSettings(self.image, self.labels)

    def check_batches(self, rows: int) -> None:
        """See :meth:`TrainConfig.check_batches`: batch normalisation takes the variance of a minibatch's images."""
        if self.image.flow.normalizes_batches:
            self._check_pairs(rows, "--norm batch", "choose another --norm")


@dataclass(frozen=True)
class ImageEvaluationSettings(EvaluationSettings):
    """How an image flow is judged."""

    num_samples: Positive = 8
    """Draws of the noise an image."""


@dataclass(frozen=True)
class ImageDrawingSettings(DrawingSettings):
    """What is drawn from an image flow."""

    temperature: PositiveFloat = 1.0
    """Scale of the base distribution; 1 is the model."""


class ImageFlowTask:
    """An image flow on grey values as they are (no binarisation, no padding); of each class, where rows say theirs.

    Args:
        config: settings of the run.
        data: the images.
    """

    unit = "bits/dim"
    row_dim = 0

    def __init__(self, config: ImageTrainConfig, data: ImageData) -> None:
        self.config, self.data = config, data
        self.device = torch.device(config.device)
        self.splits = data.split(config.protocol)
        self.train_rows = self.splits.train
        self.num_classes = data.class_indicators(self.train_rows[:1]).shape[1]
        self.module = (
            build_conditional_density(config.image, data.shape, self.num_classes, data.levels)
            if self.num_classes
            else build_image_density(config.image, data.shape, data.levels)
        ).to(self.device)

    def density_of(self, rows: Tensor) -> ImageDensity:
        """The density of images of the classes that rows say: one for each row, or one for all without classes."""
        return self.module.condition(self.data.class_indicators(rows).to(self.device))

    def _bits_per_dim(self, rows: Tensor) -> Tensor:
        """With one draw of the noise, not checked, ``(N,)``."""
        return self.density_of(rows)(self.data.images(rows).to(self.device))

    def initialize(self) -> None:
        """Data-dependent initialization of the actnorms, from 256 training images."""
        chosen = torch.randperm(len(self.train_rows))[:256]
        rows = self.train_rows[chosen]
        self.density_of(rows).initialize(self.data.images(rows).to(self.device))

    def step(self, rows: Tensor, kl_weight: float | Tensor, num_particles: int) -> StepResult:
        """Mean bits/dim of a minibatch, one draw of the noise; there is no KL term to weight and no particle."""
        loss = self._bits_per_dim(rows).mean()
        return StepResult(loss, -loss.detach())

    def weigh(self, rows: Tensor) -> float:
        """The number of images."""
        return len(rows)

    @torch.no_grad()
    def validate(self) -> float | None:
        """Mean bits/dim over the validation rows, one draw of the noise."""
        pixels = self.splits.valid[: self.config.valid_images]
        if not len(pixels):
            return None
        total = sum(self._bits_per_dim(rows).double().sum().item() for rows in pixels.split(self.config.batch_size))
        return total / len(pixels)

    @torch.no_grad()
    def evaluate(
        self, rows: Tensor, settings: ImageEvaluationSettings, progress: bool, parts: Parts = NOT_KEPT
    ) -> Evaluation:
        """Bits/dim over several draws of the noise an image, averaged: an upper bound in expectation.

        Args:
            rows: a split, ``(N, C·H·W)``.
            settings: how.
            progress: show a bar.
            parts: not looked at: this is quick enough to begin anew.

        Returns:
            ``bits_per_dim`` with its 95 % ``interval`` over images, ``nll`` in nats, what they were made of, and the
            share of images that come back from their latents unchanged; the scores are ``bits_per_dim``.
        """
        pixels = settings.chosen(rows)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(settings.seed)
            batches = pixels.split(self.config.batch_size)
            scores = [
                self.density_of(part)
                .bits_per_dim(self.data.images(part).to(self.device), settings.num_samples)
                .double()
                .cpu()
                for part in progress_bar(batches, unit="batch", shown=progress)
            ]
        bits = torch.cat(scores)
        mean = bits.mean().item()
        half = half_width(bits)
        figures = {
            "bits_per_dim": mean,
            "interval": [mean - half, mean + half],
            "nll": mean * math.log(2.0) * self.module.num_dims,
            "num_draws": settings.num_samples,
            "num_rows": len(bits),
            "round_trip_exact": self._round_trip(evenly(pixels, ROUND_TRIP_IMAGES)),
            "num_dims": self.module.num_dims,
            "parameters": sum(p.numel() for p in self.module.parameters()),
        }
        found = Evaluation(figures, {"bits_per_dim": bits.float()})
        return self._under_every_class(pixels, settings, found, progress) if self.num_classes else found

    def _under_every_class(
        self, rows: Tensor, settings: ImageEvaluationSettings, found: Evaluation, progress: bool
    ) -> Evaluation:
        """Some images by Bayes' rule (:func:`~vi_flows.training.tasks.classes.by_bayes`), scored under all classes
        with as many draws of the noise as above, each the same for every class.
        """
        size, places = len(rows), classes.classified(len(rows), self.num_classes)
        rows = rows[places]
        every = torch.eye(self.num_classes, device=self.device)[:, None]
        devices = [self.device] if self.device.type == "cuda" else []
        parts = []
        for part in progress_bar(rows.split(self.config.batch_size), unit="batch", shown=progress):
            images, scores = self.data.images(part).to(self.device), []
            for draw in range(settings.num_samples):
                under = []
                for one in every:
                    with torch.random.fork_rng(devices):
                        torch.manual_seed(settings.seed + draw)
                        under.append(self.module.condition(one).log_prob(images).double().cpu())
                scores.append(torch.stack(under))
            parts.append(torch.stack(scores, 1))
        own = self.data.class_indicators(rows).argmax(1).cpu()
        shares = classes.class_shares(self.data, self.train_rows)
        figures, marginal = classes.by_bayes(torch.cat(parts, 2), shares, own)
        return Evaluation(found.figures | figures, found.scores | classes.of_classified(marginal, places, size))

    def _round_trip(self, pixels: Tensor) -> float:
        """Share of images that come back from their latents unchanged, in every pixel."""
        images = self.data.images(pixels).to(self.device)
        density = self.density_of(pixels)
        back = density.decode(density.encode(images))
        return (back == images).flatten(1).all(1).double().mean().item()

    def report(self, record: dict[str, Any]) -> list[str]:
        """Bits/dim and nats."""
        return [
            f"{record['bits_per_dim']:.4f} bits/dim, {interval_in_words(record['interval'], 4)}",
            f"{record['nll']:.2f} nats; {record['num_draws']} draws of the noise an image",
            f"{100 * record['round_trip_exact']:.0f} % of {min(record['num_rows'], ROUND_TRIP_IMAGES)} images come "
            "back from their latents unchanged",
            *classes.in_words(record),
        ]

    @torch.no_grad()
    def pictures(self, settings: ImageDrawingSettings) -> dict[str, Tensor]:
        """Samples, training images, and a row of interpolations between each two test images.

        Where the model is told the class, a line of samples or training images is of one class, the first of class 0,
        and instead of interpolations a line shows what the latent of one test image is in each class: in the image's
        own class the image itself.

        Args:
            settings: size of the grids, and temperature of the samples.
        """
        rows, columns = settings.rows, settings.columns
        chosen, context = classes.lines_of_classes(self.data, self.train_rows, rows, columns)
        grids = {"samples": self._drawn(context, settings.temperature), "data": self.data.images(chosen)}
        test = evenly(self.splits.test, rows if self.num_classes else 2 * rows)
        if self.num_classes:
            grids["classes"] = self._in_every_class(test, columns)
        elif columns > 1 and len(test) > 1:
            half, ends = len(test) // 2, self.data.images(test).to(self.device)
            lines = self.density_of(test).interpolate(ends[:half], ends[half : 2 * half], columns)
            grids["interpolations"] = lines.movedim(0, 1).flatten(0, 1)
        return {name: images.float().cpu() / (self.data.levels - 1) for name, images in grids.items()}

    def _drawn(self, context: Tensor, temperature: float) -> Tensor:
        """An image for each row of a context, which may say nothing."""
        density = self.module.condition(context.to(self.device))
        # Given contexts, one draw is an image of each.
        return density.sample(1 if self.num_classes else len(context), temperature).reshape(-1, *self.data.shape)

    def _in_every_class(self, rows: Tensor, columns: int) -> Tensor:
        """Each image's latents as an image of the first classes, black where there are fewer than columns."""
        latents = self.density_of(rows).encode(self.data.images(rows).to(self.device))
        shown = min(columns, self.num_classes)
        every = torch.eye(self.num_classes, device=self.device)[:shown, None].expand(-1, len(rows), -1)
        moved = self.module.condition(every).decode(latents.expand(shown, *latents.shape))
        rest = moved.new_zeros(columns - shown, *moved.shape[1:])
        return torch.cat([moved, rest]).transpose(0, 1).flatten(0, 1)
