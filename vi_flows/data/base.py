"""The container every image data set is loaded into, its content hash and the one way to draw binary images."""

from __future__ import annotations

import hashlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vi_flows.settings import check_tensors

SplitName = Literal["train", "valid", "test", "train+valid"]
Protocol = Literal["paper", "clean"]
Binarization = Literal["static", "dynamic"]

#: Seed of the one binary draw that stands for the validation and test images of a dynamically binarised set.
BINARIZATION_SEED = 0


class DataNotFoundError(FileNotFoundError):
    """A data file is absent; the message says which, where it was looked for, its origin and how to fetch it."""


class DataCorruptError(ValueError):
    """A data file does not hold what it should; the message gives the expected and the found checksum."""


def binarize(means: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw binary values from Bernoulli means.

    A pixel is one where a uniform draw from [0, 1) is below its mean, so that means of 0 and 1 are kept exactly.

    Args:
        means: Bernoulli means in [0, 1], any shape, a floating-point dtype.
        generator: on the device of ``means``; torch's global generator where it is None.

    Returns:
        Zeros and ones with the shape, dtype and device of ``means``.

    Raises:
        ValueError: a mean is outside of [0, 1], NaN, or no floating-point number.
    """
    check_tensors(means=means)
    if not means.is_floating_point() or not bool(((means >= 0) & (means <= 1)).all()):
        raise ValueError("Bernoulli means must be floating-point numbers in [0, 1]; divide grey values by their range")
    return draw_binary(means, generator)


def draw_binary(means: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """:func:`binarize` for means that are known to be in [0, 1]: nothing is read back from a device.

    Args:
        means: as there.
        generator: as there.
    """
    # Not torch.bernoulli: on the CPU its stream depends on whether torch was built with MKL.
    uniform = torch.rand(means.shape, generator=generator, dtype=means.dtype, device=means.device)
    return (uniform < means).to(means.dtype)


def content_sha256(shape: tuple[int, int, int], levels: int, splits: Mapping[str, Tensor]) -> str:
    """SHA-256 of the pixels of all splits with their shape, the same on every machine.

    Args:
        shape: (C, H, W) of one image.
        levels: number of values a pixel can take.
        splits: uint8 tensors (N, C*H*W) by name; hashed in the order train, valid, test.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(f"images {shape[0]}x{shape[1]}x{shape[2]} levels {levels}\n".encode())
    for name in ("train", "valid", "test"):
        pixels = splits[name].contiguous()
        digest.update(f"{name} {len(pixels)}\n".encode())
        digest.update(pixels.numpy().data.cast("B") if pixels.numel() else b"")
    return digest.hexdigest()


class Splits(NamedTuple):
    """Pixels of a train/valid/test split, each uint8 (N, C*H*W); ``valid`` has N = 0 under the paper's protocol."""

    train: Tensor
    valid: Tensor
    test: Tensor


class RunData(typing.Protocol):
    """What every kind of data offers to a run: rows in three splits, and a hash of them all."""

    @property
    def sha256(self) -> str:
        """Of the rows of all splits."""

    def split(self, protocol: Protocol) -> Splits:
        """The splits to train, select and report on."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """A set of images held in memory as bytes, in three splits.

    Attributes:
        name: the name it is loaded by.
        shape: (C, H, W) of one image.
        levels: number of values a pixel can take: 2 for binary images, 256 for bytes, 17 for the embedded digits.
        train: uint8 (N, C*H*W), row-major images, values 0 … levels-1; so are ``valid`` and ``test``.
        valid: the images to select on; never part of ``train`` or ``test``.
        test: the images to report on.
        binarization: "static" if the images are binary as given, "dynamic" if value/(levels-1) is the mean of a
            Bernoulli that is drawn anew at each training epoch.
        sha256: hash of the pixels of all splits and their shape (see :func:`content_sha256`).
        source: the files or the package it was read from.
        labels: int64 (N,) by split name, or None where the source has no labels.
    """

    name: str
    shape: tuple[int, int, int]
    levels: int
    train: Tensor
    valid: Tensor
    test: Tensor
    binarization: Binarization
    sha256: str
    source: str
    labels: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.binarization not in ("static", "dynamic"):
            raise ValueError(f"binarization must be 'static' or 'dynamic', not {self.binarization!r}")
        if self.binarization == "static" and self.levels != 2:
            raise ValueError(f"statically binarised images have 2 levels, not {self.levels}")
        for name in ("train", "valid", "test"):
            pixels = getattr(self, name)
            if pixels.dtype != torch.uint8 or pixels.dim() != 2 or pixels.shape[1] != self.num_pixels:
                found = f"{pixels.dtype} {tuple(pixels.shape)}"
                raise ValueError(f"{self.name}: {name} must be torch.uint8 (N, {self.num_pixels}), not {found}")
            if pixels.numel() and int(pixels.max()) >= self.levels:
                raise ValueError(f"{self.name}: {name} has the value {int(pixels.max())}, levels is {self.levels}")
            if self.labels is not None and self.labels[name].shape != (len(pixels),):
                raise ValueError(f"{self.name}: labels[{name!r}] must have shape ({len(pixels)},)")

    @property
    def num_pixels(self) -> int:
        """Number of values in one image, C*H*W."""
        channels, height, width = self.shape
        return channels * height * width

    def class_indicators(self, rows: Tensor) -> Tensor:
        """Classes that rows of :meth:`split` say, one-hot, float32 (N, number of classes) on their device.

        Of width 0 here, where rows are pixels alone; :func:`~vi_flows.data.labelled` makes rows that say more.
        """
        return torch.zeros(len(rows), 0, device=rows.device)

    def pixels(self, split: SplitName | Tensor) -> Tensor:
        """The uint8 (N, C*H*W) pixels of a named split; a tensor is handed back as it is.

        Raises:
            ValueError: for a name other than "train", "valid", "test" and "train+valid".
        """
        if isinstance(split, Tensor):
            return split
        if split == "train+valid":
            return torch.cat([self.train, self.valid])
        if split not in ("train", "valid", "test"):
            raise ValueError(f"no split {split!r}: choose 'train', 'valid', 'test' or 'train+valid'")
        return getattr(self, split)

    def images(self, split: SplitName | Tensor) -> Tensor:
        """The uint8 pixels of a split as images, (N, C, H, W)."""
        return self.pixels(split).reshape(-1, *self.shape)

    def means(self, split: SplitName | Tensor) -> Tensor:
        """Bernoulli means value/(levels-1) of a split, float32 (N, C*H*W) in [0, 1].

        Args:
            split: a split's name, or any uint8 pixels of this set (such as a field of :meth:`split`'s answer).
        """
        return self.pixels(split).to(torch.float32) / (self.levels - 1)

    def binarized(self, split: SplitName | Tensor, seed: int = BINARIZATION_SEED) -> Tensor:
        """One fixed binary draw of a split, float32 (N, C*H*W) of zeros and ones.

        Static images are returned as they are. For dynamic ones the draw comes from a CPU generator of this seed; with
        the default it is the draw every evaluation uses.

        Args:
            split: a split's name, or any uint8 pixels of this set.
            seed: of the generator; unused by static sets.
        """
        means = self.means(split)
        if self.binarization == "static":
            return means
        return binarize(means, torch.Generator(device="cpu").manual_seed(seed))

    def split(self, protocol: Protocol) -> Splits:
        """The splits to train, select and report on.

        Args:
            protocol: "paper" trains on train+valid and selects on nothing (``valid`` is empty); "clean" trains on
                train, selects on valid. Both report on test.

        Raises:
            ValueError: for another protocol.
        """
        if protocol == "paper":
            return Splits(self.pixels("train+valid"), self.valid[:0], self.test)
        if protocol == "clean":
            return Splits(self.train, self.valid, self.test)
        raise ValueError(f"no protocol {protocol!r}: choose 'paper' or 'clean'")
