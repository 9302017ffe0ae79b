"""Images of one's own in NumPy files: ``.npz`` with the splits by name, or ``.npy`` with all images."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

from vi_flows.data.base import DataCorruptError
from vi_flows.data.limits import open_zip, read_npy, short

__all__ = ["ALL", "from_npy", "from_npz", "numbered"]

ALL = "all"
"""Key of images that are in no split."""
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_IMAGES = ("{}", "x_{}", "X_{}", "{}_images", "images_{}", "{}_x", "{}_data")
_LABELS = ("labels_{}", "y_{}", "{}_labels", "{}_y")
_PLAIN_LABELS = ("labels", "y")
_SPELLINGS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}

Splits = dict[str, np.ndarray]


def from_npy(path: Path) -> tuple[Splits, Splits]:
    """The images of an ``.npy`` file, uint8 ``(N, C, H, W)``, under :data:`ALL`, and no labels.

    Raises:
        DataCorruptError: see :func:`from_npz`.
    """
    with path.open("rb") as stream:
        array = read_npy(stream, path.stat().st_size, str(path))
    return _as_images({ALL: array}, str(path), {ALL: "the array"}), {}


def from_npz(path: Path) -> tuple[Splits, Splits]:
    """Images, uint8 ``(N, C, H, W)``, and labels ``(N,)`` by split; under :data:`ALL` where there is but one array.

    The splits' names are ``train``, ``valid`` (or ``val``) and ``test``, alone or as in ``x_train`` and
    ``train_images``; labels are ``labels_train``, ``y_train`` or ``train_labels``, those of a single array ``labels``
    or ``y``.

    Raises:
        DataCorruptError: the file or an array can't be read, splits are of different scales, one holds values that are
            no grey levels and no zeros and ones, has a layout that can't be told, or an array of images or labels has a
            name that is no split's.
    """
    stored: dict[str, np.ndarray] = {}
    with open_zip(path, str(path)) as (archive, files):
        for place, info in files.items():
            stored[place.removesuffix(".npy")] = _read(archive, info, f"{path}: {place}")
    arrays, names = _named(stored, _IMAGES, str(path))
    labels, _ = _named(stored, _LABELS, str(path))
    plain = [name for name in _PLAIN_LABELS if name in stored]
    known = {*names.values(), *plain}
    others = sorted(n for n, a in stored.items() if a.ndim >= (3 if arrays else 2) and n not in known)
    if not arrays and len(others) == 1:
        arrays, names, others = {ALL: stored[others[0]]}, {ALL: others[0]}, []
        if len(plain) > 1:
            raise DataCorruptError(f"{path} has both {plain[0]} and {plain[1]}: keep one of them")
        if plain:
            labels[ALL] = stored[plain[0]]
    elif plain:
        raise DataCorruptError(f"{path}: the labels {plain[0]} belong to no split; name them labels_train and so on")
    if others:
        raise DataCorruptError(f"{path}: the array {others[0]} belongs to no split; name them train, valid and test")
    if labels and labels.keys() != arrays.keys():
        raise DataCorruptError(f"{path} has labels for {', '.join(labels)} and images for {', '.join(arrays)}")
    return _as_images(arrays, str(path), names), numbered(labels, arrays, str(path))


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    try:
        with archive.open(info) as stream:
            return read_npy(stream, info.file_size, name)
    except DataCorruptError:
        raise
    except Exception as error:  # what is compressed may be damaged
        raise DataCorruptError(f"{name} can't be read: {short(error)}") from error


def _named(stored: Splits, patterns: tuple[str, ...], path: str) -> tuple[Splits, dict[str, str]]:
    """Arrays whose names follow a pattern, and these names, by split."""
    names: dict[str, str] = {}
    for split, spellings in _SPELLINGS.items():
        found = [p.format(s) for p in patterns for s in spellings if p.format(s) in stored]
        if len(found) > 1:
            raise DataCorruptError(f"{path} has both {found[0]} and {found[1]}: keep one of them")
        if found:
            names[split] = found[0]
    return {split: stored[name] for split, name in names.items()}, names


def _as_images(arrays: Splits, path: str, names: dict[str, str]) -> Splits:
    """uint8 ``(N, C, H, W)`` of grey levels, or of zeros and ones if there are no other values."""
    bools = [array for array in arrays.values() if array.dtype.kind == "b"]
    # Where all are zeros and ones they are of one scale; beside grey levels, True would be black.
    if 0 < len(bools) < len(arrays) and any(array.size and array.max() > 1 for array in arrays.values()):
        raise _differing_types(arrays, path, names)
    floats = [array for array in arrays.values() if array.dtype.kind == "f"]
    if floats and len(floats) < len(arrays):
        raise _differing_types(arrays, path, names)
    ends = {split: _binary_end(array) for split, array in arrays.items() if array.size}
    small = [split for split, end in ends.items() if end == 1]
    large = [split for split, end in ends.items() if end > 1]
    if small and large:
        raise DataCorruptError(
            f"{path}: {names[small[0]]} has only 0 and 1, and {names[large[0]]} goes up to {ends[large[0]]:g}: store "
            "all splits alike, as zeros and ones or as grey levels"
        )
    # Whether floating-point numbers are zeros and ones, shares or levels can only be told from all of them.
    scale = 255 if floats and _are_shares(floats) else 1
    return {
        split: _layout(_bytes(array, scale, f"{path}: {names[split]}"), f"{path}: {names[split]}")
        for split, array in arrays.items()
    }


def _binary_end(array: np.ndarray) -> float:
    """The largest value; 0 where that is 1 and the smallest is not 0, as in a split of one level or of shares."""
    if array.dtype.kind not in "buif":
        return 0.0
    low, high = float(array.min()), float(array.max())
    return high if high > 1 or (low == 0 and high == 1 and bool(np.isin(array, (0, 1)).all())) else 0.0


def _differing_types(arrays: Splits, path: str, names: dict[str, str]) -> DataCorruptError:
    kinds = ", ".join(f"{names[split]} is {array.dtype}" for split, array in arrays.items())
    return DataCorruptError(f"the splits of {path} differ in their types: {kinds}; store them alike")


def _are_shares(arrays: list[np.ndarray]) -> bool:
    """Whether floating-point grey values lie in [0, 1] and are not all zeros and ones."""
    largest = max((float(array.max()) for array in arrays if array.size), default=0.0)
    return largest <= 1 and any(not np.isin(array, (0, 1)).all() for array in arrays)


def _bytes(array: np.ndarray, scale: int, name: str) -> np.ndarray:
    """Values as uint8, which none of them is changed by.

    Raises:
        DataCorruptError: one would be.
    """
    want = "uint8 or bool, whole numbers 0 … 255, or floating-point numbers k/255"
    if array.dtype.kind not in "buif":
        raise DataCorruptError(f"{name} must be {want}, not {array.dtype} {array.shape}")
    if not array.size or array.dtype in (np.uint8, np.bool_):
        return array.astype(np.uint8)
    low, high = array.min(), array.max()
    top = 255 // scale
    if not (low >= 0 and high <= top):  # NaN lies in no range
        raise DataCorruptError(f"{name} must be {want}, and has values from {low} to {high}")
    levels = array * np.asarray(scale, array.dtype)
    nearest = np.rint(levels)
    # k/255 rounded to the type's precision, float16's too; whole numbers are exact.
    tolerance = 0.0 if scale == 1 else max(1e-3, 0.51 * 255 * float(np.finfo(array.dtype).eps))
    far = np.abs(levels - nearest) > tolerance
    if far.any():
        value = array[far].flat[0]
        raise DataCorruptError(
            f"{name} must be {want}, and has the value {value}, which is no grey level: round them yourself, "
            "numpy.rint(255 * x).astype(numpy.uint8)"
        )
    return nearest.astype(np.uint8)


def _layout(array: np.ndarray, name: str) -> np.ndarray:
    """``(N, C, H, W)`` of ``(N, H·W)`` in squares, ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)``.

    Raises:
        DataCorruptError: it is none of them, or may be two.
    """
    if array.ndim == 2 and array.shape[1] and math.isqrt(array.shape[1]) ** 2 == array.shape[1]:
        side = math.isqrt(array.shape[1])
        return array.reshape(-1, 1, side, side)
    if array.ndim == 3:
        return array[:, None]
    if array.ndim != 4:
        layouts = "(N, H, W), (N, C, H, W), (N, H, W, C) or square images (N, H*W)"
        raise DataCorruptError(f"{name} must have the layout {layouts}, not {array.shape}")
    _, second, height, last = array.shape
    # More channels than rows and columns are hardly channels: of (N, 28, 28, 2), 28 of two columns each.
    if last not in _CHANNELS and last < min(second, height):
        raise DataCorruptError(
            f"{name} of shape {array.shape} may be (N, C, H, W) or (N, H, W, C), as {last} are fewer than its other "
            "sides; store (N, C, H, W), with images turned so that W is at least H where C is large"
        )
    if height == last or last not in _CHANNELS:
        return array
    if second in _CHANNELS:
        raise DataCorruptError(
            f"{name} of shape {array.shape} may be (N, C, H, W) or (N, H, W, C); store grey images as (N, H, W), "
            "colour ones as (N, C, H, W) with sides that are not 1, 3 or 4"
        )
    return array.transpose(0, 3, 1, 2)


def numbered(labels: Splits, arrays: Splits, path: str) -> Splits:
    """Labels as whole numbers; strings are numbered in their order over all splits.

    Args:
        labels: ``(N,)`` or ``(N, 1)`` by split.
        arrays: the images, by split.
        path: of the file, in messages.

    Raises:
        DataCorruptError: there are more or fewer labels than images, or one is no whole number and no string.
    """
    flat = {}
    for split, found in labels.items():
        flat[split] = found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found
        if flat[split].shape != (len(arrays[split]),):
            raise DataCorruptError(f"{path} has labels of shape {found.shape} for {len(arrays[split])} {split} images")
    if any(found.dtype.kind in "US" for found in flat.values()):
        if any(found.dtype.kind not in "US" for found in flat.values()):
            raise DataCorruptError(f"the labels of {path} are strings in one split and numbers in another")
        words = {split: _words(found, split, path) for split, found in flat.items()}
        known = np.unique(np.concatenate(list(words.values())))
        return {split: np.searchsorted(known, found) for split, found in words.items()}
    for split, found in flat.items():
        whole = found.dtype.kind in "biu" or (found.dtype.kind == "f" and bool((found == np.rint(found)).all()))
        if not whole or (found.size and not (abs(found.astype(np.float64)) < 2**53).all()):
            raise DataCorruptError(f"{path}: the labels of {split} must be whole numbers or strings")
    return {split: found.astype(np.int64) for split, found in flat.items()}


def _words(found: np.ndarray, split: str, path: str) -> np.ndarray:
    if found.dtype.kind == "U":
        return found
    try:
        return np.char.decode(found, "utf-8")
    except UnicodeDecodeError:
        raise DataCorruptError(f"{path}: the labels of {split} are bytes that are no UTF-8; store strings") from None
