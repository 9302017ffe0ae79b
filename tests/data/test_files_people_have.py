"""Image files and arrays as people have them: read to the pixel, or refused by the file's name; never fewer images."""

from __future__ import annotations

import io
import logging
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vi_flows.data import DataCorruptError, DataNotFoundError, ImageData, load

RNG = np.random.default_rng(1)
RGB = RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)
GREY = RGB[..., 0]
SMOOTH = np.add.outer(8 * np.arange(16), 5 * np.arange(24)).astype(np.uint8)
DEEP = RNG.integers(0, 65536, (4, 5), dtype=np.uint16)


def saved(pixels: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def with_alpha(alpha: np.ndarray, grey: bool = False) -> np.ndarray:
    return np.concatenate([RGB[..., :1] if grey else RGB, alpha[..., None].astype(np.uint8)], -1)


def in_palette(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).convert("RGB").quantize(256)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def frames(kind: str) -> bytes:
    others = [Image.fromarray(255 - RGB), Image.fromarray(RGB // 2)]
    return saved(RGB, kind, save_all=True, append_images=others)


def png_of_16_bits() -> bytes:
    """In colour; Pillow can't write it, and reads it with the lower halves dropped."""
    rows = b"".join(b"\0" + np.full((5, 3), 0x12FF, ">u2").tobytes() for _ in range(4))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


OPAQUE, HALF = np.full((4, 5), 255), np.full((4, 5), 128)
READ = {
    "rgb.png": (saved(RGB, "PNG"), RGB),
    "rgb.bmp": (saved(RGB, "BMP"), RGB),
    "rgb.tif": (saved(RGB, "TIFF"), RGB),
    "lzw.TIFF": (saved(RGB, "TIFF", compression="tiff_lzw"), RGB),
    "rgb.webp": (saved(RGB, "WEBP", lossless=True), RGB),
    "rgb.ppm": (saved(RGB, "PPM"), RGB),
    "colours.gif": (saved(in_palette(RGB), "GIF"), RGB),
    "palette.png": (saved(in_palette(RGB), "PNG"), RGB),
    "grey.gif": (saved(GREY, "GIF"), GREY),
    "grey palette.png": (saved(in_palette(GREY), "PNG"), GREY),
    "grey.png": (saved(GREY, "PNG"), GREY),
    "grey.bmp": (saved(GREY, "BMP"), GREY),
    "grey.tif": (saved(GREY, "TIFF"), GREY),
    "grey.pgm": (saved(GREY, "PPM"), GREY),
    "bits.png": (saved(GREY > 99, "PNG"), 255 * (GREY > 99)),
    "bits.tif": (saved(GREY > 99, "TIFF"), 255 * (GREY > 99)),
    "opaque.png": (saved(with_alpha(OPAQUE), "PNG"), RGB),
    "opaque grey.png": (saved(with_alpha(OPAQUE, grey=True), "PNG"), GREY),
    "opaque.webp": (saved(with_alpha(OPAQUE), "WEBP", lossless=True), RGB),
    "no such colour.png": (saved(GREY | 1, "PNG", transparency=0), GREY | 1),
    "upright.png": (saved(RGB, "PNG", exif=turned(1)), RGB),
    "turned.png": (saved(RGB, "PNG", exif=turned(6)), np.rot90(RGB, -1)),
    "turned.tif": (saved(RGB, "TIFF", exif=turned(8)), np.rot90(RGB)),
    "turned.webp": (saved(RGB, "WEBP", exif=turned(3), lossless=True), np.rot90(RGB, 2)),
    "mirrored.png": (saved(RGB, "PNG", exif=turned(2)), RGB[:, ::-1]),
    "no suffix": (saved(RGB, "PNG"), RGB),
    "wrong suffix.jpg": (saved(RGB, "PNG"), RGB),
}
REFUSED = {
    "deep.png": (saved(DEEP, "PNG"), "more than 8 bits"),
    "deep colour.png": (png_of_16_bits(), "more than 8 bits"),
    "deep.tif": (saved(DEEP, "TIFF"), "more than 8 bits"),
    "deep.pgm": (saved(DEEP, "PPM"), "more than 8 bits"),
    "float.tif": (saved(GREY.astype(np.float32), "TIFF"), "more than 8 bits"),
    "int.tif": (saved(GREY.astype(np.int32), "TIFF"), "more than 8 bits"),
    "cmyk.jpg": (saved(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "mode is CMYK"),
    "lab.tif": (saved(Image.fromarray(RGB).convert("LAB"), "TIFF"), "mode is LAB"),
    "half.png": (saved(with_alpha(HALF), "PNG"), "transparent"),
    "half grey.png": (saved(with_alpha(HALF, grey=True), "PNG"), "transparent"),
    "half.webp": (saved(with_alpha(HALF), "WEBP", lossless=True), "transparent"),
    "hole.png": (saved(in_palette(RGB), "PNG", transparency=in_palette(RGB).getpixel((0, 0))), "transparent"),
    "hole.gif": (saved(in_palette(RGB), "GIF", transparency=in_palette(RGB).getpixel((0, 0))), "transparent"),
    "hole grey.png": (saved(GREY, "PNG", transparency=int(GREY[0, 0])), "transparent"),
    "moving.gif": (frames("GIF"), "3 frames"),
    "moving.webp": (frames("WEBP"), "3 frames"),
    "moving.png": (frames("PNG"), "3 frames"),
    "pages.tif": (frames("TIFF"), "3 frames or pages"),
    "two.jpg": (frames("MPO"), "3 frames"),
    "empty.png": (b"", "not a readable image"),
    "half a file.png": (saved(RGB, "PNG")[:60], "not a readable image"),
    "half a file.jpg": (saved(SMOOTH, "JPEG")[:-40], "not a readable image"),
    "words.jpg": (b"not an image\n", "not a readable image"),
    "page.svg": (b"<svg/>", "not a readable image"),
    "phone.heic": (b"\0\0\0\x18ftypheic", "not a readable image"),
    "more.npy": (b"\x93NUMPY", "not a readable image"),
    "train.zip": (b"PK\x03\x04", "an archive among the images: unpack it"),
    "train.tar.gz": (b"\x1f\x8b\x08", "an archive among the images: unpack it"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n", "not a readable image"),
}


def stored(place: Path, files: dict[str, bytes]) -> str:
    """In a folder, or a zip archive if the name says so."""
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return str(place)
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return str(place)


def both(content: bytes, name: str) -> dict[str, bytes]:
    return {f"train/a-{name}": content, f"train/b-{name}": content, f"test/{name}": content}


def first(data: ImageData) -> np.ndarray:
    image = data.images("test")[0].numpy()
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


@pytest.mark.parametrize("name", READ)
def test_what_can_be_read_is_read_to_the_pixel(tmp_path: Path, name: str) -> None:
    content, expected = READ[name]
    for place in ("own", "own.zip"):
        data = load(stored(tmp_path / place, both(content, name)))
        assert [len(part) for part in data.split("clean")] == [1, 1, 1]
        assert np.array_equal(first(data), expected)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_lose_something_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    for place in ("own", "own.zip"):
        with pytest.raises(DataCorruptError, match=message) as refusal:
            load(stored(tmp_path / place, both(saved(RGB, "PNG"), "a.png") | {f"train/c/{name}": content}))
        assert name in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_jpeg_is_decoded_and_turned(tmp_path: Path) -> None:
    for name, turn, expected in (("a", 1, SMOOTH), ("b", 6, np.rot90(SMOOTH, -1)), ("c", 3, np.rot90(SMOOTH, 2))):
        content = saved(SMOOTH, "JPEG", quality=100, exif=turned(turn))
        found = first(load(stored(tmp_path / name, both(content, "x.JPG"))))
        assert np.abs(found.astype(int) - expected).max() <= 2
    color = saved(np.stack([SMOOTH] * 3, -1), "JPEG", quality=100)
    assert np.abs(first(load(stored(tmp_path / "d", both(color, "x.jpeg")))).astype(int) - SMOOTH[..., None]).max() < 6


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [("Train", "validation", "Test"), ("TRAIN", "Val", "TEST"), ("training", "VALIDATION", "testing")],
)
@pytest.mark.parametrize("place", ["own", "own.zip"])
def test_splits_by_other_spellings(tmp_path: Path, train: str, valid: str, test: str, place: str) -> None:
    split = {f"{train}/x/{i}.png": saved(RGB[: i + 2, :3] + 9, "PNG") for i in range(1)}
    split |= {f"{train}/y/1.png": saved(RGB[:2, :3], "PNG"), f"{valid}/x/2.png": saved(RGB[1:3, :3], "PNG")}
    split |= {f"{test}/y/3.png": saved(RGB[2:, :3], "PNG")}
    for above in ("", "deep/down/"):
        data = load(stored(tmp_path / f"{len(above)}-{place}", {above + k: v for k, v in split.items()}))
        assert [len(part) for part in data.split("clean")] == [2, 1, 1]
        assert np.array_equal(first(data), RGB[2:, :3])
        assert [data.labels[name].tolist() for name in ("train", "valid", "test")] == [[0, 1], [0], [1]]


PNG = saved(RGB, "PNG")
JUNK = {
    ".DS_Store": b"x", "train/.DS_Store": b"x", "__MACOSX/train/._a.png": b"x", "train/Thumbs.db": b"x",
    "train/desktop.ini": b"x", "train/.ipynb_checkpoints/a-checkpoint.png": PNG, "README.md": b"x",
    "train/labels.csv": b"x", "LICENSE": b"x", "@eaDir/train/a.png/SYNO.jpg": PNG,
}  # fmt: skip


@pytest.mark.parametrize("place", ["own", "own.zip"])
def test_what_others_left_is_no_image(tmp_path: Path, place: str) -> None:
    data = load(stored(tmp_path / place, both(PNG, "a.png") | JUNK))
    assert [len(part) for part in data.split("paper")] == [2, 0, 1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"holdout/1.png": PNG}, "holdout/1.png lies in none of train/, valid/ and test/"),
        ({"preview.png": PNG}, "preview.png lies in none of"),
        ({"zebra/1.png": PNG}, "zebra/1.png lies in none of"),
        ({"val/1.png": PNG, "validation/2.png": PNG}, "valid images in val/ and in validation/"),
        ({"Train/1.png": PNG}, "train images in Train/ and in train/"),
        ({"part2/train/1.png": PNG}, "train images in part2/train/ and in train/"),
        ({"train/1.png": saved(RGB[:3], "PNG")}, r"train/1.png is \(3, 5\), but test/a.png is \(4, 5\)"),
    ],
)
@pytest.mark.parametrize("place", ["own", "own.zip"])
def test_images_that_would_be_left_out_are_named(
    tmp_path: Path, more: dict[str, bytes], message: str, place: str
) -> None:
    with pytest.raises(DataCorruptError, match=message):
        load(stored(tmp_path / place, both(PNG, "a.png") | more))


def test_links(tmp_path: Path) -> None:
    folder = Path(stored(tmp_path / "own", both(PNG, "a.png")))
    elsewhere = Path(stored(tmp_path / "elsewhere", {"c.png": PNG, "d.png": PNG}))
    (folder / "train" / "linked").symlink_to(elsewhere)
    (folder / "train" / "e.png").symlink_to(elsewhere / "c.png")
    assert len(load(str(folder)).split("paper").train) == 5
    (folder / "train" / "gone.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(DataCorruptError, match=r"train/gone\.png is no file, or a link to nothing"):
        load(str(folder))
    (folder / "train" / "gone.png").unlink()
    (folder / "train" / "circle").symlink_to(folder)
    with pytest.raises(DataCorruptError, match="is there twice, by a link"):
        load(str(folder))
    (folder / "train" / "circle").unlink()
    os.mkfifo(folder / "train" / "pipe.png")
    with pytest.raises(DataCorruptError, match=r"train/pipe\.png is no file"):
        load(str(folder))


def test_one_class_is_a_class_and_a_folder_without_splits_is_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = load(stored(tmp_path / "one", {f"{split}/only/{i}.png": PNG for split in ("train", "test") for i in "abc"}))
    assert one.labels["test"].tolist() == [0, 0, 0]
    images = np.arange(24 * 12, dtype=np.uint8).reshape(24, 3, 4)
    files = {f"{'cat' if i % 2 else 'dog'}/{i:02d}.png": saved(image, "PNG") for i, image in enumerate(images)}
    with caplog.at_level(logging.WARNING):
        data = load(stored(tmp_path / "unsplit", files))
    assert "has no splits: 2 images each are held out" in caplog.text
    assert [len(part) for part in data.split("clean")] == [20, 2, 2]
    everything = np.concatenate([data.images(name).numpy() for name in ("train", "valid", "test")])[:, 0]
    labels = np.concatenate([data.labels[name] for name in ("train", "valid", "test")])
    for image, label in zip(images, [1, 0] * 12, strict=True):
        (index,) = np.flatnonzero((everything == image).all((1, 2)))
        assert labels[index] == label
    assert load(str(tmp_path / "unsplit")).sha256 == data.sha256
    few = {f"single/{i}.png": PNG for i in range(9)}
    with pytest.raises(DataNotFoundError, match=r"9 images and no splits; give at least 10, or train/ and test/"):
        load(stored(tmp_path / "few", few))


@pytest.mark.parametrize(
    ("folder", "classes"),
    [
        ("{kind}", 2),
        ("photos/{kind}", 2),  # an archive that was packed with its folder
        ("{kind}/{year}", 2),  # of which the years would be classes otherwise, each of cats and dogs
        ("photos/2024/{kind}/{year}/raw", 2),
        ("photos", 1),
        ("", None),
    ],
)
def test_classes_without_splits_are_the_folders_that_tell_images_apart_first(
    tmp_path: Path, folder: str, classes: int | None
) -> None:
    files, kinds = {}, {}
    for index in range(20):
        kind, year = ("cat", "dog")[index % 2], ("2020", "2021")[index // 2 % 2]
        pixels = np.full((4, 5), 10 * index, dtype=np.uint8)
        files[f"{folder.format(kind=kind, year=year)}/{index:02d}.png".removeprefix("/")] = saved(pixels, "PNG")
        kinds[10 * index] = index % 2 if classes == 2 else 0
    data = load(stored(tmp_path / "own", files))
    if classes is None:
        assert data.labels is None
        return
    for split in ("train", "valid", "test"):
        grey = data.pixels(split)[:, 0].tolist()
        assert data.labels[split].tolist() == [kinds[value] for value in grey]


def test_an_image_beside_class_folders_has_no_class(tmp_path: Path) -> None:
    files = {f"cat/{i}.png": PNG for i in range(10)} | {f"dog/2020/{i}.png": PNG for i in range(10)}
    assert load(stored(tmp_path / "own", files)).labels is not None
    assert load(stored(tmp_path / "beside", files | {"stray.png": PNG})).labels is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.writestr("../train/x.png", PNG), r"'\.\./train/x\.png' leads out of the archive"),
        (lambda a: a.writestr("/train/x.png", PNG), "leads out of the archive"),
        (lambda a: a.writestr("C:\\train\\x.png", PNG), "leads out of the archive"),
        (lambda a: a.writestr("train\\..\\..\\x.png", PNG), "leads out of the archive"),
        (lambda a: a.writestr("train/a\nb.png", PNG), r"'train/a\\nb\.png' has control characters"),
        (lambda a: a.writestr("train/a-a.png", PNG), r"two files of the name train/a-a\.png"),
        (lambda a: a.writestr(link("train/l.png"), "/etc/passwd"), r"train/l\.png is a link"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_with_wrong_names(tmp_path: Path, change: Callable[[zipfile.ZipFile], None], message: str) -> None:
    path = stored(tmp_path / "own.zip", both(PNG, "a.png"))
    with zipfile.ZipFile(path, "a") as archive:
        change(archive)
    with pytest.raises(DataCorruptError, match=message):
        load(path)


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


def test_archives_from_windows_and_from_a_mac(tmp_path: Path) -> None:
    data = load(stored(tmp_path / "mac.zip", both(PNG, "a.png") | {"train/Icon\r": b""}))
    assert np.array_equal(first(data), RGB)
    data = load(stored(tmp_path / "own.zip", {name.replace("/", "\\"): c for name, c in both(PNG, "a.png").items()}))
    assert np.array_equal(first(data), RGB)
