"""What tasks share whose models may be told each image's class: settings, Bayes' rule, and lines of one class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vi_flows.data import ImageData, labelled, load
from vi_flows.evaluation import spread_evenly
from vi_flows.settings import LATER
from vi_flows.training.config import TrainConfig

__all__ = [
    "LabelledTrainConfig",
    "ModelSettings",
    "by_bayes",
    "class_shares",
    "classified",
    "given",
    "in_short",
    "in_words",
    "lines_of_classes",
    "of_classified",
]

MOST_CLASSIFIED = 10_000
"""Images are scored under every class, so many times an image and class in all."""


@dataclass(frozen=True)
class ModelSettings:
    """What is built.

    Attributes:
        model: its settings.
        labels: whether it is told the class.
    """

    model: Any
    labels: bool


@dataclass(frozen=True)
class LabelledTrainConfig(TrainConfig):
    """Settings of a model of images that may be told their classes."""

    labels: bool = field(default=False, metadata=LATER)
    """Tell the model each image's class: p(image | class), for data sets with labels."""

    def load_data(self) -> ImageData:
        """The images, with their classes where the model is told them.

        Raises:
            ValueError: there is no such data set, or it has no labels to tell.
            DataNotFoundError: its files are missing.
        """
        data = load(self.dataset, self.data_root)
        return labelled(data) if self.labels else data

    @property
    def told(self) -> str:
        """The end of a name: ``-labels`` where the model is told the class."""
        return "-labels" * self.labels


def given(settings: Mapping[str, Any]) -> str:
    """The end of what is scored, where a record's settings say that the model is told the class."""
    return " given the class" if settings.get("labels") else ""


def class_shares(data: ImageData, rows: Tensor) -> Tensor:
    """Shares ``π`` of the classes among rows, float64 ``(K,)`` on the CPU."""
    return data.class_indicators(rows).double().mean(0).cpu()


def by_bayes(given: Tensor, shares: Tensor, own: Tensor) -> tuple[dict[str, Any], Tensor]:
    r"""Images without their class, by Bayes' rule: ``p(c | x) ∝ π_c p(x | c)``.

    Args:
        given: ``log p(x | c)``, ``(K, …, N)``; what stands between is averaged: draws of a noise, each of which is
            common to all classes.
        shares: ``π``, ``(K,)``.
        own: classes of the images, ``(N,)``.

    Returns:
        ``class_accuracy``, the share whose most probable class is theirs, ``marginal_nll``, the mean of ``−log Σ_c π_c
        p(x | c)``, ``num_classes`` and ``classified_rows``; and that of each image, ``(N,)``.
    """
    joint = given + shares.log().reshape(-1, *[1] * (given.dim() - 1))
    marginal = -joint.logsumexp(0).reshape(-1, given.shape[-1]).mean(0)
    found = joint.reshape(len(shares), -1, given.shape[-1]).mean(1).argmax(0)
    figures = {
        "num_classes": len(shares),
        "classified_rows": given.shape[-1],
        "class_accuracy": (found == own).double().mean().item(),
        "marginal_nll": marginal.mean().item(),
    }
    return figures, marginal


def classified(size: int, num_classes: int) -> Tensor:
    """Which of the scored images are scored under every class: :data:`MOST_CLASSIFIED` scores, spread evenly."""
    return spread_evenly(size, max(1, MOST_CLASSIFIED // num_classes))


def of_classified(marginal: Tensor, places: Tensor, size: int) -> dict[str, Tensor]:
    """The score that :func:`by_bayes` found, with the places of its images where those are not all."""
    scores = {"marginal_nll": marginal.float()}
    return scores if len(places) == size else scores | {"marginal_image": places.float()}


def in_words(figures: dict[str, Any]) -> list[str]:
    """What :func:`by_bayes` found, as the last line of a report; none where the model isn't told the class."""
    if "num_classes" not in figures:
        return []
    return [
        f"these are given the class; without it {figures['marginal_nll']:.3f} nats ("
        f"{figures['classified_rows']} images, spread evenly), of which {100 * figures['class_accuracy']:.1f} % are "
        f"assigned to their own among {figures['num_classes']} classes",
    ]


def in_short(figures: dict[str, Any]) -> str:
    """The same behind a row's name in a table; nothing where the model isn't told the class."""
    if "num_classes" not in figures:
        return ""
    assigned = 100 * figures["class_accuracy"]
    return f" (given the class; without it {figures['marginal_nll']:.2f} nats, {assigned:.1f} % assigned)"


def lines_of_classes(data: ImageData, rows: Tensor, num_lines: int, columns: int) -> tuple[Tensor, Tensor]:
    """Images for a grid, drawn among rows, each line of one class, and the contexts of as many samples.

    Args:
        data: of the rows.
        rows: of a split; without classes all lines are of all rows.
        num_lines: of the grid; the first is of class 0.
        columns: images a line; a class that has not so many leaves the rest of its line black.

    Returns:
        Rows ``(num_lines · columns, …)`` and one-hot classes ``(num_lines · columns, K)``, where ``K`` may be 0.
    """
    drawn = rows[torch.randperm(len(rows))]
    shown = data.class_indicators(drawn)
    if not shown.shape[1]:
        return drawn[: num_lines * columns], shown.new_zeros(num_lines * columns, 0)
    wanted, classes, lines = torch.arange(num_lines) % shown.shape[1], shown.argmax(1), []
    for one in wanted:
        members = drawn[classes == one][:columns]
        lines.append(torch.cat([members, members.new_zeros(columns - len(members), members.shape[1])]))
    return torch.cat(lines), torch.eye(shown.shape[1])[wanted].repeat_interleave(columns, 0)
