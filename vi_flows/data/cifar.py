"""CIFAR-10 from its archive of pickled batches."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from vi_flows.data.base import DataCorruptError
from vi_flows.data.dataset import Arrays, Dataset
from vi_flows.data.sources import SourceFile

_VALID = 5_000  # the last of the 50 000 training images
_FOLDER = "cifar-10-batches-py"
_BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


class _ArraysOnly(pickle.Unpickler):
    """Loads lists, strings and arrays, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # its module has been renamed since the batches were written
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            import _codecs

            return _codecs.encode
        raise DataCorruptError(f"a batch asks for {module}.{name}")


def batches(archive: bytes) -> dict[str, bytes]:
    """The pickled batches in the uncompressed tar archive, by name.

    Raises:
        DataCorruptError: if the archive cannot be read or a batch is missing.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as members:
            found = {name: members.extractfile(f"{_FOLDER}/{name}") for name in _BATCHES}
            return {name: stream.read() for name, stream in found.items() if stream is not None}
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise DataCorruptError(f"not a readable archive of the batches: {error}") from error


def _digest_of(checksums: dict[str, str]) -> str:
    text = "".join(f"{name} {checksums.get(name)}\n" for name in _BATCHES)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def batches_md5(archive: bytes) -> str:
    """MD5 over the MD5s of the batches, those that are published for the extracted files.

    Raises:
        DataCorruptError: as :func:`batches`.
    """
    found = batches(archive)
    return _digest_of({name: hashlib.md5(data, usedforsecurity=False).hexdigest() for name, data in found.items()})


def _unpickled(batch: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 (N, 3072) in the order channel, row, column; and classes, (N,)."""
    try:
        content = _ArraysOnly(io.BytesIO(batch), encoding="latin1").load()
        return np.asarray(content["data"], dtype=np.uint8).reshape(-1, 3 * 32 * 32), np.asarray(content["labels"])
    except DataCorruptError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataCorruptError(f"not a readable batch: {error}") from error


def _build(contents: Sequence[bytes]) -> Arrays:
    *parts, (test, test_labels) = (_unpickled(batch) for batch in batches(contents[0]).values())
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Arrays(
        train=pixels[:-_VALID],
        valid=pixels[-_VALID:],
        test=test,
        labels={"train": labels[:-_VALID], "valid": labels[-_VALID:], "test": test_labels},
    )


CIFAR10 = Dataset(
    name="cifar10",
    title="32x32 colour photographs of ten classes; valid is the last 5 000 of the 50 000 training images",
    shape=(3, 32, 32),
    levels=256,
    counts=(45_000, _VALID, 10_000),
    binarization="dynamic",
    files=(
        SourceFile(
            paths=("cifar-10-python.tar",),
            urls=("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            checksum=f"md5-of-batches:{_digest_of(_BATCHES)}",
            served_checksum="md5:c58f30108f718f92721af3b95e74349a",
            digest=batches_md5,
        ),
    ),
    build=_build,
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence="not stated",
    citation="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    cached=True,
)
