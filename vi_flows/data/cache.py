"""A packed copy of what is slow to parse, made once and trusted only as far as its content hash holds.

The key of an entry is the path, size and modification time of every source file: a source that changes is parsed and
verified again. An entry that cannot be read or whose pixels do not give the hash stored with them is rebuilt.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vi_flows.data.base import Binarization, ImageData, content_sha256
from vi_flows.data.sources import cache_folder

_FORMAT = 1
_SPLITS = ("train", "valid", "test")
_log = logging.getLogger(__name__)


def entry_path(name: str, version: int, sources: Sequence[Path]) -> Path:
    """Where the packed copy of a data set read from these files is kept.

    Args:
        name: of the data set.
        version: of the code that makes the images from the files.
        sources: existing files.
    """
    key = hashlib.sha256(f"format {_FORMAT} version {version}\n".encode())
    for source in sources:
        status = source.stat()
        key.update(f"{source.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return cache_folder() / "packed" / f"{name}-{key.hexdigest()[:16]}.npz"


def read(
    path: Path, name: str, shape: tuple[int, int, int], levels: int, binarization: Binarization, source: str
) -> ImageData | None:
    """The data set in an entry, or None if there is none that can be trusted.

    Args:
        path: from :func:`entry_path`.
        name: of the data set; it and the others are the fields of the container that the entry does not hold.
        shape: (C, H, W) of one image.
        levels: number of values a pixel can take; images of two levels are kept as bits.
        binarization: as in the container.
        source: as in the container.
    """
    num_pixels = shape[0] * shape[1] * shape[2]
    try:
        with np.load(path, allow_pickle=False) as entry:
            stored = str(entry["sha256"])
            arrays = {split: entry[split] for split in _SPLITS}
            kept = [split for split in _SPLITS if f"labels_{split}" in entry]
            labels = {split: torch.from_numpy(entry[f"labels_{split}"]) for split in kept}
        if levels == 2:
            arrays = {split: np.unpackbits(array, axis=1, count=num_pixels) for split, array in arrays.items()}
        splits = {split: torch.from_numpy(array) for split, array in arrays.items()}
        found = content_sha256(shape, levels, splits)
        if found != stored:
            raise ValueError(f"its pixels have the sha256 {found} instead of {stored}")
        return ImageData(
            name,
            shape,
            levels,
            **splits,
            binarization=binarization,
            sha256=stored,
            source=source,
            labels=labels or None,
        )
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever is wrong with it, it can be made again
        _log.warning("the cached copy %s is damaged (%s) and is made again", path, error)
        return None


def write(path: Path, data: ImageData) -> None:
    """Store a data set; where the folder cannot be written, say so and go on without.

    Args:
        path: from :func:`entry_path`.
        data: what to store.
    """
    arrays = {name: getattr(data, name).numpy() for name in _SPLITS}
    if data.levels == 2:
        arrays = {name: np.packbits(array, axis=1) for name, array in arrays.items()}
    labels = {f"labels_{name}": tensor.numpy() for name, tensor in (data.labels or {}).items()}
    # Any: the stubs take every keyword for the option allow_pickle.
    entry: dict[str, Any] = {"sha256": np.array(data.sha256), **arrays, **labels}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A reader, or a second writer, must never meet half an entry: it gets its name only when it is whole.
        temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.part")
        try:
            with open(temporary, "wb") as stream:
                np.savez(stream, **entry)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        _log.warning("no cached copy of %s is kept, so it is parsed at each load: %s", data.name, error)
