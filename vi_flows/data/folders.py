"""Images of one's own: a folder or a zip archive of image files, or arrays in an ``.npz`` or ``.npy`` file.

The files lie in ``train/``, ``test/`` and, if there are validation images, ``valid/``, ``val/`` or ``validation/``, in
capitals or not; a further folder level is taken for the class. An ``.npz`` file has the arrays ``train``, ``test`` and,
if need be, ``valid``, ``labels_train`` and so on (see :func:`vi_flows.data.arrays.from_npz`). Without validation
images, a tenth of the training images is held out by a fixed seed; images without any splits (an ``.npy`` file, or a
folder in which no such folder is) are split in the proportions 8 : 1 : 1 by a fixed seed, with a word on it; their
classes are the first folders that not all of them lie in. No checksum is published for such images: the ``sha256`` of
what is returned tells which they were. Images that come class after class, as those in class folders do, are dealt out
in turns, so that the first hundred are of all classes.

Every file that may be an image is read, or named in the error: a data set never has fewer images than its folder.
"""

from __future__ import annotations

import itertools
import logging
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from vi_flows.data.arrays import ALL, from_npy, from_npz
from vi_flows.data.base import DataCorruptError, DataNotFoundError, ImageData
from vi_flows.data.dataset import Arrays, hold_out, image_data
from vi_flows.data.limits import check_memory, is_junk, open_zip, read_member
from vi_flows.data.pictures import decode

SPLITS = {
    "train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test",
    "testing": "test",
}  # fmt: skip
"""Folders by their names in small letters."""
_TEXT = {
    ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html", ".pdf", ".log", ".ini", ".py",
    ".sh", ".bib", ".cff",
}  # fmt: skip
_NOTES = {"LICENSE", "LICENCE", "COPYING", "README", "AUTHORS", "CITATION"}
_ARRAYS = {".npz": from_npz, ".npy": from_npy}
_said: set[Path] = set()  # what nobody has to be told twice
_log = logging.getLogger(__name__)


