"""Small changes of a file's bytes, drawn by a seeded generator."""

from __future__ import annotations

import random
import struct
import zlib

NUMBERS = [0, 1, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1]


def mutated(content: bytes, files: list[bytes], draw: random.Random) -> bytes:
    """One to four changes of a file.

    Args:
        content: of a good file.
        files: others to splice with.
        draw: of the changes.
    """
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 4))):
        if not data:
            break
        # Headers say most and are short.
        near = min(len(data), draw.choice((16, 64, 256, len(data))))
        at = draw.randrange(near)
        change = draw.randrange(9)
        if change == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif change == 1:
            data[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif change == 2:
            width, order = draw.choice((2, 4, 8)), draw.choice(("little", "big"))
            data[at : at + width] = (draw.choice(NUMBERS) % 256**width).to_bytes(width, order)
        elif change == 3:
            del data[draw.randrange(len(data)) :]
        elif change == 4:
            del data[at : at + draw.randint(1, 32)]
        elif change == 5:
            data[at:at] = data[at : at + draw.randint(1, 32)] * draw.randint(1, 3)
        elif change == 6:
            data[at:at] = draw.randbytes(draw.randint(1, 16))
        elif change == 7:
            other = draw.choice(files)
            data[at:] = other[draw.randrange(len(other)) :]
        else:  # a number in words, as in the headers of arrays and checkpoints
            digits = [i for i in range(near) if chr(data[i]).isdigit() and data[i] < 128]
            if digits:
                at = draw.choice(digits)
                data[at : at + 1] = str(draw.choice(NUMBERS) - draw.choice((0, 0, 2**63))).encode()
    return bytes(data)


def with_crcs(content: bytes, draw: random.Random) -> bytes:
    """A PNG file whose chunks have the checksums of their content, where their lengths allow it."""
    if not content.startswith(b"\x89PNG"):
        return content
    found, at = bytearray(content), 8
    while at + 12 <= len(found):
        (length,) = struct.unpack_from(">I", found, at)
        if at + 12 + length > len(found):
            break
        struct.pack_into(">I", found, at + 8 + length, zlib.crc32(found[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(found)
