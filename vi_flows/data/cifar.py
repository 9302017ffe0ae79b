"""CIFAR-10 from its archive of pickled batches."""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
import tarfile
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from vi_flows.data.base import DataCorruptError
from vi_flows.data.dataset import Arrays, Dataset
from vi_flows.data.limits import short
from vi_flows.data.sources import SourceFile

_CLASSES = 10
_VALID = 5_000  # the last of the 50 000 training images
_FOLDER = "cifar-10-batches-py"
BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


_MOST_BYTES = 1 << 26  # of a batch, which has half of that


class _Dtype:
    """Stands for numpy.dtype: what a batch says of it, and nothing else."""

    def __init__(self, name: str = "", *words: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None: ...


class _Array:
    """Stands for numpy.ndarray: what a batch says of it. NumPy's own ``__setstate__`` would trust it."""

    pixels: np.ndarray

    def __setstate__(self, state: tuple[object, tuple[int, ...], _Dtype, bool, str | bytes]) -> None:
        _, shape, dtype, in_columns, content = state
        if dtype.name not in ("u1", "|u1"):
            raise DataCorruptError(f"a batch has pixels of type {dtype.name!r}, not bytes")
        raw = content.encode("latin1") if isinstance(content, str) else content
        self.pixels = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if in_columns else "C")


def _reconstruct(*words: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """What pickles of bytes in the second protocol call."""
    if encoding not in ("latin1", "latin-1"):
        raise DataCorruptError(f"a batch asks for the encoding {encoding!r}")
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    """Loads lists, strings and the bytes of arrays, and nothing that could run code, NumPy's neither."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name == "_reconstruct":
            return _reconstruct  # its module has been renamed since the batches were written
        known = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype, ("_codecs", "encode"): _encode}
        try:
            return known[module, name]
        except KeyError:
            raise DataCorruptError(f"a batch asks for {module}.{name}") from None


def _check_claims(batch: bytes) -> None:
    """Walk through the instructions without following them: sizes and memo places that they claim must be possible.

    Raises:
        DataCorruptError: one is not. The unpickler would allocate for it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strings that a damaged file holds
        instructions = list(pickletools.genops(batch))
    for instruction, argument, _ in instructions:
        if "PUT" in instruction.name and isinstance(argument, int) and not 0 <= argument <= len(batch):
            raise DataCorruptError(f"a batch claims {argument} objects")


def batches(archive: bytes) -> dict[str, bytes]:
    """The pickled batches in the uncompressed tar archive, by name.

    Raises:
        DataCorruptError: if the archive cannot be read or a batch is missing.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as members:
            return {name: _batch(members, f"{_FOLDER}/{name}") for name in BATCHES}
    except DataCorruptError:
        raise
    except Exception as error:  # a damaged header can raise nearly anything
        raise DataCorruptError(f"not a readable archive of the batches: {short(error)}") from error


def _batch(members: tarfile.TarFile, name: str) -> bytes:
    """Content of a file in the archive; links are not followed, and sizes are checked before anything is read."""
    member = members.getmember(name)
    stream = members.extractfile(member) if member.type in tarfile.REGULAR_TYPES and not member.sparse else None
    if stream is None or not 0 <= member.size <= _MOST_BYTES:
        raise DataCorruptError(f"{name} is no plain file of at most {_MOST_BYTES} bytes")
    content = stream.read()
    if len(content) != member.size:
        raise DataCorruptError(f"{name} has {len(content)} bytes instead of {member.size}")
    return content


def _digest_of(checksums: dict[str, str]) -> str:
    text = "".join(f"{name} {checksums.get(name)}\n" for name in BATCHES)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def batches_md5(archive: bytes) -> str:
    """MD5 over the MD5s of the batches, those that are published for the extracted files.

    Raises:
        DataCorruptError: as :func:`batches`.
    """
    found = batches(archive)
    return _digest_of({name: hashlib.md5(data, usedforsecurity=False).hexdigest() for name, data in found.items()})


def unpickled(batch: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 (N, 3072) in the order channel, row, column; and classes, int64 (N,).

    Raises:
        DataCorruptError: it is no pickle of such arrays, or asks for anything else.
    """
    try:
        _check_claims(batch)
        content = _ArraysOnly(io.BytesIO(batch), encoding="latin1").load()
        pixels, labels = content["data"].pixels.reshape(-1, 3 * 32 * 32), content["labels"]
    except DataCorruptError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataCorruptError(f"not a readable batch: {short(error)}") from error
    if not isinstance(labels, list) or len(labels) != len(pixels) or any(type(n) is not int for n in labels):
        raise DataCorruptError("not a readable batch: there must be a whole number for each image")
    if any(not 0 <= n < _CLASSES for n in labels):
        raise DataCorruptError(f"not a readable batch: classes are 0 … {_CLASSES - 1}")
    return pixels, np.array(labels, dtype=np.int64)


def _build(contents: Sequence[bytes]) -> Arrays:
    *parts, (test, test_labels) = (unpickled(batch) for batch in batches(contents[0]).values())
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
            checksum=f"md5-of-batches:{_digest_of(BATCHES)}",
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
