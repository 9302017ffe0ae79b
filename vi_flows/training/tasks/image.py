"""The training task of image flows: bits/dim of integer images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
import tyro
from torch import Tensor

from vi_flows.data import ImageData
from vi_flows.distributions.image_config import ImageFlowConfig, build_image_density
from vi_flows.evaluation import NOT_KEPT, Parts
from vi_flows.evaluation.nll import half_width
from vi_flows.progress import progress_bar
from vi_flows.settings import Positive, PositiveFloat
from vi_flows.training.config import TrainConfig
from vi_flows.training.tasks.base import DrawingSettings, Evaluation, EvaluationSettings, StepResult

__all__ = ["ImageDrawingSettings", "ImageEvaluationSettings", "ImageFlowTask", "ImageTrainConfig"]


@dataclass(frozen=True)
class ImageTrainConfig(TrainConfig):
    """Train a flow on images as they are (bits/dim)."""

    kind: ClassVar[str] = "image"

    image: Annotated[ImageFlowConfig, tyro.conf.arg(name="")] = field(default_factory=ImageFlowConfig)
    """The image flow."""
    valid_images: Positive = 1_000_000
    """Validate on the first so many validation images (fewer save time)."""

    @property
    def name(self) -> str:
        """Such as ``inv_conv3x3-quad-l2-d4-w64``."""
        return self.image.name

    @property
    def model_settings(self) -> ImageFlowConfig:
        """The flow's."""
        return self.image


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
    """An image flow on grey values as they are (no binarisation, no padding).

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
        self.module = build_image_density(config.image, data.shape, data.levels).to(self.device)

    def initialize(self) -> None:
        """Data-dependent initialization of the actnorms, from 256 training images."""
        chosen = torch.randperm(len(self.train_rows))[:256]
        self.module.initialize(self.data.images(self.train_rows[chosen]).to(self.device))

    def step(self, rows: Tensor, kl_weight: float | Tensor, num_particles: int) -> StepResult:
        """Mean bits/dim of a minibatch, one draw of the noise; there is no KL term to weight and no particle."""
        loss = self.module(self.data.images(rows).to(self.device)).mean()
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
        total = sum(
            self.module(self.data.images(rows).to(self.device)).double().sum().item()
            for rows in pixels.split(self.config.batch_size)
        )
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
        pixels = rows[: settings.limit]
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(settings.seed)
            batches = pixels.split(self.config.batch_size)
            scores = [
                self.module.bits_per_dim(self.data.images(part).to(self.device), settings.num_samples).double().cpu()
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
            "round_trip_exact": self._round_trip(pixels[:100]),
            "num_dims": self.module.num_dims,
            "parameters": sum(p.numel() for p in self.module.parameters()),
        }
        return Evaluation(figures, {"bits_per_dim": bits.float()})

    def _round_trip(self, pixels: Tensor) -> float:
        """Share of images that come back from their latents unchanged, in every pixel."""
        images = self.data.images(pixels).to(self.device)
        back = self.module.decode(self.module.encode(images))
        return (back == images).flatten(1).all(1).double().mean().item()

    def report(self, record: dict[str, Any]) -> list[str]:
        """Bits/dim and nats."""
        low, high = record["interval"]
        return [
            f"{record['bits_per_dim']:.4f} bits/dim, 95 % interval [{low:.4f}, {high:.4f}]",
            f"{record['nll']:.2f} nats; {record['num_draws']} draws of the noise an image",
            f"{100 * record['round_trip_exact']:.0f} % of 100 images come back from their latents unchanged",
        ]

    @torch.no_grad()
    def pictures(self, settings: ImageDrawingSettings) -> dict[str, Tensor]:
        """Samples, training images, and a row of interpolations between each two test images.

        Args:
            settings: size of the grids, and temperature of the samples.
        """
        rows, columns = settings.rows, settings.columns
        count = rows * columns
        chosen = torch.randperm(len(self.train_rows))[:count]
        ends = self.data.images(self.splits.test)[: 2 * rows].to(self.device)
        grids = {
            "samples": self.module.sample(count, settings.temperature),
            "data": self.data.images(self.train_rows[chosen]),
        }
        if columns > 1 and len(ends) > 1:
            lines = self.module.interpolate(ends[: len(ends) // 2], ends[len(ends) // 2 :][: len(ends) // 2], columns)
            grids["interpolations"] = lines.movedim(0, 1).flatten(0, 1)
        return {name: images.float().cpu() / (self.data.levels - 1) for name, images in grids.items()}
