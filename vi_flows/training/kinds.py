"""The kinds of training runs.

To add a kind, say ``wave``: write one file ``training/tasks/wave.py`` with

- a frozen dataclass ``WaveTrainConfig(TrainConfig)`` with ``kind: ClassVar[str] = "wave"``, the kind's own settings
  (each with a default and a docstring, which becomes the option's help; the class docstring's first line becomes the
  command's), and the property ``name``: what tables and file names call the model. Where the data are not images,
  override ``load_data``;
- a class with the methods of :class:`~vi_flows.training.tasks.vae.Task`, made from (configuration, data);

and give it an entry in :data:`KINDS`. ``vi-flows train wave``, resuming, evaluating and sampling follow from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from vi_flows.training.config import TrainConfig
from vi_flows.training.tasks.image import ImageFlowTask, ImageTrainConfig
from vi_flows.training.tasks.pixel import PixelTask, PixelTrainConfig
from vi_flows.training.tasks.vae import Task, VAETask, VAETrainConfig

__all__ = ["KINDS", "Kind"]


class Kind(NamedTuple):
    """The settings of a kind of run, and what makes its task from (settings, data)."""

    config: type[TrainConfig]
    task: Callable[[Any, Any], Task]


KINDS: dict[str, Kind] = {
    kind.config.kind: kind
    for kind in (
        Kind(VAETrainConfig, VAETask),
        Kind(ImageTrainConfig, ImageFlowTask),
        Kind(PixelTrainConfig, PixelTask),
    )
}
"""Every kind by its name."""
