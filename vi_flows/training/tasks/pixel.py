"""The training task of autoregressive image models: exact log-likelihoods."""

from __future__ import annotations

import math
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from vi_flows.autoregressive.config import PixelConfig, build_pixel_model
from vi_flows.data import ImageData, draw_binary
from vi_flows.training.config import TrainConfig
from vi_flows.training.tasks.vae import Evaluation, StepResult
from vi_flows.vae import AISSettings

__all__ = ["PixelTask", "PixelTrainConfig"]

ROWS_SCORED = 500  # at once, without gradients


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


class PixelTask:
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

    def __init__(self, config: PixelTrainConfig, data: ImageData) -> None:
        self.config, self.data = config, data
        self.device = torch.device(config.device)
        self.splits = data.split(config.protocol)
        self.train_rows = self.splits.train.to(self.device)
        self.binary = config.pixel.output == "bernoulli"
        self.module = build_pixel_model(config.pixel, data.shape, data.levels).to(self.device)
        if self.device.type == "cuda":
            # The layout that tensor cores read without a transposition.
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs lack it

    def initialize(self) -> None:
        """Nothing: no part of the initial weights depends on the data."""

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

    def _precision(self) -> AbstractContextManager[None]:
        # No cache of cast weights: a recorded step would go on using those of its recording.
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16", cache_enabled=False
        )

    def _no_context(self, rows: int) -> Tensor:
        return torch.zeros(rows, 0, device=self.device)

    def step(self, rows: Tensor, kl_weight: float | Tensor, num_particles: int) -> StepResult:
        """Mean negative log-likelihood of a minibatch in nats; there is no KL term to weight and no particle."""
        x = self._drawn(rows.to(self.device))
        with self._precision():
            params = self.module.training_params(x, self._no_context(len(x)))
        loss = -self.module.output.log_prob(params.float(), x).sum() / len(x)
        return StepResult(loss, -loss.detach())

    @torch.no_grad()
    def _scores(self, x: Tensor, progress: bool = False) -> Tensor:
        """Log-likelihoods in nats, ``(N,)``, float32 on the device."""
        parts = tqdm(x.split(ROWS_SCORED), unit="batch", disable=not progress)
        return torch.cat([self.module.judged_log_prob(part, self._no_context(len(part))).float() for part in parts])

    @torch.no_grad()
    def validate(self) -> float | None:
        """Mean negative log-likelihood over the validation rows in nats."""
        if not len(self.splits.valid):
            return None
        with self._precision():
            return -self._scores(self._fixed(self.splits.valid)).double().mean().item()

    @torch.no_grad()
    def evaluate(
        self,
        pixels: Tensor,
        limit: int | None,
        num_samples: int | None,
        seed: int,
        progress: bool,
        ais: AISSettings | None = None,
    ) -> Evaluation:
        """The exact negative log-likelihood in nats, in float32 without TF32.

        Args:
            pixels: a whole split, ``(N, C·H·W)``: the one binary draw of a dynamic set is that of the split.
            limit: score only the first so many images.
            num_samples: must be ``None``.
            seed: unused: nothing is drawn.
            progress: show a bar.
            ais: must be ``None``.

        Returns:
            ``nll`` with its 95 % ``interval`` over images, ``bits_per_dim``, and what they were made of; the scores
            are ``nll``.

        Raises:
            ValueError: samples are asked for, or annealed importance sampling.
        """
        if num_samples is not None:
            raise ValueError("an autoregressive model has an exact likelihood: leave --num-samples out")
        if ais is not None:
            raise ValueError("annealed importance sampling is for VAEs: an autoregressive model has no latents")
        x = self._fixed(pixels)[:limit]
        precise = torch.backends.cudnn.flags(enabled=True, benchmark=torch.backends.cudnn.benchmark, allow_tf32=False)
        with precise:
            nll = -self._scores(x, progress).double().cpu()
        mean = nll.mean().item()
        half = 1.96 * (nll.std() / math.sqrt(len(nll))).item() if len(nll) > 1 else math.nan
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
    def pictures(self, rows: int, columns: int, binary: bool, temperature: float) -> dict[str, Tensor]:
        """Samples, training images, and rows of a test image with lower halves drawn to its upper one.

        The latter are left out for an order in which the upper half doesn't come first.

        Args:
            rows: rows of the grids.
            columns: columns of the grids.
            binary: draw pixels of the training images too; those of the samples are always drawn.
            temperature: must be 1.

        Raises:
            ValueError: another temperature.
        """
        if temperature != 1:
            raise ValueError("temperature is for image flows; an autoregressive model is sampled as it is")
        count = rows * columns
        chosen = self.splits.train[torch.randperm(len(self.splits.train))[:count]]
        top = 1 if self.binary else self.data.levels - 1
        shown = self.data.binarized(chosen) if binary and self.binary else self.data.means(chosen)
        samples = self.module.generate(self._no_context(count), progress=sys.stderr.isatty())
        grids = {"samples": samples.float().cpu() / top, "data": shown.reshape(-1, *self.data.shape)}
        channels, height, width = self.data.shape
        known, upper = channels * width * (height // 2), torch.zeros(self.data.shape, dtype=torch.bool)
        upper[:, : height // 2] = True
        if columns > 1 and upper.flatten()[self.module.generation_order()[:known].cpu()].all():
            given = self._fixed(self.splits.test)[:rows]
            starts = given.repeat_interleave(columns - 1, 0)
            ends = self.module.extend(starts, known, self._no_context(len(starts)), progress=sys.stderr.isatty())
            lines = torch.cat([given[:, None], ends.unflatten(0, (len(given), columns - 1))], 1)
            grids["completions"] = lines.flatten(0, 1).float().cpu() / top
        return grids
