"""The training task of autoregressive image models: exact log-likelihoods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from torch import Tensor

from vi_flows.autoregressive.config import PixelConfig, build_pixel_model
from vi_flows.data import ImageData, draw_binary
from vi_flows.evaluation import NOT_KEPT, Parts, evenly
from vi_flows.evaluation.nll import half_width, interval_in_words
from vi_flows.settings import SettingsError
from vi_flows.training.tasks import classes
from vi_flows.training.tasks.base import BinaryDrawingSettings, Evaluation, EvaluationSettings, StepResult
from vi_flows.training.tasks.classes import LabelledTrainConfig, ModelSettings
from vi_flows.training.tasks.exact import ExactTask

__all__ = ["PixelTask", "PixelTrainConfig"]


@dataclass(frozen=True)
class PixelTrainConfig(LabelledTrainConfig):
    """Train an autoregressive model of images: MADE, PixelCNN, PixelRNN (exact log-likelihood)."""

    kind: ClassVar[str] = "pixel"

    pixel: Annotated[PixelConfig, tyro.conf.arg(name="")] = field(default_factory=PixelConfig)
    """The model."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: the network's products of training steps and validations in bfloat16; tests are always in float32."""
    cuda_graph: bool = False
    """Record the training step on a GPU once and replay it: for small models (elsewhere without effect on speed)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cuda_graph and not self.pixel.model.has_fixed_step:
            raise SettingsError(
                f"cuda_graph replays one step, and the networks of {self.pixel.name} take turns: leave it out"
            )

    @property
    def name(self) -> str:
        """Such as ``pixel_cnn-w128-b12``."""
        return self.pixel.name + self.told

    @property
    def num_in_turn(self) -> int:
        """See :attr:`TrainConfig.num_in_turn`."""
        return self.pixel.model.num_in_turn

    @classmethod
    def scored(cls, settings: Mapping[str, Any]) -> str:
        """See :meth:`TrainConfig.scored`."""
        binary = settings.get("pixel", {}).get("output", PixelConfig.output) == "bernoulli"
        return ("binary pixels" if binary else "pixels as they are") + classes.given(settings)

    @property
    def model_settings(self) -> ModelSettings:
        """The model's, and whether it is told the class."""
        return ModelSettings(self.pixel, self.labels)

    @property
    def captured(self) -> bool:
        """Whether the training step is to be recorded on a GPU and replayed."""
        return self.cuda_graph


