"""The settings of a training run: one typed dataclass, which is also the command line."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vi_flows.distributions.image_config import ImageFlowConfig
from vi_flows.settings import Bounds, NonNegative, NonNegativeFloat, Positive, PositiveFloat, check_settings
from vi_flows.vae import VAEConfig

__all__ = ["TrainConfig", "config_from_dict", "config_to_dict"]


@dataclass(frozen=True)
class TrainConfig:
    """Train a VAE with or without a flow posterior, or an image flow."""

    dataset: str = "digits"
    """Data set by name; `vi-flows data list` shows them."""
    data_root: Path | None = None
    """Folder with the data files; default: VI_FLOWS_DATA, else the download cache."""
    protocol: Literal["clean", "paper"] = "clean"
    """clean: train split, weights chosen on the validation split. paper: train and validation splits, last weights."""
    model: Literal["vae", "image_flow"] = "vae"
    """What to train: a VAE on binary images, or a flow on images as they are (bits/dim)."""
    vae: Annotated[VAEConfig, tyro.conf.arg(name="")] = field(default_factory=VAEConfig)
    """The VAE and its guide."""
    image: ImageFlowConfig = field(default_factory=ImageFlowConfig)
    """The image flow."""
    objective: Literal["elbo", "iwae"] = "elbo"
    """Bound to maximise."""
    num_particles: Positive = 1
    """Posterior draws of each image (IW of the paper for `iwae`)."""
    epochs: Positive = 100
    """Passes over the training images."""
    batch_size: Positive = 100
    """Images a step; a shorter last batch is used too."""
    learning_rate: PositiveFloat = 1e-3
    """Adam's; the peak of the schedule."""
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    """constant; cosine: down to zero; step: divided by ten at half and at three quarters of the epochs."""
    lr_warmup_steps: NonNegative = 0
    """Steps over which the learning rate rises linearly from zero."""
    kl_warmup_epochs: NonNegativeFloat = 0.0
    """Epochs over which the KL term's weight rises linearly from 0 to 1 (the reported bound is never weighted)."""
    ema_decay: Annotated[float, Bounds(above=0, below=1)] | None = None
    """Evaluate an exponential moving average of the weights with this decay a step."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the gradient; longer ones are scaled down."""
    output_bias: bool = True
    """Start the decoder's output bias at the logit of the mean training image."""
    validate_every: Positive = 1
    """Epochs between validations."""
    valid_particles: Positive = 1
    """Draws an image of the validation bound (ELBO)."""
    checkpoint_seconds: NonNegativeFloat = 60.0
    """At most so long between checkpoints; one is also written at the end of each epoch."""
    seed: NonNegative = 0
    """Of the initial weights, the data order and all draws."""
    device: str = "cpu"
    """Torch device."""
    threads: Positive | None = None
    """CPU threads; default: torch's own choice."""
    cuda_graph: bool = False
    """Record a VAE's training step on a GPU once and replay it (elsewhere without effect on speed)."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.cuda_graph and self.model != "vae":
            raise ValueError("cuda_graph is for VAEs")

    def check_all_used(self) -> None:
        """Refuse settings that this model or flow would leave unused; a run is not started with them.

        Raises:
            ValueError: a setting of another model, or of a flow that is not there, differs from its default.
        """
        _refuse_changed(self, TrainConfig(), UNUSED[self.model], f"is not a setting of model={self.model}")
        if self.model == "vae" and self.vae.flow == "none":
            reason = "needs a flow (vae.flow: --flow global or amortized)"
            _refuse_changed(self.vae, VAEConfig(), VAEConfig.OF_THE_FLOW, reason)

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """Learning rate of step ``step`` (from 0) of ``total_steps``."""
        rate = self.learning_rate
        if self.lr_warmup_steps:
            rate *= min(1.0, (step + 1) / self.lr_warmup_steps)
        progress = step / max(total_steps, 1)
        if self.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * progress))
        elif self.schedule == "step":
            rate *= 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
        return rate

    def kl_weight_at(self, epoch: float) -> float:
        """Weight of the KL term after ``epoch`` epochs, counted in fractions."""
        return 1.0 if self.kl_warmup_epochs <= 0 else min(1.0, epoch / self.kl_warmup_epochs)


def _refuse_changed(settings: Any, default: Any, names: tuple[str, ...], reason: str, prefix: str = "") -> None:
    """Refuse the first of the named settings, or of those inside it, that differs from its default."""
    for name in names:
        found, usual = getattr(settings, name), getattr(default, name)
        if found == usual:
            continue
        if dataclasses.is_dataclass(usual):
            inner = tuple(item.name for item in dataclasses.fields(usual))
            _refuse_changed(found, usual, inner, reason, f"{prefix}{name}.")
        raise ValueError(f"{prefix}{name} {reason}: leave it at {usual!r}")


UNUSED: dict[str, tuple[str, ...]] = {
    "vae": ("image",),
    "image_flow": (
        "vae", "objective", "num_particles", "kl_warmup_epochs", "output_bias", "valid_particles", "cuda_graph",
    ),
}  # fmt: skip
"""Settings that a model has no use for."""


def config_to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON-ready values."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))


def config_from_dict(kind: type, values: dict[str, Any]) -> Any:
    """The configuration of class ``kind`` that :func:`config_to_dict` wrote.

    Raises:
        ValueError: a setting is unknown to this version.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"unknown settings {', '.join(unknown)}: written by another version?")

    def revive(value: Any, hint: Any) -> Any:
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise ValueError(f"expected the settings of {hint.__name__}, got {value!r}")
            return config_from_dict(hint, value)
        if isinstance(value, list):
            return tuple(revive(inner, None) for inner in value)
        if isinstance(value, str) and Path in typing.get_args(hint):
            return Path(value)
        return value

    return kind(**{name: revive(value, hints[name]) for name, value in values.items()})
