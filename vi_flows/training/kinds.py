"""The kinds of training runs.

To add a kind, say ``text``: write one file ``training/tasks/text.py`` with

- a frozen dataclass ``TextTrainConfig(TrainConfig)`` with ``kind: ClassVar[str] = "text"``, the kind's own settings
  (each with a default and a docstring, which becomes the option's help; the class docstring's first line becomes the
  command's), and the property ``name``: what tables and file names call the model. Where the data are not images,
  override ``load_data``;
- a class with the methods of :class:`~vi_flows.training.tasks.base.Task`, made from (configuration, data);
- where evaluation or drawing takes more settings than every kind's, subclasses of
  :class:`~vi_flows.training.tasks.base.EvaluationSettings` or :class:`~vi_flows.training.tasks.base.DrawingSettings`;
- where its samples are no pictures, a function that writes them;

and give it an entry in :data:`KINDS`. ``vi-flows train text``, resuming, evaluating and sampling follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vi_flows.settings import settings_from
from vi_flows.training.config import TrainConfig
from vi_flows.training.drawing import draw_grids
from vi_flows.training.tasks.base import BinaryDrawingSettings, DrawingSettings, EvaluationSettings, Task
from vi_flows.training.tasks.image import (
    ImageDrawingSettings,
    ImageEvaluationSettings,
    ImageFlowTask,
    ImageTrainConfig,
)
from vi_flows.training.tasks.pixel import PixelTask, PixelTrainConfig
from vi_flows.training.tasks.pixel_vae import PixelVAEEvaluationSettings, PixelVAETask, PixelVAETrainConfig
from vi_flows.training.tasks.vae import VAEEvaluationSettings, VAETask, VAETrainConfig
from vi_flows.training.tasks.wave import WaveTask, WaveTrainConfig

__all__ = ["KINDS", "Kind"]


class Kind(NamedTuple):
    """A kind of run: its settings and those of its evaluation and drawing, its task, and what draws its samples.

    ``task`` is made from (settings, data); ``draw`` gets (task, folder, settings of the drawing) and returns the files
    that it wrote; ``figure`` is that of a record which its ``interval`` belongs to, over its ``rows``.
    """

    config: type[TrainConfig]
    task: Callable[[Any, Any], Task]
    evaluation: type[EvaluationSettings] = EvaluationSettings
    drawing: type[DrawingSettings] = DrawingSettings
    draw: Callable[[Any, Path, Any], list[Path]] = draw_grids
    figure: str = "nll"
    rows: str = "images"

    def evaluation_settings(self, given: Mapping[str, Any]) -> EvaluationSettings:
        """The settings of an evaluation by name, with defaults for the others.

        Raises:
            ValueError: one is of another kind of run, or out of its bounds.
        """
        return settings_from(self.evaluation, given, f"the evaluation of a run of kind {self.config.kind}")

    def drawing_settings(self, given: Mapping[str, Any]) -> DrawingSettings:
        """The settings of a drawing by name, with defaults for the others.

        Raises:
            ValueError: one is of another kind of run, or out of its bounds.
        """
        return settings_from(self.drawing, given, f"drawing from a run of kind {self.config.kind}")


KINDS: dict[str, Kind] = {
    kind.config.kind: kind
    for kind in (
        Kind(VAETrainConfig, VAETask, VAEEvaluationSettings, BinaryDrawingSettings),
        Kind(ImageTrainConfig, ImageFlowTask, ImageEvaluationSettings, ImageDrawingSettings, figure="bits_per_dim"),
        Kind(PixelTrainConfig, PixelTask, drawing=BinaryDrawingSettings),
        Kind(PixelVAETrainConfig, PixelVAETask, PixelVAEEvaluationSettings, BinaryDrawingSettings),
        Kind(WaveTrainConfig, WaveTask, draw=WaveTask.draw, figure="bits_per_sample", rows="recordings"),
    )
}
"""Every kind by its name."""
