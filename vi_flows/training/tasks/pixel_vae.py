"""The training task of VAEs with autoregressive decoders: where the bits of an image are, beside their number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from vi_flows.autoregressive.config import PixelModel, PixelModelChoice, Residual
from vi_flows.evaluation import NOT_KEPT, Parts
from vi_flows.settings import Positive, SettingsError
from vi_flows.training.tasks.base import Evaluation
from vi_flows.training.tasks.vae import VAEEvaluationSettings, VAETask, VAETrainConfig
from vi_flows.vae import VAE, VAEConfig, build_pixel_vae, latent_use, others_of

__all__ = ["PixelVAEEvaluationSettings", "PixelVAETask", "PixelVAETrainConfig"]

ROWS_SCORED = 500  # at once, without gradients


def _local_decoder() -> PixelModel:
    # It sees four pixels in each direction: strokes, but no digit.
    return Residual(width=32, num_blocks=2, first_kernel=5)


@dataclass(frozen=True)
class PixelVAESettings:
    """What is built.

    Attributes:
        vae: latents, networks and guide.
        decoder: model of the pixels.
    """

    vae: VAEConfig
    decoder: PixelModel


@dataclass(frozen=True)
class PixelVAETrainConfig(VAETrainConfig):
    """Train a VAE with an autoregressive decoder on binary images (PixelVAE; lossy VAE with a local decoder)."""

    kind: ClassVar[str] = "pixel_vae"
    stackable: ClassVar[bool] = False

    decoder: PixelModelChoice = field(default_factory=_local_decoder)
    """Model of the pixels given the latent, after the flow at the end of the line, with its settings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.redrawn:
            raise SettingsError("redrawn takes a draw of the decoder pixel by pixel in every step; leave it out")
        if self.ema_decay and self.decoder.num_in_turn > 1:
            raise SettingsError(
                f"ema_decay averages all weights at every step, and the networks of {self.decoder.name} take turns: "
                "leave it out"
            )

    @property
    def name(self) -> str:
        """Such as ``g1-pixel_cnn-w32-b2-first_kernel5``."""
        return f"{super().name}-{self.decoder.name}-{self.decoder.key}"

    @property
    def label(self) -> str:
        """Such as ``VAE, pixel_cnn decoder``."""
        return f"{super().label}, {self.decoder.name} decoder"

    @property
    def model_settings(self) -> Any:
        """Those of the VAE and of its decoder."""
        return PixelVAESettings(self.vae, self.decoder)


@dataclass(frozen=True)
class PixelVAEEvaluationSettings(VAEEvaluationSettings):
    """How a VAE with an autoregressive decoder is judged; each sample is a pass of the decoder over the image."""

    num_samples: Positive = 100
    """Importance samples an image."""


class PixelVAETask(VAETask):
    """A VAE with an autoregressive decoder; see :class:`~vi_flows.training.tasks.vae.VAETask`.

    Args:
        config: settings of the run.
        data: the images.

    Raises:
        ValueError: as of :class:`VAETask`; or the decoder's settings are inconsistent.
    """

    config: PixelVAETrainConfig

    def build_module(self) -> VAE:
        """The VAE with its decoder."""
        return build_pixel_vae(self.config.vae, self.config.decoder, self.data.shape)

    def evaluate(
        self, rows: Tensor, settings: VAEEvaluationSettings, progress: bool, parts: Parts = NOT_KEPT
    ) -> Evaluation:
        """As of a VAE, and by :func:`~vi_flows.vae.latent_use` how much of an image its latent tells.

        Args:
            rows: a whole split, ``(N, D)``.
            settings: how.
            progress: show a bar.
            parts: where what was evaluated before is taken from.

        Raises:
            ValueError: there are fewer than two images.
        """
        x = settings.chosen(self.data.binarized(rows)).to(self.device)
        others = others_of(x, settings.seed)  # refuses a single image, before what takes long
        found = super().evaluate(rows, settings, progress, parts)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(settings.seed)
            pairs = zip(x.split(ROWS_SCORED), others.split(ROWS_SCORED), strict=True)
            used = [latent_use(self.module, part, other) for part, other in pairs]
        scores = {
            name: torch.cat(values).float().cpu()
            for name, values in zip(used[0]._fields, zip(*used, strict=True), strict=True)
        }
        figures = {name: values.double().mean().item() for name, values in scores.items()}
        return Evaluation(found.figures | figures, found.scores | scores)

    def report(self, record: dict[str, Any]) -> list[str]:
        """As of a VAE, with the parts of the bound."""
        gain = record["reconstruction_of_others"] - record["reconstruction"]
        return [
            *super().report(record),
            f"KL {record['kl']:.3f} + reconstruction {record['reconstruction']:.3f} nats; the own latent tells the "
            f"decoder {gain:.3f} nats more than another image's",
        ]
