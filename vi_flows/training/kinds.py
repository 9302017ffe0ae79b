"""The kinds of training runs.

To add a kind, say ``text``: write one file ``training/tasks/text.py`` with

- a frozen dataclass ``TextTrainConfig(TrainConfig)`` with ``kind: ClassVar[str] = "text"``, the kind's own settings
  (each with a default and a docstring, which becomes the option's help; the class docstring's first line becomes the
  command's), and the property ``name``: what tables and file names call the model. Where the data are not images,
  override ``load_data``;
- a class with the methods of :class:`~vi_flows.training.tasks.vae.Task`, made from (configuration, data);
- where its samples are no pictures, a function that writes them;

and give it an entry in :data:`KINDS`. ``vi-flows train text``, resuming, evaluating and sampling follow from it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vi_flows.training.config import TrainConfig
from vi_flows.training.drawing import draw_grids
from vi_flows.training.tasks.image import ImageFlowTask, ImageTrainConfig
from vi_flows.training.tasks.pixel import PixelTask, PixelTrainConfig
from vi_flows.training.tasks.vae import Task, VAETask, VAETrainConfig
from vi_flows.training.tasks.wave import WaveTask, WaveTrainConfig

__all__ = ["KINDS", "Kind"]


class Kind(NamedTuple):
    """The settings of a kind of run, what makes its task from (settings, data), and what draws its samples.

    ``draw`` gets (task, folder, rows, columns, binary, temperature) and returns the files that it wrote.
    """

    config: type[TrainConfig]
    task: Callable[[Any, Any], Task]
    draw: Callable[[Any, Path, int, int, bool, float], list[Path]] = draw_grids


KINDS: dict[str, Kind] = {
    kind.config.kind: kind
    for kind in (
        Kind(VAETrainConfig, VAETask),
        Kind(ImageTrainConfig, ImageFlowTask),
        Kind(PixelTrainConfig, PixelTask),
        Kind(WaveTrainConfig, WaveTask, WaveTask.draw),
    )
}
"""Every kind by its name."""
