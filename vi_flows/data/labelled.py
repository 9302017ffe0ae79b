"""Images whose rows say their class too, for models that are told it."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from vi_flows.data.base import ImageData, Protocol, SplitName, Splits

__all__ = ["LabelledImages", "labelled"]

MOST_CLASSES = 10_000
"""A one-hot class is a number a class and row: beyond this many, labels are hardly classes."""


@dataclass(frozen=True, eq=False)
class LabelledImages(ImageData):
    """Images of classes ``0 … num_classes − 1``, which are numbered in the order of their labels.

    The rows of :meth:`split` are int16 (N, C*H*W + 1), the class last.

    What is made of rows (:meth:`means`, :meth:`binarized`, :meth:`images`) is made of their pixels: to the bit what
    the same images give without labels.

    Attributes:
        num_classes: different labels there are in all splits.
        sha256: hash of the pixels' own and of the classes.
    """

    num_classes: int = 0

    def pixels(self, split: SplitName | Tensor) -> Tensor:
        """See :meth:`ImageData.pixels`; of rows of :meth:`split` their pixels."""
        return split[..., : self.num_pixels] if isinstance(split, Tensor) else super().pixels(split)

    def split(self, protocol: Protocol) -> Splits:
        """See :meth:`ImageData.split`; with the classes as the rows' last column."""
        pixels = super().split(protocol)
        assert self.labels is not None
        train = self.labels["train"]
        if protocol == "paper":
            train = torch.cat([train, self.labels["valid"]])
        classes = Splits(train, self.labels["valid"][: len(pixels.valid)], self.labels["test"])
        both = zip(pixels, classes, strict=True)
        return Splits(*(torch.cat([part.short(), of[:, None].short()], 1) for part, of in both))

    def class_indicators(self, rows: Tensor) -> Tensor:
        """See :meth:`ImageData.class_indicators`."""
        # Not by one_hot, which reads its argument back to check it.
        return (rows[:, -1:] == torch.arange(self.num_classes, device=rows.device)).float()


def labelled(data: ImageData) -> LabelledImages:
    """The same images with their classes in the rows, numbered without gaps: 0 for the smallest label of any split.

    Args:
        data: with labels.

    Raises:
        ValueError: there are none, or they are no classes: negative, or 10 000 different ones and more.
    """
    if data.labels is None:
        raise ValueError(
            f"{data.name} has no labels: choose a data set that has them, such as digits or mnist, or leave labels out"
        )
    every = torch.cat([data.labels[name] for name in ("train", "valid", "test")])
    if not len(every) or int(every.min()) < 0:
        found = f"{int(every.min())} … {int(every.max())}" if len(every) else "none"
        raise ValueError(f"{data.name}: classes must be whole numbers from 0 upwards, its labels are {found}")
    known, numbers = every.unique(return_inverse=True)
    if len(known) >= MOST_CLASSES:
        raise ValueError(
            f"{data.name} has {len(known)} different labels, which are hardly classes; leave out those that are rare, "
            f"or group them: there may be {MOST_CLASSES - 1}"
        )
    # A number a label in all splits, also where the training images lack one.
    sizes = [len(data.labels[name]) for name in ("train", "valid", "test")]
    labels, every = dict(zip(("train", "valid", "test"), numbers.split(sizes), strict=True)), numbers
    digest = hashlib.sha256(f"labelled {data.sha256}\n".encode() + every.numpy().tobytes()).hexdigest()
    fields = {item.name: getattr(data, item.name) for item in dataclasses.fields(ImageData)}
    return LabelledImages(**{**fields, "sha256": digest, "labels": labels}, num_classes=len(known))
