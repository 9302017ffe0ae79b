"""Training: one loop, one checkpoint format, one kind of result record."""

from vi_flows.training.config import TrainConfig
from vi_flows.training.loop import Trainer, TrainingDivergedError, TrainingInterrupted
from vi_flows.training.run import Run, RunError

__all__ = ["Run", "RunError", "TrainConfig", "Trainer", "TrainingDivergedError", "TrainingInterrupted"]
