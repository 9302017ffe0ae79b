"""The training task of autoregressive image models: exact log-likelihoods."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from torch import Tensor

from vi_flows.autoregressive.config import PixelConfig, build_pixel_model
from vi_flows.data import ImageData, draw_binary
from vi_flows.evaluation import NOT_KEPT, Parts
from vi_flows.evaluation.nll import half_width
from vi_flows.training.config import TrainConfig
from vi_flows.training.tasks.base import BinaryDrawingSettings, Evaluation, EvaluationSettings, StepResult
from vi_flows.training.tasks.exact import ExactTask

__all__ = ["PixelTask", "PixelTrainConfig"]


@dataclass(frozen=True)
class PixelTrainConfig(TrainConfig):
    """Train an autoregressive model of images: MADE, PixelCNN, PixelRNN (exact log-likelihood)."""

    kind: ClassVar[str] = "pixel"

    pixel: Annotated[PixelConfig, tyro.conf.arg(name="")] = field(default_factory=PixelConfig)
    """The model."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: the network's products of training steps and validations in bfloat16; tests are always in float32."""
    cuda_graph: bool = False
    """Record the training step on a GPU once and replay it: for small models (elsewhere without effect on speed)."""

    @property
    def name(self) -> str:
        """Such as ``pixel_cnn-w128-b12``."""
        return self.pixel.name

    @property
    def model_settings(self) -> PixelConfig:
        """The model's."""
        return self.pixel

    @property
    def captured(self) -> bool:
        """Whether the training step is to be recorded on a GPU and replayed."""
        return self.cuda_graph


class PixelTask(ExactTask):
    """An autoregressive model on binary images, or on grey values as they are.

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
        self.module = build_pixel_model(config.pixel, data.shape, data.levels).to(self.device)
        if self.device.type == "cuda":
            # The layout that tensor cores read without a transposition.
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs lack it

    def _fixed(self, pixels: Tensor) -> Tensor:
        """Pixels of validation or test as the model sees them, ``(N, C, H, W)`` on the device."""
        values = self.data.binarized(pixels) if self.binary else pixels.float()
        return values.reshape(-1, *self.data.shape).to(self.device)

    def _drawn(self, rows: Tensor) -> Tensor:
        """Pixels of a training minibatch as the model sees them."""
        values = self.data.means(rows) if self.binary else rows.float()
        if self.binary and self.data.binarization == "dynamic":
            values = draw_binary(values)
        return values.reshape(-1, *self.data.shape)

    def step(self, rows: Tensor, kl_weight: float | Tensor, num_particles: int) -> StepResult:
        """Mean negative log-likelihood of a minibatch in nats; there is no KL term to weight and no particle."""
        x = self._drawn(rows.to(self.device))
        with self.precision():
            params = self.module.training_params(x, self.no_context(len(x)))
        loss = -self.module.output.log_prob(params.float(), x).sum() / len(x)
        return StepResult(loss, -loss.detach())

    def log_probs(self, rows: Tensor) -> Tensor:
        """See :meth:`ExactTask.log_probs`; of pixels as the model sees them, ``(N, C, H, W)``."""
        return self.module.judged_log_prob(rows, self.no_context(len(rows)))

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
        """The exact negative log-likelihood in nats, in float32 without TF32.

        Args:
            rows: a whole split, ``(N, C·H·W)``: the one binary draw of a dynamic set is that of the split.
            settings: which rows; nothing is drawn by the seed.
            progress: show a bar.
            parts: not looked at: this is quick enough to begin anew.

        Returns:
            ``nll`` with its 95 % ``interval`` over images, ``bits_per_dim``, and what they were made of; the scores
            are ``nll``.
        """
        nll = -self.exact_scores(self._fixed(rows)[: settings.limit], progress)
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
        return Evaluation(figures, {"nll": nll.float()})

    def report(self, record: dict[str, Any]) -> list[str]:
        """Nats and bits/dim."""
        low, high = record["interval"]
        return [
            f"NLL  {record['nll']:.3f} nats (exact), 95 % interval [{low:.3f}, {high:.3f}]",
            f"{record['bits_per_dim']:.4f} bits/dim; {record['parameters']} parameters",
        ]

    @torch.no_grad()
    def pictures(self, settings: BinaryDrawingSettings) -> dict[str, Tensor]:
        """Samples, training images, and rows of a test image with lower halves drawn to its upper one.

        The latter are left out for an order in which the upper half doesn't come first.

        Args:
            settings: size of the grids, and whether pixels of the training images are drawn too; those of the samples
                always are.
        """
        rows, columns = settings.rows, settings.columns
        count = rows * columns
        chosen = self.splits.train[torch.randperm(len(self.splits.train))[:count]]
        top = 1 if self.binary else self.data.levels - 1
        shown = self.data.binarized(chosen) if settings.binary and self.binary else self.data.means(chosen)
        samples = self.module.generate(self.no_context(count), progress=True)
        grids = {"samples": samples.float().cpu() / top, "data": shown.reshape(-1, *self.data.shape)}
        channels, height, width = self.data.shape
        known, upper = channels * width * (height // 2), torch.zeros(self.data.shape, dtype=torch.bool)
        upper[:, : height // 2] = True
        if columns > 1 and upper.flatten()[self.module.generation_order()[:known].cpu()].all():
            given = self._fixed(self.splits.test)[:rows]
            starts = given.repeat_interleave(columns - 1, 0)
            ends = self.module.extend(starts, known, self.no_context(len(starts)), progress=True)
            lines = torch.cat([given[:, None], ends.unflatten(0, (len(given), columns - 1))], 1)
            grids["completions"] = lines.flatten(0, 1).float().cpu() / top
        return grids