class PixelTask(ExactTask):
    """An autoregressive model on binary images, or on grey values as they are; of each class, where rows say theirs.

    All images lie on the device. With Bernoulli outputs a dynamically binarised set is drawn anew at every step, and
    once, the same everywhere, for validation and test.

    Args:
        config: settings of the run.
        data: the images.

    Raises:
        ValueError: see :func:`~vi_flows.autoregressive.config.build_pixel_model`.
    """

    unit = "nats"
    rows_scored = 500

    def __init__(self, config: PixelTrainConfig, data: ImageData) -> None:
        super().__init__(torch.device(config.device), config.precision == "bf16")
        self.config, self.data = config, data
        self.splits = data.split(config.protocol)
        self.train_rows = self.splits.train.to(self.device)
        self.binary = config.pixel.output == "bernoulli"
        self.num_classes = data.class_indicators(self.train_rows[:1]).shape[1]
        self.module = build_pixel_model(config.pixel, data.shape, data.levels, self.num_classes).to(self.device)
        if self.device.type == "cuda":
            # The layout that tensor cores read without a transposition.
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs lack it

    def initialize(self) -> None:
        """Binary outputs with a bias for each pixel start at the mean image."""
        if self.binary:
            self.module.set_output_bias(self.data.means(self.train_rows).mean(0))

    def _fixed(self, rows: Tensor) -> Tensor:
        """Pixels of validation or test as the model sees them, then the class: ``(N, C·H·W + K)`` on the device."""
        values = self.data.binarized(rows) if self.binary else self.data.pixels(rows).float()
        return torch.cat([values, self.data.class_indicators(rows)], 1).to(self.device)

    def _drawn(self, rows: Tensor) -> Tensor:
        """Pixels of a training minibatch as the model sees them."""
        values = self.data.means(rows) if self.binary else self.data.pixels(rows).float()
        if self.binary and self.data.binarization == "dynamic":
            values = draw_binary(values)
        return values.reshape(-1, *self.data.shape)

    def _parted(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(N, C, H, W)`` and contexts ``(N, K)`` of what :meth:`_fixed` gives."""
        values, context = seen.split([self.data.num_pixels, self.num_classes], 1)
        return values.reshape(-1, *self.data.shape), context

    def step(self, rows: Tensor, kl_weight: float | Tensor, num_particles: int) -> StepResult:
        """Mean negative log-likelihood of a minibatch in nats; there is no KL term to weight and no particle."""
        rows = rows.to(self.device)
        x = self._drawn(rows)
        with self.precision():
            params = self.module.training_params(x, self.data.class_indicators(rows))
        loss = -self.module.output.log_prob(params.float(), x).sum() / len(x)
        return StepResult(loss, -loss.detach())

    def log_probs(self, rows: Tensor) -> Tensor:
        """See :meth:`ExactTask.log_probs`; of pixels as the model sees them, then the class, ``(N, C·H·W + K)``."""
        return self.module.log_density(*self._parted(rows))

    @torch.no_grad()
    def validate(self) -> float | None:
        """Mean negative log-likelihood over the validation rows in nats."""
        if not len(self.splits.valid):
            return None
        with self.precision():
            return -self.scores(self._fixed(self.splits.valid)).mean().item()

    def evaluate(
        self, rows: Tensor, settings: EvaluationSettings, progress: bool, parts: Parts = NOT_KEPT
    ) -> Evaluation:
        """The exact negative log-likelihood in nats, in float32 without TF32; given the class, where rows say it.

        Args:
            rows: a whole split: the one binary draw of a dynamic set is that of the split.
            settings: which rows; nothing is drawn by the seed.
            progress: show a bar.
            parts: not looked at: this is quick enough to begin anew.

        Returns:
            ``nll`` with its 95 % ``interval`` over images, ``bits_per_dim``, and what they were made of; the scores
            are ``nll``. With classes also what :meth:`_under_every_class` finds.
        """
        seen = settings.chosen(self._fixed(rows))
        nll = -self.exact_scores(seen, progress)
        mean = nll.mean().item()
        half = half_width(nll)
        figures = {
            "nll": mean,
            "interval": [mean - half, mean + half],
            "bits_per_dim": mean / (self.data.num_pixels * math.log(2.0)),
            "exact": True,
            "num_rows": len(nll),
            "parameters": sum(p.numel() for p in self.module.parameters()),
        }
        found = Evaluation(figures, {"nll": nll.float()})
        return self._under_every_class(seen, found, progress) if self.num_classes else found

    def _under_every_class(self, seen: Tensor, found: Evaluation, progress: bool) -> Evaluation:
        """Some images by Bayes' rule (:func:`~vi_flows.training.tasks.classes.by_bayes`), exact too.

        So many images that :data:`~vi_flows.training.tasks.classes.MOST_CLASSIFIED` are scored in all.
        """
        places = classes.classified(len(seen), self.num_classes)
        images, own = self._parted(seen[places])
        every = torch.eye(self.num_classes, device=self.device)
        asked = [torch.cat([images.flatten(1), one.expand(len(images), -1)], 1) for one in every]
        given = self.exact_scores(torch.cat(asked), progress).unflatten(0, (self.num_classes, len(images)))
        shares = classes.class_shares(self.data, self.train_rows)
        figures, marginal = classes.by_bayes(given, shares, own.argmax(1).cpu())
        return Evaluation(found.figures | figures, found.scores | classes.of_classified(marginal, places, len(seen)))

    def report(self, record: dict[str, Any]) -> list[str]:
        """Nats and bits/dim; with classes, what they tell of the image and the image of them."""
        return [
            f"NLL  {record['nll']:.3f} nats (exact), {interval_in_words(record['interval'], 3)}",
            f"{record['bits_per_dim']:.4f} bits/dim; {record['parameters']} parameters",
            *classes.in_words(record),
        ]

    @torch.no_grad()
    def pictures(self, settings: BinaryDrawingSettings) -> dict[str, Tensor]:
        """Samples, training images, and rows of a test image with lower halves drawn to its upper one.

        Where the model is told the class, a row of samples or training images is of one class, the first row of class
        0; completions are of the image's own. They are left out for an order in which the upper half doesn't come
        first, and for a mixture of several.

        Args:
            settings: size of the grids, and whether pixels of the training images are drawn too; those of the samples
                always are.
        """
        rows, columns = settings.rows, settings.columns
        chosen, context = classes.lines_of_classes(self.data, self.splits.train, rows, columns)
        top = 1 if self.binary else self.data.levels - 1
        shown = self.data.binarized(chosen) if settings.binary and self.binary else self.data.means(chosen)
        samples = self.module.draw(context.to(self.device), progress=True)
        grids = {"samples": samples.float().cpu() / top, "data": shown.reshape(-1, *self.data.shape)}
        channels, height, width = self.data.shape
        known, upper = channels * width * (height // 2), torch.zeros(self.data.shape, dtype=torch.bool)
        upper[:, : height // 2] = True
        if columns > 1 and not self.module.is_mixture and upper.flatten()[self._first(known)].all():
            given = evenly(self._fixed(self.splits.test), rows)
            starts, contexts = self._parted(given.repeat_interleave(columns - 1, 0))
            ends = self.module.extend(starts, known, contexts, progress=True)
            lines = torch.cat([self._parted(given)[0][:, None], ends.unflatten(0, (len(given), columns - 1))], 1)
            grids["completions"] = lines.flatten(0, 1).float().cpu() / top
        return grids

    def _first(self, number: int) -> Tensor:
        """Flat indices of the pixels that are drawn first."""
        return self.module.generation_order()[:number].cpu()
