"""Real matrices in MATLAB files of version 5, read within bounds.

Not by SciPy, whose compiled reader can be brought to crash the process by a damaged file: of all that such files may
hold, only plain numeric arrays are wanted here. The layout is MathWorks' "MAT-File Format", chapter 1.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from vi_flows.data.base import DataCorruptError

__all__ = ["inflated", "load_matrices"]

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_MOST_ELEMENTS = 1000
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""NumPy's types of the stored numbers, which may be narrower than those of the array's class."""
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x0800


def load_matrices(content: bytes, names: list[str], most: int) -> dict[str, np.ndarray]:
    """The matrices of these names that are in a file.

    Args:
        content: of the file.
        names: of matrices.
        most: bytes that the file may have when it is inflated.

    Raises:
        DataCorruptError: it is no readable file of version 5, or larger, or one of the matrices is not of real numbers.
    """
    order = _order(content)
    if order is None:
        raise DataCorruptError("not a readable MATLAB file of version 5")
    found: dict[str, np.ndarray] = {}
    for kind, element, _ in _elements(inflated(content, most)[_HEADER:], order):
        parts = list(_elements(element, order)) if kind == _MATRIX else []
        if len(parts) < 3:
            continue
        name = parts[2][1].decode("latin1")
        if name in names:
            found[name] = _matrix(name, parts, order)
    return found


def _order(content: bytes) -> str | None:
    """Of the bytes, as struct and NumPy write it; ``None`` where the header is another's."""
    return {b"IM": "<", b"MI": ">"}.get(content[_HEADER - 2 : _HEADER])


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes, int]]:
    """Type, bytes and place of each data element; those of at most 4 bytes may share 8 bytes with their tag.

    Raises:
        DataCorruptError: one claims more bytes than there are.
    """
    place, number = 0, 0
    while place + 8 <= len(content):
        kind, count = struct.unpack_from(f"{order}II", content, place)
        start, number = place + 8, number + 1
        if kind >> 16:
            kind, count, start = kind & 0xFFFF, kind >> 16, place + 4
        if start + count > len(content) or (start == place + 4 and count > 4) or number > _MOST_ELEMENTS:
            raise DataCorruptError(f"a MATLAB file whose element at byte {place} claims {count} bytes")
        yield kind, content[start : start + count], place
        place = place + 8 if start == place + 4 else start + count + (-count % 8 if kind != _COMPRESSED else 0)


def _matrix(name: str, parts: list[tuple[int, bytes, int]], order: str) -> np.ndarray:
    """The array of flags, dimensions, name and numbers."""
    flags, dims = parts[0][1], parts[1][1]
    if len(flags) != 8 or len(dims) % 4 or not 8 <= len(dims) <= 32 or len(parts) != 4:
        raise DataCorruptError(f"a MATLAB file whose {name} is no array of real numbers")
    (flag,) = struct.unpack_from(f"{order}I", flags)
    shape = struct.unpack(f"{order}{len(dims) // 4}i", dims)
    kind, values, _ = parts[3]
    if flag & 0xFF not in _CLASSES or flag & _COMPLEX or kind not in _STORED:
        raise DataCorruptError(f"a MATLAB file whose {name} is no array of real numbers")
    stored = np.dtype(order + _STORED[kind])
    if min(shape) < 0 or math.prod(shape) * stored.itemsize != len(values):
        raise DataCorruptError(f"a MATLAB file whose {name} has the shape {shape} and {len(values)} bytes of values")
    try:
        array = np.frombuffer(values, stored).reshape(shape, order="F")
    except ValueError as error:  # no values, and sides whose product is beyond numpy all the same
        raise DataCorruptError(f"a MATLAB file whose {name} has the shape {shape}") from error
    return array.astype(_CLASSES[flag & 0xFF], order="F")


def inflated(content: bytes, most: int) -> bytes:
    """The same file without compression, so that no part of it can claim more than there is.

    A file is a header of 128 bytes, whose last two tell the byte order, and elements: type and number of bytes in 32
    bits each, then the bytes. Type 15 is a zlib stream of one element.

    Args:
        content: of the file.
        most: bytes of the result.

    Raises:
        DataCorruptError: an element is damaged, or the result would be larger.
    """
    order = _order(content)
    parts, size = [content[:_HEADER]], _HEADER
    for kind, inner, place in _elements(content[_HEADER:], order or "<"):
        element = content[_HEADER + place : _HEADER + place + 8] + inner
        if kind == _COMPRESSED:
            element = _inflate(inner, most - size + 1)
            claimed = struct.unpack_from(f"{order}I", element, 4)[0] if len(element) >= 8 else -1
            if len(element) <= most - size and len(element) != 8 + claimed:
                raise DataCorruptError(f"a MATLAB file with an element of {len(element)} bytes that claims {claimed}")
        size += len(element)
        if size > most:
            raise DataCorruptError(f"a MATLAB file that inflates to more than {most} bytes")
        parts.append(element)
    return b"".join(parts)


def _inflate(content: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(content, most)
    except zlib.error as error:
        raise DataCorruptError(f"a MATLAB file with a damaged element: {error}") from error
