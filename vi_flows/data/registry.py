"""The data sets by name. A new one is one entry here."""

from __future__ import annotations

import os
from pathlib import Path

from vi_flows.data.base import DataNotFoundError, ImageData
from vi_flows.data.cifar import CIFAR10
from vi_flows.data.dataset import Dataset
from vi_flows.data.digits import DIGITS
from vi_flows.data.folders import load_path
from vi_flows.data.mnist import BINARIZED_MNIST, MNIST
from vi_flows.data.omniglot import CHARDATA, OMNIGLOT28
from vi_flows.data.sources import not_found, resolve_root
from vi_flows.settings import check_types

REGISTRY: dict[str, Dataset] = {
    dataset.name: dataset for dataset in (DIGITS, BINARIZED_MNIST, MNIST, OMNIGLOT28, CHARDATA, CIFAR10)
}


def names() -> tuple[str, ...]:
    """The names that :func:`load` knows, the default first."""
    return tuple(REGISTRY)


def find(name: str) -> Dataset:
    """The registry's entry of this name.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    try:
        return REGISTRY[name]
    except KeyError:
        is_there = name and Path(name).exists() and not is_path(name)
        there = f"; a path begins with ./, as ./{name}, which is here" if is_there else ""
        raise ValueError(f"no data set {name!r}: choose one of {', '.join(names())}{there}") from None


def is_path(name: str) -> bool:
    """Whether :func:`load` reads it as a path, not as the name of a data set."""
    return "/" in name or os.sep in name or name.lower().endswith((".zip", ".npz", ".npy"))


def load(
    name: str | os.PathLike[str] = "digits", root: str | os.PathLike[str] | None = None, *, download: bool | None = None
) -> ImageData:
    """Load a data set by name, or images of one's own by path.

    The files are looked for under ``root``, else under the folder that ``VI_FLOWS_DATA`` names, else in the user's
    cache folder, compressed by gzip or not, and their uncompressed content is verified. What is slow to parse is kept
    as a packed copy under ``VI_FLOWS_CACHE``, else in the user's cache folder. The data root is only read, unless a
    download into it is asked for.

    A name with a path separator, or that ends in ``.zip`` or ``.npz``, is a path, relative to the working directory or
    to the data root: of a folder or zip archive of image files, or of arrays (see :mod:`vi_flows.data.folders`).

    Args:
        name: one of :func:`names`, or a path.
        root: the data root, in torchvision's layout.
        download: whether missing files are fetched. By default they are if they go to the user's cache folder, because
            nobody said where the data is; a root that was named, here or by ``VI_FLOWS_DATA``, is taken as it is.

    Returns:
        The images, uint8, in three splits.

    Raises:
        ValueError: for an unknown name.
        DataNotFoundError: if files are missing, with the places searched and the command that fetches them.
        DataCorruptError: if a file's content does not have its published checksum.
    """
    check_types((str, os.PathLike), ": a data set's name, or a path to images", name=name)
    location = resolve_root(root)
    name, given_path = os.fspath(name), isinstance(name, os.PathLike)
    if given_path or (name not in REGISTRY and is_path(name)):
        here = Path(name).expanduser()
        places = list(dict.fromkeys([here, location.path / here]))
        found = next((place for place in places if place.exists()), None)
        if found is None:
            looked = " and ".join(str(place.absolute()) for place in places)
            raise DataNotFoundError(
                f"there is no file or folder {name}; looked for {looked}. Work in the folder that it is relative to, "
                "or name that by --data-root"
            )
        return load_path(found)
    dataset = find(name)
    missing = dataset.missing(location)
    if missing and (location.origin == "cache" if download is None else download):
        try:
            dataset.fetch(location)
        except DataNotFoundError as error:
            raise not_found(name, dataset.missing(location), location, str(error)) from error
    return dataset.read(location)
