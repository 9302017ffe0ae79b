"""Training: one loop, one checkpoint format, one kind of result record."""

from vi_flows.training.config import TrainConfig
from vi_flows.training.loop import Trainer, TrainingDivergedError, TrainingInterrupted
from vi_flows.training.run import Run, RunError, RunUnusableError
from vi_flows.training.tasks.image import ImageTrainConfig
from vi_flows.training.tasks.pixel import PixelTrainConfig
from vi_flows.training.tasks.pixel_vae import PixelVAETrainConfig
from vi_flows.training.tasks.vae import VAETrainConfig
from vi_flows.training.tasks.wave import WaveTrainConfig

__all__ = [
    "ImageTrainConfig", "PixelTrainConfig", "PixelVAETrainConfig", "Run", "RunError", "RunUnusableError", "TrainConfig",
    "Trainer", "TrainingDivergedError", "TrainingInterrupted", "VAETrainConfig", "WaveTrainConfig",
]  # fmt: skip
