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
        packed = cache.read(entry, self.shape, self.levels) if entry is not None else None
        splits, labels, sha256 = packed or self._from_files(paths)
        data = ImageData(
            name=self.name,
            shape=self.shape,
            levels=self.levels,
            binarization=self.binarization,
            sha256=sha256,
            source=", ".join(map(str, paths)) or self.homepage,
            labels=labels or None,
            **splits,
        )
        if entry is not None and packed is None:
            cache.write(entry, data)
        if self.sha256 is not None and sha256 != self.sha256:
            # The files were verified, so this is another decoder or resampler: legitimate, but not the same numbers.
            _log.warning("%s hashes to %s here, not to %s: results may differ", self.name, sha256, self.sha256)
        return data

    def _from_files(self, paths: Sequence[Path]) -> cache.Packed:
        contents = [read_verified(file, path) for file, path in zip(self.files, paths, strict=True)]
        try:
            arrays = self.build(contents)
        except DataCorruptError as error:
            raise DataCorruptError(f"{self.name}: {error}; read from {', '.join(map(str, paths))}") from error
        found = tuple(len(getattr(arrays, name)) for name in _SPLITS)
        if found != self.counts:
            raise DataCorruptError(f"{self.name}: {found} images in train, valid, test instead of {self.counts}")
        splits = {name: torch.from_numpy(np.ascontiguousarray(getattr(arrays, name))) for name in _SPLITS}
        labels = {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.labels.items()}
        return splits, labels, content_sha256(self.shape, self.levels, splits)

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
