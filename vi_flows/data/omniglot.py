"""OMNIGLOT at 28×28: resized from the originals by a stated recipe, and the file of the VAE papers."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np

from vi_flows.data.base import DataCorruptError
from vi_flows.data.dataset import Arrays, Dataset, hold_out
from vi_flows.data.limits import is_junk, open_zip, read_member, short
from vi_flows.data.matlab import load_matrices
from vi_flows.data.sources import SourceFile

_SIDE = 28
_ORIGINAL_SIDE = 105
_TRAIN_DRAWERS = 15  # of 20; the others are the test set
_MOST_MAT_BYTES = 1 << 30  # of chardata.mat, inflated; the file of the papers has 0.3
_MOST_BYTES = 1 << 20  # of a PNG file; the originals have some hundreds
_VALID = 1345  # as in the published importance-weighted autoencoder experiments


def decoded(archive: bytes) -> Iterator[tuple[PurePosixPath, np.ndarray]]:
    """The images of a zip archive of OMNIGLOT, sorted by name.

    Args:
        archive: a zip of ``<set>/<alphabet>/<character>/<class>_<drawer>.png``.

    Yields:
        Name and pixels, bool (105, 105), True where the paper is white.

    Raises:
        DataCorruptError: if the archive or an image cannot be read or has another size.
    """
    from PIL import Image

    try:
        with open_zip(io.BytesIO(archive), "the archive") as (members, files):
            found = {PurePosixPath(place): info for place, info in files.items()}
            # Some zip programs add files of their own, with a leading dot or in folders with underscores.
            names = [name for name in found if name.suffix == ".png" and name.name[0].isdigit() and not is_junk(name)]
            for name in sorted(names):
                content = read_member(members, found[name], str(name), _MOST_BYTES)
                image = Image.open(io.BytesIO(content), formats=["PNG"])
                if image.size != (_ORIGINAL_SIDE, _ORIGINAL_SIDE):
                    raise DataCorruptError(f"{name} is {image.size} instead of {_ORIGINAL_SIDE}x{_ORIGINAL_SIDE}")
                yield name, np.asarray(image.convert("1"))
    except DataCorruptError:
        raise
    except Exception as error:  # a damaged archive or image can raise nearly anything in zipfile and Pillow
        raise DataCorruptError(f"not a readable zip archive of PNG images: {short(error)}") from error


def images_sha256(archive: bytes) -> str:
    """SHA-256 over the sorted names and decoded pixels of an archive.

    The same images zipped or PNG-compressed by another program are other bytes, so a checksum of the archive would
    refuse good copies; names and pixels are what the data set consists of.

    Raises:
        DataCorruptError: as :func:`decoded`.
    """
    digest = hashlib.sha256()
    for name, pixels in decoded(archive):
        digest.update(f"{name}\n".encode())
        digest.update(np.packbits(pixels).tobytes())
    return digest.hexdigest()


def resize(pixels: np.ndarray) -> np.ndarray:
    """One original as a 28×28 image of bright strokes: inverted, then resized by anti-aliased bicubic interpolation.

    Args:
        pixels: bool (105, 105), True where the paper is white.

    Returns:
        uint8 (28, 28).
    """
    from PIL import Image

    strokes = Image.fromarray(np.where(pixels, 0, 255).astype(np.uint8))
    return np.asarray(strokes.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))


def _build_omniglot28(contents: Sequence[bytes]) -> Arrays:
    pixels: dict[bool, list[np.ndarray]] = {True: [], False: []}
    labels: dict[bool, list[int]] = {True: [], False: []}
    for content in contents:
        for name, original in decoded(content):
            character, drawer = (int(part) for part in name.stem.split("_"))
            training = drawer <= _TRAIN_DRAWERS
            pixels[training].append(resize(original).reshape(-1))
            labels[training].append(character - 1)
    splits, classes = hold_out(np.stack(pixels[True]), np.array(labels[True]), _VALID)
    return Arrays(**splits, test=np.stack(pixels[False]), labels={**classes, "test": np.array(labels[False])})


def _matrix(matrix: np.ndarray, name: str) -> np.ndarray:
    """Row-major uint8 (N, 784) from a column of column-major grey values in [0, 1] per image."""
    if matrix.ndim != 2 or matrix.shape[0] != _SIDE * _SIDE or not matrix.size or matrix.dtype.kind not in "buif":
        raise DataCorruptError(f"{name} is {matrix.dtype} {matrix.shape} instead of numbers ({_SIDE * _SIDE}, N)")
    if not (matrix.min() >= 0 and matrix.max() <= 1):
        raise DataCorruptError(f"{name} has values outside [0, 1]: {matrix.min()} … {matrix.max()}")
    images = np.rint(matrix.T * 255).astype(np.uint8).reshape(-1, _SIDE, _SIDE)
    return images.transpose(0, 2, 1).reshape(-1, _SIDE * _SIDE)


def _classes(targets: np.ndarray | None) -> np.ndarray | None:
    """The row of the one in each column, or ``None`` where there are none."""
    if targets is None or targets.ndim != 2 or not targets.size or targets.dtype.kind not in "buif":
        return None
    return targets.argmax(0)


def chardata(content: bytes) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Images, uint8 (N, 784), and classes, (N,) or ``None``, of the training and the test part of the VAE papers' file.

    Raises:
        DataCorruptError: it can't be read, lacks a part, or has values that are no grey values in [0, 1].
    """
    keys = ["data", "testdata", "target", "testtarget"]
    matrices = load_matrices(content, keys, _MOST_MAT_BYTES)
    if absent := [key for key in keys[:2] if key not in matrices]:
        raise DataCorruptError(f"a MATLAB file without {' and '.join(absent)}")
    images = [_matrix(matrices[key], key) for key in keys[:2]]
    classes = [_classes(matrices.get(key)) for key in keys[2:]]
    if any(found is None or len(found) != len(part) for found, part in zip(classes, images, strict=True)):
        classes = [None, None]
    return list(zip(images, classes, strict=True))


