"""One image file to its pixels: exactly, or refused with the reason."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np

from vi_flows.data.base import DataCorruptError
from vi_flows.data.limits import MOST_PIXELS, short

if TYPE_CHECKING:
    from PIL import Image, ImageFile

__all__ = ["FORMATS", "decode"]

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Pillow's names of what is read. Not all that it knows: for EPS it would start another program."""
_BITS_PER_SAMPLE = 258  # tag of a TIFF file


def decode(name: str, content: bytes) -> np.ndarray:
    """Pixels of an image, upright, as everybody sees it (EXIF's orientation is applied).

    Args:
        name: in messages.
        content: of the file.

    Returns:
        uint8 ``(C, H, W)``: one channel of an image in grey values (a palette of greys too), else red, green, blue.

    Raises:
        DataCorruptError: it is no readable image, or something of it would be lost: more than 8 bits a channel, pixels
            that are transparent, other colours than RGB, more than one frame.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.init()
    known = [kind for kind in FORMATS if kind in Image.OPEN]
    if content.startswith((b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!")):
        raise DataCorruptError(f"{name} is an archive among the images: unpack it there, or move it away")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on damaged metadata and on large images
            with Image.open(io.BytesIO(content), formats=known) as image:
                if image.width * image.height > MOST_PIXELS:
                    sides = f"{image.width}x{image.height}"
                    raise ValueError(f"it claims {sides} pixels; {MOST_PIXELS} are the most: resize it")
                frames = getattr(image, "n_frames", 1)
                if frames != 1:
                    raise ValueError(f"it has {frames} frames or pages: store each as an image of its own")
                if _bits(image, content) > 8:
                    raise ValueError("it has more than 8 bits a channel: convert it to 8")
                image.load()
                return _channels(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        kinds = ", ".join(known)
        raise DataCorruptError(f"{name} is not a readable image (of {kinds}): convert it, or move it away") from error
    except Exception as error:  # a damaged image can raise nearly anything in Pillow
        raise DataCorruptError(f"{name} is not a readable image: {short(error)}") from error


def _bits(image: ImageFile.ImageFile, content: bytes) -> int:
    """Bits a channel in the file. Pillow drops those beyond 8 of a colour image without a word."""
    if image.mode.startswith(("I", "F")):
        return 16
    if image.format == "PNG":
        return content[24]
    if image.format == "TIFF":
        found = image.tag_v2.get(_BITS_PER_SAMPLE, 1)  # type: ignore[attr-defined]
        return max(found) if isinstance(found, tuple) else found
    if image.format == "PPM" and image.tile and image.tile[0][0].startswith("ppm"):
        words = image.tile[0][3]
        return int(words[-1]).bit_length() if isinstance(words, tuple) else 8  # of the largest value
    return 8


def _channels(image: Image.Image) -> np.ndarray:
    """See :func:`decode`."""
    if image.mode not in ("1", "L", "P", "RGB", "LA", "PA", "RGBA"):
        raise ValueError(f"its mode is {image.mode}, which can't be converted without loss: store RGB or grey values")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        has_alpha = image.mode in ("LA", "RGBA")
        alpha = image.getchannel("A") if has_alpha else image.convert("RGBA").getchannel("A")
        if np.asarray(alpha).min() < 255:
            raise ValueError("it has transparent pixels (mode RGBA): put a background behind them")
        if image.mode == "LA":
            return np.asarray(image.convert("L"))[None]
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[None]
    pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    if image.mode in ("P", "PA") and (pixels == pixels[:1]).all():
        return pixels[:1]
    return pixels
