"""Good files of every kind that a reader takes, small, as seeds of the fuzz run."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from scipy.io import savemat, wavfile
from scipy.sparse import eye_array

from vi_flows.data.cifar import BATCHES
from vi_flows.training.checkpoint import save_tensors
from vi_flows.training.packed import pack

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def written(write: Callable[..., Any], *words: Any, **options: Any) -> bytes:
    """What ``write(file, …)`` writes."""
    file = io.BytesIO()
    write(file, *words, **options)
    return file.getvalue()


def picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """An image file of a few pixels."""
    return written(Image.fromarray(PIXELS).convert(mode).save, kind, **options)


def idx_files() -> list[bytes]:
    """idx files of one to four dimensions."""
    arrays = [PIXELS[:, 0, 0], PIXELS[..., 0], PIXELS, PIXELS[None]]
    return [bytes([0, 0, 8, a.ndim]) + np.array(a.shape, ">u4").tobytes() + a.tobytes() for a in arrays]


def amat_files() -> list[bytes]:
    """Lines of zeros and ones."""
    rows = [RNG.integers(0, 2, (n, 12)) for n in (1, 3)]
    return ["".join(" ".join(map(str, row)) + "\n" for row in array).encode() for array in rows]


def mat_files() -> list[bytes]:
    """Files of two versions, compressed or not, with matrices of other types beside."""
    grey = {"data": RNG.random((784, 3)), "testdata": RNG.random((784, 2))}
    small = {"data": RNG.random((784, 1)).astype(np.float32), "target": np.eye(3, dtype=np.uint8), "name": "text"}
    kinds = {"cell": np.array([1, "a"], object), "struct": {"a": 1.0}, "data": np.zeros((784, 1), bool)}
    sparse = {"data": eye_array(784, 2).tocsc(), "testdata": np.ones((784, 1)) * 1j}
    old = [written(savemat, values, format="4") for values in (grey, small)]
    return old + [written(savemat, v, do_compression=c) for v in (grey, small, kinds, sparse) for c in (True, False)]


def npy_files() -> list[bytes]:
    """Arrays of several types and layouts."""
    arrays = [PIXELS, PIXELS[..., 0] > 9, PIXELS / 255, np.asfortranarray(PIXELS), np.zeros((10, 16), np.int16)]
    others = [np.array(["a", "b"]), np.zeros(3, [("a", "u1")])]
    return [written(np.save, array) for array in arrays + others] + [
        written(np.lib.format.write_array, PIXELS, version=(2, 0))
    ]


def npz_files() -> list[bytes]:
    """Splits with labels."""
    rows, words = np.repeat(PIXELS[None, ..., 0], 12, 0), np.array(["cat", "dog"] * 6)
    named = {"train": rows, "test": rows[:2], "labels_train": words, "labels_test": words[:2]}
    others = {"x_train": rows / 255, "x_test": rows / 255, "y_train": np.arange(12), "y_test": np.arange(12)}
    return [written(write, **names) for write in (np.savez, np.savez_compressed) for names in (named, others)] + [
        written(np.savez, rows)
    ]


def image_files() -> list[bytes]:
    """Every format that is read, in several modes."""
    exif, more = Image.Exif(), {"save_all": True, "append_images": [Image.fromarray(255 - PIXELS)]}
    exif[0x0112] = 6
    files = [picture("PNG", mode) for mode in ("RGB", "L", "P", "1", "RGBA", "LA", "I;16")]
    files += [picture("PNG", "L", transparency=3), picture("PNG", "P", transparency=1), picture("PNG", exif=exif)]
    files += [picture("JPEG"), picture("JPEG", "L", progressive=True), picture("JPEG", exif=exif)]
    files += [picture("JPEG", "CMYK"), picture("BMP"), picture("BMP", "P"), picture("BMP", "1")]
    files += [picture("GIF"), picture("GIF", "L", transparency=3), picture("PPM"), picture("PPM", "1")]
    files += [picture("WEBP"), picture("WEBP", "RGBA", lossless=True), picture("WEBP", exif=exif)]
    files += [picture("TIFF", mode) for mode in ("RGB", "L", "1", "P", "F")]
    files += [picture("TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")]
    return files + [picture(kind, **more) for kind in ("GIF", "PNG", "WEBP", "TIFF", "MPO")]


def wav_files() -> list[bytes]:
    """Of several sample types."""
    tone = RNG.integers(-9, 9, 40)
    kinds = [tone.astype(kind) for kind in (np.int16, np.uint8, np.int32, np.float32)]
    return [written(wavfile.write, 8000, samples) for samples in [*kinds, tone.astype(np.int16).reshape(-1, 2)]]


def checkpoint_files() -> list[bytes]:
    """With and without a checksum."""
    tensors = {"model.a": torch.arange(6.0).reshape(2, 3), "rng": torch.arange(9, dtype=torch.uint8)}
    tensors |= {"b": torch.ones((), dtype=torch.int64), "c": torch.zeros(0, 4), "d": torch.ones(2).bfloat16()}
    state = {"step": 3, "best": {"epoch": 1, "valid_loss": 2.5}, "finished": False}
    with tempfile.TemporaryDirectory() as folder:
        save_tensors(Path(folder, "a"), tensors, state)
        whole = Path(folder, "a").read_bytes()
    return [whole, save(tensors, {"state": json.dumps(state)})]


def packed_files() -> list[bytes]:
    """The same, packed."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "a")
        return [pack(place, place.parent).read_bytes() for content in checkpoint_files() if place.write_bytes(content)]


def cifar_files() -> list[bytes]:
    """Batches in the protocols of Python 2 and later."""
    batch = {"data": RNG.integers(0, 256, (2, 3072), dtype=np.uint8), "labels": [3, 9], "filenames": ["a.png", "b.png"]}
    return [pickle.dumps(batch, protocol) for protocol in range(6)]


def zip_files() -> list[bytes]:
    """Folders of images."""
    png, jpeg = picture("PNG"), picture("JPEG")
    files = {"train/a/1.png": png, "train/b/2.jpg": jpeg, "test/a/3.png": png, "valid/b/4.png": png, "README": b"x"}

    def write(file: io.BytesIO, how: int) -> None:
        with zipfile.ZipFile(file, "w", how) as archive:
            for name, content in files.items():
                archive.writestr(name, content)

    return [written(write, how) for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)]


def omniglot_files() -> list[bytes]:
    """Two characters in one archive."""
    paper = Image.fromarray(np.tile(PIXELS[..., 0] > 99, (18, 14))[:105, :105])
    drawing = written(paper.save, "PNG")

    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("0001_01.png", "0001_02.png"):
                archive.writestr(f"images_background/Latin/character01/{name}", drawing)

    return [written(write)]


def tar_files() -> list[bytes]:
    """CIFAR's batches, with short ones in their place."""

    def write(file: io.BytesIO, kind: int) -> None:
        with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
            for name in BATCHES:
                member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                member.size = 20
                archive.addfile(member, io.BytesIO(name.ljust(20).encode()))

    return [written(write, kind) for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
