"""Matrices in MATLAB files of versions 4 and 5, whose compressed parts are inflated within bounds first."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np

from vi_flows.data.base import DataCorruptError
from vi_flows.data.limits import short

__all__ = ["inflated", "load_matrices"]

_HEADER = 128
_COMPRESSED = 15
_MOST_ELEMENTS = 1000


def load_matrices(content: bytes, names: list[str], most: int) -> dict[str, np.ndarray]:
    """The matrices of these names that are in a file.

    Args:
        content: of the file.
        names: of matrices.
        most: bytes that the file may have when it is inflated.

    Raises:
        DataCorruptError: it is no readable file, or larger.
    """
    from scipy.io import loadmat

    try:
        found = loadmat(io.BytesIO(inflated(content, most)), variable_names=names)
    except DataCorruptError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything in the parser
        raise DataCorruptError(f"not a readable MATLAB file: {short(error)}") from error
    return {name: np.asarray(found[name]) for name in names if name in found}


def inflated(content: bytes, most: int) -> bytes:
    """The same file without compression, so that no part of it can claim more than there is.

    A file of version 5 is a header of 128 bytes, whose last two tell the byte order, and elements: type and number of
    bytes in 32 bits each, then the bytes. Type 15 is a zlib stream of one element. Files of version 4 know no
    compression and come back as they are.

    Args:
        content: of the file.
        most: bytes of the result.

    Raises:
        DataCorruptError: an element is damaged, or the result would be larger.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[_HEADER - 2 : _HEADER])
    if order is None:
        return content
    parts, size, place = [content[:_HEADER]], _HEADER, _HEADER
    while place + 8 <= len(content):
        kind, count = struct.unpack_from(f"{order}II", content, place)
        element = content[place : place + 8 + count]
        if len(element) < 8 + count or len(parts) > _MOST_ELEMENTS:
            raise DataCorruptError(f"a MATLAB file whose element at byte {place} claims {count} bytes")
        place += 8 + count
        if kind == _COMPRESSED:
            stream = zlib.decompressobj()
            try:
                element = stream.decompress(element[8:], most - size + 1)
            except zlib.error as error:
                raise DataCorruptError(f"a MATLAB file with a damaged element: {error}") from error
            claimed = struct.unpack_from(f"{order}I", element, 4)[0] if len(element) >= 8 else -1
            if len(element) <= most - size and len(element) != 8 + claimed:
                raise DataCorruptError(f"a MATLAB file with an element of {len(element)} bytes that claims {claimed}")
        size += len(element)
        if size > most:
            raise DataCorruptError(f"a MATLAB file that inflates to more than {most} bytes")
        parts.append(element)
    return b"".join(parts)
