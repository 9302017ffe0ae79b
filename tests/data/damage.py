"""Damage that the tests of files do."""

from __future__ import annotations

__all__ = ["flip"]


def flip(content: bytes) -> bytes:
    """The content with one bit in its middle changed."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