def load_path(path: Path) -> ImageData:
    """Load images from a folder, a zip archive, an ``.npz`` or ``.npy`` file; see the module for their layout.

    Args:
        path: of the folder or file. All images must be of one size; those in grey values are kept in one channel if all
            are, else all become RGB. Arrays are uint8, bool or other numbers that uint8 can hold, or floating-point
            numbers k/255, in one of the layouts (N, H, W), (N, C, H, W), (N, H, W, C) or (N, H·W).

    Returns:
        The images under the name of the file: 256 levels, to be binarised dynamically if at all; or, if there are only
        the values 0 and 1 in an array file, 2 levels, static.

    Raises:
        DataNotFoundError: if there is nothing at this path, or no training or no test images in it.
        DataCorruptError: if an image cannot be read, differs from the others in size, or lies outside of the splits.
    """
    is_array = path.suffix.lower() in _ARRAYS and path.is_file()
    if is_array:
        arrays, labels = _ARRAYS[path.suffix.lower()](path)
    elif path.is_dir():
        arrays, labels = _from_files(path, files_in(path))
    elif path.is_file():
        if path.suffix.lower() != ".zip" and not zipfile.is_zipfile(path):
            raise DataCorruptError(f"{path} is no .zip, .npz or .npy: name one of them, or a folder of images")
        arrays, labels = _from_zip(path)
    else:
        raise DataNotFoundError(f"there is no file or folder {path}: name a folder of images, a .zip, .npz or .npy")
    source = str(path)
    arrays, labels = _dealt(arrays, labels)
    if ALL in arrays:
        arrays, labels = _split(path, arrays[ALL], labels.get(ALL))
        source += " (split 8 : 1 : 1 by a fixed seed)"
    if absent := [split for split in ("train", "test") if not len(arrays.get(split, ()))]:
        layout = "the arrays train and test" if is_array else "train/ and test/ with image files"
        raise DataNotFoundError(f"{path} has no {' and no '.join(absent)} images; it should have {layout}")
    shapes = {array.shape[1:] for array in arrays.values()}
    if len(shapes) > 1:
        raise DataCorruptError(f"the splits of {path} differ in the shape of their images: {sorted(shapes)}")
    (shape,) = shapes
    channels, height, width = shape
    if not channels * height * width:
        raise DataCorruptError(f"the images of {path} have the shape {shape}, without a pixel")
    # An array without images is as good as none.
    flat = {split: array.reshape(len(array), -1) for split, array in arrays.items() if len(array)}
    if "valid" not in flat:
        classes = labels.get("train", np.zeros(len(flat["train"])))
        if len(classes) < 2:
            raise DataNotFoundError(f"{path} has one training image, and none for validation")
        held, held_labels = hold_out(flat["train"], classes, max(1, len(classes) // 10))
        flat, labels = flat | held, labels | held_labels if labels else {}
    binary = is_array and all(array.size == 0 or array.max() <= 1 for array in flat.values())
    return image_data(
        Arrays(**flat, labels={split: labels[split] for split in flat} if labels else {}),
        name=path.stem,
        shape=(channels, height, width),
        levels=2 if binary else 256,
        binarization="static" if binary else "dynamic",
        source=source,
    )


def _dealt(
    arrays: dict[str, np.ndarray], labels: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The same images: where they come class after class, the first of each class, then the second, and so on.

    Whoever looks at a part by its first rows, as validation by a part of its images does, sees every class.
    """
    arrays, labels = dict(arrays), dict(labels)
    for split, classes in labels.items():
        numbers = np.unique(classes)
        if np.count_nonzero(classes[1:] != classes[:-1]) + 1 != len(numbers):
            continue  # mixed already: the order is the owner's
        turn = np.zeros(len(classes), dtype=int)
        for number in numbers:
            turn[classes == number] = np.arange(np.count_nonzero(classes == number))
        order = np.argsort(turn, kind="stable")
        arrays[split], labels[split] = arrays[split][order], classes[order]
    return arrays, labels


def _split(
    path: Path, images: np.ndarray, labels: np.ndarray | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Test images, then validation images, a tenth of all each."""
    count = len(images) // 10
    if not count:
        raise DataNotFoundError(
            f"{path} has {len(images)} images and no splits; give at least 10, or train/ and test/ of your own"
        )
    if path not in _said:
        _said.add(path)
        _log.warning("%s has no splits: %d images each are held out for test and validation by a seed", path, count)
    classes = np.zeros(len(images)) if labels is None else labels
    first, first_labels = hold_out(images, classes, count)
    second, second_labels = hold_out(first["train"], first_labels["train"], count)
    found = second_labels | {"test": first_labels["valid"]}
    return second | {"test": first["valid"]}, {} if labels is None else found


Files = Iterator[tuple[PurePosixPath, Callable[[], bytes]]]


def files_in(path: Path) -> Files:
    """The files below a folder, also behind links to folders; hidden ones are left out.

    Raises:
        DataCorruptError: a link leads nowhere or in a circle, or what is there is no file.
        OSError: a folder can't be read.
    """
    names, seen = [], set()
    for folder, inner, files in os.walk(path, followlinks=True, onerror=_fail):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            raise DataCorruptError(f"{folder} is there twice, by a link: remove the link")
        seen.add((status.st_dev, status.st_ino))
        inner[:] = [name for name in inner if not is_junk(PurePosixPath(name))]
        names += [PurePosixPath(Path(folder, file).relative_to(path).as_posix()) for file in files]
    for name in sorted(names):  # as in an archive, so that the same images are the same data
        if is_junk(name):
            continue
        if not (path / name).is_file():
            raise DataCorruptError(f"{path}: {name} is no file, or a link to nothing")
        yield name, (path / name).read_bytes


def _fail(error: OSError) -> None:
    raise error


def _from_zip(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    with open_zip(path, str(path)) as (archive, found):
        places = sorted(place for place in map(PurePosixPath, found) if not is_junk(place))
        infos = {PurePosixPath(name): info for name, info in found.items()}
        members = (
            (place, lambda place=place: read_member(archive, infos[place], f"{path}: {place}")) for place in places
        )
        return _from_files(path, members)


def _from_files(path: Path, files: Files) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Images, uint8 (N, C, H, W), and classes, (N,), by split; no classes where a file has no class folder."""
    images: dict[str, list[np.ndarray]] = {}
    folders: dict[str, list[tuple[str, ...]]] = {}  # that an image lies in, below its split's
    first: dict[str, PurePosixPath] = {}
    size, count = 0, 0
    for name, read in files:
        if name.suffix.lower() in _TEXT or name.name in _NOTES:
            continue
        place = _place(name)
        split = ALL if place is None else SPLITS[name.parts[place].lower()]
        pixels = decode(f"{path}: {name}", _content(f"{path}: {name}", read))
        _check_alike(path, name, split, first)
        shown = next(iter(images.values()))[0] if images else pixels
        if pixels.shape[1:] != shown.shape[1:]:
            sizes = f"{name} is {pixels.shape[1:]}, but {next(iter(first.values()))} is {shown.shape[1:]}"
            raise DataCorruptError(f"{path}: {sizes}: resize them alike")
        size, count = size + pixels.nbytes, count + 1
        check_memory(f"{path} (after {count} images)", size)
        images.setdefault(split, []).append(pixels)
        folders.setdefault(split, []).append(name.parts[0 if place is None else place + 1 : -1])
    channels = max((len(pixels) for stack in images.values() for pixels in stack), default=1)
    arrays = {
        split: np.stack([np.broadcast_to(pixels, (channels, *pixels.shape[1:])) for pixels in stack])
        for split, stack in images.items()
    }
    level = _class_level(folders[ALL]) if ALL in folders else 0
    if any(len(found) <= level for inside in folders.values() for found in inside):
        return arrays, {}
    known = sorted({found[level] for inside in folders.values() for found in inside})
    numbers = {label: number for number, label in enumerate(known)}
    return arrays, {split: np.array([numbers[found[level]] for found in inside]) for split, inside in folders.items()}


def _class_level(folders: list[tuple[str, ...]]) -> int:
    """Which of the folders around an image without a split is its class: the first that not all of them share.

    Folders around all classes are those of an archive that was unpacked in a place of its own; folders within a class
    are its owner's. Where all images lie in one folder, it is that.
    """
    levels = zip(*folders, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, levels))
    return shared - (1 if shared and all(len(inside) == shared for inside in folders) else 0)


def _content(name: str, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except OSError as error:
        raise DataCorruptError(f"{name} can't be read: {error}") from error


def _place(name: PurePosixPath) -> int | None:
    """Which part of a name is the folder of a split, or ``None``."""
    return next((index for index, part in enumerate(name.parts[:-1]) if part.lower() in SPLITS), None)


def _check_alike(path: Path, name: PurePosixPath, split: str, first: dict[str, PurePosixPath]) -> None:
    """Refuse an image outside of the splits, or in a second folder of its split.

    Args:
        path: of all files.
        name: of this one.
        split: that it is in.
        first: images by split so far; this one is entered.
    """
    before = first.setdefault(split, name)
    if ALL in first:
        if len(first) > 1:
            raise DataCorruptError(
                f"{path}: {first[ALL]} lies in none of train/, valid/ and test/: move it there, or away"
            )
        return
    mine, theirs = (PurePosixPath(*file.parts[: (_place(file) or 0) + 1]) for file in (name, before))
    if mine != theirs:
        raise DataCorruptError(f"{path} has {split} images in {theirs}/ and in {mine}/: put them into one folder")
