"""Images of one's own: a folder or a zip archive of image files, or arrays in an ``.npz`` file.

The files lie in ``train/``, ``test/`` and, if there are validation images, ``valid/`` or ``val/``; a further folder
level is taken for the class. An ``.npz`` file has the arrays ``train``, ``test`` and, if need be, ``valid``,
``labels_train`` and so on. Without validation images, a tenth of the training images is held out by a fixed seed. No
checksum is published for such images: the ``sha256`` of what is returned tells which they were.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from vi_flows.data.base import DataCorruptError, DataNotFoundError, ImageData
from vi_flows.data.dataset import Arrays, hold_out, image_data

_SPLITS = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def load_path(path: Path) -> ImageData:
    """Load images from a folder, a zip archive or an ``.npz`` file; see the module for their layout.

    Args:
        path: of the folder or file. All images must be of one size; those in grey values are kept in one channel if all
            are, else all become RGB. Arrays are uint8 or bool, (N, H, W), (N, C, H, W) or (N, H, W, C).

    Returns:
        The images under the name of the file: 256 levels, to be binarised dynamically if at all; or, if there are only
        the values 0 and 1 in an ``.npz`` file, 2 levels, static.

    Raises:
        DataNotFoundError: if there is nothing at this path, or no training or no test images in it.
        DataCorruptError: if an image cannot be read or differs from the others in size.
    """
    if path.suffix == ".npz" and path.is_file():
        arrays, labels = _from_npz(path)
    elif path.is_dir():
        arrays, labels = _from_files(path, _in_folder(path))
    elif path.is_file():
        arrays, labels = _from_zip(path)
    else:
        raise DataNotFoundError(f"there is no file or folder {path}")
    if absent := [split for split in ("train", "test") if not len(arrays.get(split, ()))]:
        layout = "the arrays train and test" if path.suffix == ".npz" else "train/ and test/ with image files"
        raise DataNotFoundError(f"{path} has no {' and no '.join(absent)} images; it should have {layout}")
    shapes = {array.shape[1:] for array in arrays.values()}
    if len(shapes) > 1:
        raise DataCorruptError(f"the splits of {path} differ in the shape of their images: {sorted(shapes)}")
    (shape,) = shapes
    channels, height, width = shape
    flat = {split: array.reshape(len(array), -1) for split, array in arrays.items()}
    complete = all(split in labels and len(labels[split]) == len(array) for split, array in flat.items())
    if "valid" not in flat:
        classes = labels["train"] if complete else np.zeros(len(flat["train"]))
        held, held_labels = hold_out(flat["train"], classes, max(1, len(classes) // 10))
        flat, labels = flat | held, labels | held_labels
    binary = path.suffix == ".npz" and all(array.size == 0 or array.max() <= 1 for array in flat.values())
    return image_data(
        Arrays(**flat, labels={split: labels[split] for split in flat} if complete else {}),
        name=path.stem,
        shape=(channels, height, width),
        levels=2 if binary else 256,
        binarization="static" if binary else "dynamic",
        source=str(path),
    )


def _from_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as content:
            stored = {name: content[name] for name in content}
    except Exception as error:  # a damaged archive can raise nearly anything
        raise DataCorruptError(f"{path} is not a readable .npz file: {error}") from error
    arrays = {}
    for split in ("train", "valid", "test"):
        if split not in stored:
            continue
        array = stored[split]
        if array.dtype not in (np.uint8, np.bool_) or array.ndim not in (3, 4):
            found = f"{array.dtype} {array.shape}"
            layouts = "(N, H, W), (N, C, H, W) or (N, H, W, C)"
            raise DataCorruptError(f"{path}: {split} must be uint8 or bool, {layouts}, not {found}")
        arrays[split] = (_channels_first(array, f"{path}: {split}") if array.ndim == 4 else array[:, None]).astype(
            np.uint8
        )
    return arrays, {split: stored[f"labels_{split}"] for split in arrays if f"labels_{split}" in stored}


def _channels_first(array: np.ndarray, name: str) -> np.ndarray:
    """(N, C, H, W) of an array in that order or in (N, H, W, C), which its sizes tell apart.

    Raises:
        DataCorruptError: they don't.
    """
    _, second, height, last = array.shape
    if height == last or last not in _CHANNELS:
        return array
    if second in _CHANNELS:
        raise DataCorruptError(
            f"{name} of shape {array.shape} may be (N, C, H, W) or (N, H, W, C); store grey images as (N, H, W), "
            "colour ones as (N, C, H, W) with sides that are not 1, 3 or 4"
        )
    return array.transpose(0, 3, 1, 2)


Files = Iterator[tuple[PurePosixPath, Callable[[], bytes]]]


def _in_folder(path: Path) -> Files:
    names = (PurePosixPath(file.relative_to(path).as_posix()) for file in path.rglob("*") if file.is_file())
    for name in sorted(names):  # as in an archive, so that the same images are the same data
        yield name, (path / name).read_bytes


def _from_zip(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(map(PurePosixPath, archive.namelist()))
            members = ((name, lambda name=name: archive.read(str(name))) for name in names)
            return _from_files(path, members)
    except zipfile.BadZipFile as error:
        raise DataCorruptError(f"{path} is not a readable zip archive: {error}") from error


def _from_files(path: Path, files: Files) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Images, uint8 (N, C, H, W), and classes, (N,), by split; no classes where a file has no class folder."""
    images: dict[str, list[np.ndarray]] = {}
    classes: dict[str, list[str | None]] = {}
    size, first = None, None
    for name, read in files:
        place = next((index for index, part in enumerate(name.parts[:2]) if part in _SPLITS), None)
        if place is None or name.suffix.lower() not in _IMAGES or name.name.startswith("."):
            continue
        pixels = _decoded(f"{path}: {name}", read)
        if size is None:
            size, first = pixels.shape[1:], name
        if pixels.shape[1:] != size:
            raise DataCorruptError(f"{path}: {name} is {pixels.shape[1:]}, but {first} is {size}: resize them alike")
        split = _SPLITS[name.parts[place]]
        images.setdefault(split, []).append(pixels)
        classes.setdefault(split, []).append(name.parts[place + 1] if len(name.parts) > place + 2 else None)
    channels = max((len(pixels) for stack in images.values() for pixels in stack), default=1)
    arrays = {
        split: np.stack([np.broadcast_to(pixels, (channels, *pixels.shape[1:])) for pixels in stack])
        for split, stack in images.items()
    }
    known = sorted({label for found in classes.values() for label in found if label is not None})
    if any(label is None for found in classes.values() for label in found):
        return arrays, {}
    numbers: dict[str | None, int] = {label: number for number, label in enumerate(known)}
    return arrays, {split: np.array([numbers[label] for label in found]) for split, found in classes.items()}


def _decoded(name: str, read: Callable[[], bytes]) -> np.ndarray:
    """One image, uint8 (C, H, W) with one channel if it is in grey values, else three."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(read()))
        if image.mode not in ("1", "L", "P", "RGB"):
            raise ValueError(f"the mode {image.mode} would lose something: convert it to RGB or grey values")
        pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except Exception as error:  # a damaged image can raise nearly anything in Pillow
        raise DataCorruptError(f"{name} is not a readable image: {error}") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
