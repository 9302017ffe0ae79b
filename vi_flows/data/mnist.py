"""MNIST in grey values and its static binarisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vi_flows.data.base import DataCorruptError
from vi_flows.data.dataset import Arrays, Dataset
from vi_flows.data.sources import SourceFile

_PIXELS = 28 * 28
_MOST_DIMS = 8  # images of any kind have fewer
_VALID = 10_000  # the last of the 60 000 training images


def parse_idx(content: bytes) -> np.ndarray:
    """The array in an idx file of unsigned bytes.

    Args:
        content: two zero bytes, the type code 8, the number of dimensions, each dimension as a big-endian 32-bit
            integer, then the values in row-major order.

    Returns:
        uint8, of the shape that the header states.

    Raises:
        DataCorruptError: if the header is not of this form or the values are too few or too many.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataCorruptError(f"not an idx file of unsigned bytes: it starts with {content[:4]!r}")
    rank = content[3]
    if not 1 <= rank <= _MOST_DIMS:
        raise DataCorruptError(f"an idx file of {rank} dimensions; 1 to {_MOST_DIMS} can be")
    start = 4 + 4 * rank
    head = content[4:start]
    shape = tuple(int.from_bytes(head[i : i + 4], "big") for i in range(0, len(head) - 3, 4))
    # Not by numpy, whose products overflow: a header may claim 2^40 items.
    if len(shape) != rank or len(content) - start != math.prod(shape):
        raise DataCorruptError(f"an idx file of shape {shape} with {max(len(content) - start, 0)} bytes of values")
    try:
        return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
    except ValueError as error:  # no values, and sides whose product is beyond numpy all the same
        raise DataCorruptError(f"an idx file of shape {shape}: {error}") from error


def parse_amat(content: bytes, num_pixels: int) -> np.ndarray:
    """The binary images in a text file of one line per image.

    Args:
        content: lines of ``num_pixels`` characters "0" or "1", separated by single spaces, each ended by a newline.
        num_pixels: values per line.

    Returns:
        uint8 zeros and ones, (N, num_pixels).

    Raises:
        DataCorruptError: if the text is not of this form.
    """
    # Every value and what follows it take two bytes, so the text is itself an array: no number is ever parsed.
    if len(content) % (2 * num_pixels):
        raise DataCorruptError(f"{len(content)} bytes are not whole lines of {num_pixels} values")
    characters = np.frombuffer(content, dtype=np.uint8).reshape(-1, num_pixels, 2)
    values = characters[..., 0] - np.uint8(ord("0"))
    if (values > 1).any() or (characters[:, :-1, 1] != ord(" ")).any() or (characters[:, -1, 1] != ord("\n")).any():
        raise DataCorruptError("not lines of zeros and ones separated by single spaces")
    return values


def _build_mnist(contents: Sequence[bytes]) -> Arrays:
    train_images, train_labels, test_images, test_labels = (parse_idx(content) for content in contents)
    train_images, test_images = (images.reshape(len(images), -1).copy() for images in (train_images, test_images))
    return Arrays(
        train=train_images[:-_VALID],
        valid=train_images[-_VALID:],
        test=test_images,
        labels={"train": train_labels[:-_VALID], "valid": train_labels[-_VALID:], "test": test_labels},
    )


def _build_binarized(contents: Sequence[bytes]) -> Arrays:
    train, valid, test = (parse_amat(content, _PIXELS) for content in contents)
    return Arrays(train, valid, test)


def _idx(name: str, size: int, md5: str, served_md5: str) -> SourceFile:
    mirrors = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")
    return SourceFile(
        paths=(f"MNIST/raw/{name}",),
        urls=tuple(f"{mirror}/{name}.gz" for mirror in mirrors),
        checksum=f"md5:{md5}",
        served_checksum=f"md5:{served_md5}",
        size=size,
    )


def _amat(split: str, count: int, sha1: str) -> SourceFile:
    name = f"binarized_mnist_{split}.amat"
    return SourceFile(
        paths=(f"BinarizedMNIST/{name}",),
        urls=(f"http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/{name}",),
        checksum=f"sha1:{sha1}",
        size=count * _PIXELS * 2,
    )


MNIST = Dataset(
    name="mnist",
    title="handwritten digits in 256 grey values; valid is the last 10 000 of the 60 000 training images",
    shape=(1, 28, 28),
    levels=256,
    counts=(50_000, 10_000, 10_000),
    binarization="dynamic",
    files=(
        _idx(
            "train-images-idx3-ubyte",
            16 + 60_000 * _PIXELS,
            "6bbc9ace898e44ae57da46a324031adb",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        ),
        _idx(
            "train-labels-idx1-ubyte",
            8 + 60_000,
            "a25bea736e30d166cdddb491f175f624",
            "d53e105ee54ea40749a09fcbcd1e9432",
        ),
        _idx(
            "t10k-images-idx3-ubyte",
            16 + 10_000 * _PIXELS,
            "2646ac647ad5339dbf082846283269ea",
            "9fb629c4189551a2d022fa330f9573f3",
        ),
        _idx(
            "t10k-labels-idx1-ubyte",
            8 + 10_000,
            "27ae3e4e09519cfbb04c329615203637",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    build=_build_mnist,
    homepage="http://yann.lecun.com/exdb/mnist",
    licence="CC BY-SA 3.0",
    citation="LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, 1998",
    sha256="0b2769512907c387b70a1a82a59360c6ad5637d782a76ed79ff9832a2017788e",
)

BINARIZED_MNIST = Dataset(
    name="binarized_mnist",
    title="MNIST binarised once and for all, the static set of the density-estimation tables",
    shape=(1, 28, 28),
    levels=2,
    counts=(50_000, 10_000, 10_000),
    binarization="static",
    files=(
        _amat("train", 50_000, "cf70514ec5f481e54ad3eb0e6c03c83326ff96f8"),
        _amat("valid", 10_000, "13418487742e6ea6d48db7b5187353a20b1b1f8c"),
        _amat("test", 10_000, "ca70bd7775e182596dec148d4dc1bc6bd6c4c5f4"),
    ),
    build=_build_binarized,
    homepage="http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist",
    licence="not stated; derived from MNIST (CC BY-SA 3.0)",
    citation="Larochelle and Murray, The Neural Autoregressive Distribution Estimator, AISTATS 2011",
    sha256="cd14e33f9cdc23510025f4a235d1f8ba6acff86f5b120a084003d20058923584",
    cached=True,
)
