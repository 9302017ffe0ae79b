"""What a data set is to the loader: its files, its shape, and the function that turns the files into images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from vi_flows.data import cache
from vi_flows.data.base import Binarization, DataCorruptError, ImageData, content_sha256
from vi_flows.data.sources import DataRoot, SourceFile, download, locate, not_found, read_verified

_SPLITS = ("train", "valid", "test")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arrays:
    """What ``Dataset.build`` returns: uint8 (N, C*H*W) by split, and (N,) labels by split if there are any."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    labels: dict[str, np.ndarray] = field(default_factory=dict)


def hold_out(pixels: np.ndarray, labels: np.ndarray, count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Cut validation images from training images that have none of their own, by a fixed seed; both keep their order.

    Args:
        pixels: (N, C*H*W).
        labels: (N,).
        count: of the validation images.

    Returns:
        The pixels of "train" and "valid", and their labels.
    """
    # RandomState's streams are frozen, Generator's are not: the split must outlive versions of numpy.
    held = np.zeros(len(pixels), dtype=bool)
    held[np.random.RandomState(0).permutation(len(pixels))[:count]] = True
    return {"train": pixels[~held], "valid": pixels[held]}, {"train": labels[~held], "valid": labels[held]}


def image_data(
    arrays: Arrays, name: str, shape: tuple[int, int, int], levels: int, binarization: Binarization, source: str
) -> ImageData:
    """The container of what a ``build`` returned; the arguments are the container's fields."""
    splits = {split: torch.from_numpy(np.require(getattr(arrays, split), requirements=["C", "W"])) for split in _SPLITS}
    labels = {split: torch.from_numpy(array.astype(np.int64)) for split, array in arrays.labels.items()}
    sha256 = content_sha256(shape, levels, splits)
    return ImageData(
        name, shape, levels, **splits, binarization=binarization, sha256=sha256, source=source, labels=labels or None
    )


@dataclass(frozen=True)
class Dataset:
    """An entry of the registry.

    Attributes:
        name: what it is loaded by.
        title: one line on what it is.
        shape: (C, H, W) of one image.
        levels: number of values a pixel can take.
        counts: number of images in train, valid and test.
        binarization: see :class:`~vi_flows.data.base.ImageData`.
        files: its public files; none if a package brings it.
        build: from the verified, uncompressed contents of the files, in their order, to images; raises
            DataCorruptError for contents it cannot read.
        homepage: where it is described.
        licence: its terms, as far as its authors state them.
        citation: the work to cite.
        sha256: content hash of the images, None if unknown.
        cached: keep a packed copy, because ``build`` takes seconds.
        version: raised when ``build`` changes what it returns, so that cached copies are made again.
    """

    name: str
    title: str
    shape: tuple[int, int, int]
    levels: int
    counts: tuple[int, int, int]
    binarization: Binarization
    files: tuple[SourceFile, ...]
    build: Callable[[Sequence[bytes]], Arrays]
    homepage: str
    licence: str
    citation: str
    sha256: str | None = None
    cached: bool = False
    version: int = 1

    def missing(self, root: DataRoot) -> list[SourceFile]:
        """The files that are not under this root."""
        return [file for file in self.files if locate(file, root) is None]

    def read(self, root: DataRoot, use_cache: bool = True) -> ImageData:
        """The images, from the cached copy or from the verified files.

        Args:
            root: where the files are.
            use_cache: False to read and verify the files whatever the cache holds, and store nothing.

        Raises:
            DataNotFoundError: if a file is missing.
            DataCorruptError: if one is corrupt.
        """
        if missing := self.missing(root):
            raise not_found(self.name, missing, root)
        paths = [path for file in self.files if (path := locate(file, root)) is not None]
        entry = cache.entry_path(self.name, self.version, paths) if self.cached and use_cache else None
        source = ", ".join(map(str, paths)) or self.homepage
        data = cache.read(entry, self.name, self.shape, self.levels, self.binarization, source) if entry else None
        if data is None:
            arrays = self._from_files(paths)
            data = image_data(arrays, self.name, self.shape, self.levels, self.binarization, source)
            if entry is not None:
                cache.write(entry, data)
        if self.sha256 is not None and data.sha256 != self.sha256:
            # The files were verified, so this is another decoder or resampler: legitimate, but not the same numbers.
            _log.warning("%s hashes to %s here, not to %s: results may differ", self.name, data.sha256, self.sha256)
        return data

    def _from_files(self, paths: Sequence[Path]) -> Arrays:
        contents = [read_verified(file, path) for file, path in zip(self.files, paths, strict=True)]
        try:
            arrays = self.build(contents)
        except DataCorruptError as error:
            raise DataCorruptError(
                f"{self.name}: {error}; read from {', '.join(map(str, paths))}: put whole ones there, or "
                f"delete them and run vi-flows data download {self.name}"
            ) from error
        found = tuple(len(getattr(arrays, name)) for name in _SPLITS)
        if found != self.counts:
            raise DataCorruptError(f"{self.name}: {found} images in train, valid, test instead of {self.counts}")
        return arrays

    def fetch(self, root: DataRoot, progress: bool = False) -> list[Path]:
        """Download what is missing or corrupt under this root.

        Args:
            root: where to.
            progress: show progress bars.

        Returns:
            The files that were downloaded.

        Raises:
            DataNotFoundError: if a file cannot be had from any of its homes.
        """
        fetched = []
        for file in self.files:
            path = locate(file, root)
            if path is not None and _intact(file, path):
                continue
            target = download(file, root, progress)
            if path is not None and path != target:
                path.unlink()  # a corrupt twin, plain beside compressed, would go on being found first
            fetched.append(target)
        return fetched


def _intact(file: SourceFile, path: Path) -> bool:
    try:
        read_verified(file, path)
    except DataCorruptError:
        return False
    return True