def _build_chardata(contents: Sequence[bytes]) -> Arrays:
    (train, classes), (test, test_classes) = chardata(contents[0])
    splits, chosen = hold_out(train, np.arange(len(train)), _VALID)
    if classes is None or test_classes is None:
        return Arrays(splits["train"], splits["valid"], test)
    labels = {name: classes[i] for name, i in chosen.items()} | {"test": test_classes}
    return Arrays(splits["train"], splits["valid"], test, labels)


def _zip(part: str, sha256: str, served_md5: str) -> SourceFile:
    name = f"images_{part}.zip"
    return SourceFile(
        paths=(f"omniglot-py/{name}",),
        urls=(f"https://raw.githubusercontent.com/brendenlake/omniglot/master/python/{name}",),
        checksum=f"sha256-of-images:{sha256}",
        served_checksum=f"md5:{served_md5}",
        digest=images_sha256,
    )


OMNIGLOT28 = Dataset(
    name="omniglot28",
    title=(
        "OMNIGLOT's originals inverted and resized to 28x28 by anti-aliased bicubic interpolation; drawers 1-15 train, "
        "16-20 test; valid is 1 345 training images chosen by a fixed seed; labels are characters 0-1622"
    ),
    shape=(1, _SIDE, _SIDE),
    levels=256,
    counts=(24_345 - _VALID, _VALID, 8_115),
    binarization="dynamic",
    files=(
        _zip(
            "background",
            "f3a5becb0833e3d758db8d376a55b6ad3cd9af789c393230bf3ce90330b954bf",
            "68d2efa1b9178cc56df9314c21c6e718",
        ),
        _zip(
            "evaluation",
            "09b786f9a66084a05c0c6cd573fae29b6d1dae515df62204894e1822ca5e29ce",
            "6b91aef0f799c5bb55b94e3f2daec811",
        ),
    ),
    build=_build_omniglot28,
    homepage="https://github.com/brendenlake/omniglot",
    licence="MIT",
    citation=(
        "Lake, Salakhutdinov and Tenenbaum, Human-level concept learning through probabilistic program induction, "
        "Science 350, 2015"
    ),
    sha256="f537f472733ae7cb9fed6dc4bed65af16501326021be8b016a47eb2159803ade",
    cached=True,
)

CHARDATA = Dataset(
    name="chardata",
    title=(
        "the 28x28 OMNIGLOT of the VAE papers; valid is 1 345 training images chosen by a fixed seed; grey values are "
        "rounded to 1/255; labels are alphabets 0-49"
    ),
    shape=(1, _SIDE, _SIDE),
    levels=256,
    counts=(24_345 - _VALID, _VALID, 8_070),
    binarization="dynamic",
    files=(
        SourceFile(
            paths=("OMNIGLOT/chardata.mat", "omniglot-py/chardata.mat", "chardata.mat"),
            urls=("https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat",),
            checksum=None,  # none is published: its keys, shapes and range of values are verified instead
        ),
    ),
    build=_build_chardata,
    homepage="https://github.com/yburda/iwae",
    licence="not stated; derived from OMNIGLOT (MIT)",
    citation="Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016",
    cached=True,
)
