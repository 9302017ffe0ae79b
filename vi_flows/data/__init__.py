"""Image data: one container, loaders by name, verified files and a packed cache.

>>> from vi_flows.data import load
>>> data = load("digits")
>>> data.split("clean").train.shape
torch.Size([1297, 64])
"""

from vi_flows.data.base import (
    BINARIZATION_SEED,
    DataCorruptError,
    DataNotFoundError,
    ImageData,
    RunData,
    Splits,
    binarize,
    draw_binary,
)
from vi_flows.data.labelled import LabelledImages, labelled
from vi_flows.data.registry import load, names

__all__ = [
    "BINARIZATION_SEED",
    "DataCorruptError",
    "DataNotFoundError",
    "ImageData",
    "LabelledImages",
    "RunData",
    "Splits",
    "binarize",
    "draw_binary",
    "labelled",
    "load",
    "names",
]
