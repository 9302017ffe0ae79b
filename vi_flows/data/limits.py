"""Bounds on what files may claim: sizes are compared with the file and with the memory before anything is allocated."""

from __future__ import annotations

import errno
import io
import math
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from vi_flows.data.base import DataCorruptError

__all__ = [
    "MOST_MEMBER_BYTES", "MOST_PIXELS", "check_memory", "is_junk", "memory_bytes", "open_zip", "read_member",
    "read_npy", "short",
]  # fmt: skip

MOST_MEMBER_BYTES = 1 << 28
"""Bytes of one image or recording in an archive."""
MOST_PIXELS = 1 << 23
"""Pixels of one image."""
_MAGIC = 8  # bytes before the length of an .npy file's header


def short(error: BaseException) -> str:
    """The first line of an error's message, cut; parsers like to quote the file."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return first if len(first) <= 200 else first[:199] + "…"


def memory_bytes() -> int:
    """Of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(name: str, size: int) -> None:
    """Refuse what would not fit, and with it what only claims to be so large.

    Args:
        name: of the file.
        size: bytes that it needs.

    Raises:
        DataCorruptError: that is more than half of the memory.
    """
    if size > memory_bytes() // 2:
        have = memory_bytes() / 2**30
        raise DataCorruptError(
            f"{name} needs {size / 2**30:.1f} GiB, and this machine has {have:.1f}: use fewer images"
        )


def is_junk(place: PurePosixPath) -> bool:
    """Whether a file manager or an editor left it: hidden files and folders, and a few names that are known."""
    names = {"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"}
    return any(part.startswith(".") or part in names for part in place.parts)


@contextmanager
def open_zip(source: Path | IO[bytes], name: str) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """A zip archive and its files by name, in the archive's order; folders are left out.

    Args:
        source: the archive.
        name: of it, in messages.

    Raises:
        DataCorruptError: it can't be read, or a name in it leads outside, is there twice, or is that of a link.
    """
    try:
        opened = zipfile.ZipFile(source)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of the disk; the other one is a place before the beginning
            raise
        raise DataCorruptError(
            f"{name} is not a readable zip archive: its directory is damaged; archive the files again"
        ) from error
    except Exception as error:  # a damaged directory can raise nearly anything
        raise DataCorruptError(
            f"{name} is not a readable zip archive: {short(error)}; archive the files again, or name their folder"
        ) from error
    with opened as archive:
        yield archive, _files_of(archive, name)


def _files_of(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    files: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        place = info.filename.replace("\\", "/")  # written by some programs of Windows
        if place.startswith("/") or place[1:3] == ":/" or ".." in place.split("/"):
            raise DataCorruptError(f"{name}: the name {info.filename!r} leads out of the archive")
        if place.endswith("Icon\r"):  # of a folder, on a Mac
            continue
        if any(ord(letter) < 32 for letter in place):
            raise DataCorruptError(f"{name}: the name {info.filename!r} has control characters")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataCorruptError(f"{name}: {info.filename} is a link; archive the file itself")
        if place.endswith("/"):
            continue
        if place in files:
            raise DataCorruptError(f"{name} has two files of the name {info.filename}")
        files[place] = info
    return files


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, most: int = MOST_MEMBER_BYTES) -> bytes:
    """Content of a file in an archive. Its claimed size, which is all that is ever decompressed, is checked first.

    Args:
        archive: from :func:`open_zip`.
        info: of the file.
        name: of the file, in messages.
        most: bytes that it may have.

    Raises:
        DataCorruptError: it is larger, or damaged.
    """
    if info.file_size > most:
        raise DataCorruptError(f"{name} claims {info.file_size} bytes; {most} are the most")
    try:
        return archive.read(info)
    except Exception as error:  # a damaged or encrypted file can raise nearly anything
        raise DataCorruptError(f"{name} can't be read: {short(error)}") from error


def read_npy(stream: IO[bytes], size: int, name: str) -> np.ndarray:
    """The array in an ``.npy`` file; nothing is allocated before its header fits the size of the file.

    Args:
        stream: at the file's beginning.
        size: of the file, bytes.
        name: of it, in messages.

    Raises:
        DataCorruptError: it is no such file, holds Python objects (which only a pickle could give), or its header
            claims more or fewer values than there are.
    """
    try:
        start = io.BytesIO(stream.read(_MAGIC + 4))
        version = np.lib.format.read_magic(start)
        width = {(1, 0): 2, (2, 0): 4}[version]
        length = int.from_bytes(start.getvalue()[_MAGIC : _MAGIC + width], "little")
        if length > 10_000:
            raise ValueError(f"its header has {length} bytes")
        head = io.BytesIO(start.getvalue() + stream.read(length + width - 4))
        head.seek(_MAGIC)
        read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
        shape, in_columns, dtype = read(head)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are not loaded; store numbers")
        if dtype.names is not None or not dtype.itemsize or any(side < 0 for side in shape):
            raise ValueError(f"it holds {dtype} of shape {shape}")
        claimed, found = math.prod(shape) * dtype.itemsize, size - len(head.getvalue())
        if claimed != found:
            raise ValueError(f"its header claims {claimed} bytes of values, and there are {found}")
        check_memory(name, claimed)
        content = stream.read(claimed)
        return np.frombuffer(content, dtype).reshape(shape, order="F" if in_columns else "C")
    except DataCorruptError:
        raise
    except Exception as error:  # a damaged header can raise nearly anything in numpy's parser
        reason = f"no version of an .npy file: {error}" if isinstance(error, KeyError) else short(error)
        raise DataCorruptError(f"{name} is not a readable .npy array: {reason}") from error
