"""CIFAR-10's archive, image folders, zip archives and arrays."""

from __future__ import annotations

import dataclasses
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vi_flows.data import DataCorruptError, DataNotFoundError, cifar, load, registry

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (12, 3, 4, 5), dtype=np.uint8)


def tar(batches: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{mode}") as archive:
        for name, content in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Six batches of three images; the registry expects them."""
    pixels = RNG.integers(0, 256, (6, 3, 3072), dtype=np.uint8)
    content = {
        name: pickle.dumps({"data": part, "labels": [i, 0, 9], "filenames": ["a.png"] * 3}, protocol=2)
        for i, (name, part) in enumerate(zip(cifar.BATCHES, pixels, strict=True))
    }
    monkeypatch.setattr(cifar, "_VALID", 4)
    expect(monkeypatch, content)
    return content


def expect(monkeypatch: pytest.MonkeyPatch, batches: dict[str, bytes]) -> None:
    entry = registry.REGISTRY["cifar10"]
    checksum = f"md5-of-batches:{cifar.batches_md5(tar(batches, ''))}"
    file = dataclasses.replace(entry.files[0], checksum=checksum)
    small = dataclasses.replace(entry, counts=(11, 4, 3), files=(file,))
    monkeypatch.setitem(registry.REGISTRY, "cifar10", small)


@pytest.mark.parametrize("compressed", [False, True])
def test_cifar10_is_the_batches_in_order(tmp_path: Path, batches: dict[str, bytes], compressed: bool) -> None:
    name = "cifar-10-python.tar" + (".gz" if compressed else "")
    (tmp_path / name).write_bytes(tar(batches, "gz" if compressed else ""))
    for _ in range(2):  # from the archive, then from the cache
        data = load("cifar10", tmp_path)
        assert data.shape == (3, 32, 32)
        expected = np.concatenate([pickle.loads(content)["data"] for content in list(batches.values())[:5]])
        assert np.array_equal(data.pixels("train+valid").numpy(), expected)
        assert np.array_equal(data.test.numpy(), pickle.loads(batches["test_batch"])["data"])
        assert data.labels["test"].tolist() == [5, 0, 9]
        assert data.labels["train"].tolist() == [0, 0, 9, 1, 0, 9, 2, 0, 9, 3, 0]


def test_the_published_checksums_are_those_expected() -> None:
    assert registry.find("cifar10").files[0].checksum == "md5-of-batches:" + cifar._digest_of(cifar.BATCHES)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content | {"data_batch_2": content["data_batch_3"]},
        lambda content: {name: batch for name, batch in content.items() if name != "test_batch"},
    ],
    ids=["other", "missing"],
)
def test_another_archive_is_refused(
    tmp_path: Path, batches: dict[str, bytes], damage: Callable[[dict[str, bytes]], dict[str, bytes]]
) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(tar(damage(batches), "gz"))
    with pytest.raises(DataCorruptError, match="expected md5-of-batches:"):
        load("cifar10", tmp_path)


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1/0",)


def test_a_batch_cannot_run_code(tmp_path: Path, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    batches = batches | {"test_batch": pickle.dumps(_Harmful())}
    expect(monkeypatch, batches)
    (tmp_path / "cifar-10-python.tar").write_bytes(tar(batches, ""))
    with pytest.raises(DataCorruptError, match=r"asks for builtins\.eval"):
        load("cifar10", tmp_path)


def picture(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_all(place: Path, files: dict[str, bytes]) -> Path:
    """Into a folder, or a zip archive if the name says so."""
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return place
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def pictures(valid: str | None = None) -> dict[str, bytes]:
    names = [f"train/{'cat' if i % 2 else 'dog'}/{i}.png" for i in range(8)] + ["test/cat/0.png", "test/dog/1.png"]
    names += [f"{valid}/bird/0.png", f"{valid}/cat/1.PNG"] if valid else []
    return {name: picture(COLOR[i]) for i, name in enumerate(names)}


@pytest.mark.parametrize("name", ["own", "own.zip"])
@pytest.mark.parametrize("valid", ["valid", "val"])
def test_pictures_in_a_folder_or_archive(tmp_path: Path, name: str, valid: str) -> None:
    junk = {"train/cat/notes.txt": b"", "train/cat/._3.png": b"junk", "LICENSE": b"", "train/labels.csv": b"1"}
    data = load(str(write_all(tmp_path / name, pictures(valid) | junk)))
    assert (data.name, data.shape, data.levels, len(data.train)) == ("own", (3, 4, 5), 256, 8)
    order = [1, 0, 3, 2, 5, 4, 7, 6]  # the first cat, the first dog, the second cat, …
    assert np.array_equal(data.images("train").numpy(), COLOR[order])
    assert data.labels["train"].tolist() == [1, 2] * 4  # bird, cat, dog
    assert data.labels["valid"].tolist() == [0, 1]
    assert np.array_equal(data.images("test").numpy(), COLOR[8:10])


def test_validation_pictures_are_held_out_where_there_are_none(tmp_path: Path) -> None:
    path = str(write_all(tmp_path / "own", pictures()))
    data = load(path)
    assert [len(part) for part in data.split("clean")] == [7, 1, 2]
    assert sorted(map(tuple, data.pixels("train+valid").tolist())) == sorted(
        map(tuple, COLOR[:8].reshape(8, -1).tolist())
    )
    assert load(path).sha256 == data.sha256


def test_a_folder_and_an_archive_of_the_same_pictures_are_the_same_data(tmp_path: Path) -> None:
    files = pictures() | {"train/cat-2/0.png": picture(COLOR[10]), "train/Cat/0.png": picture(COLOR[11])}
    folder, archive = (load(str(write_all(tmp_path / name, files))) for name in ("own", "own.zip"))
    assert folder.sha256 == archive.sha256


def test_an_archive_in_the_data_root_with_a_folder_of_its_own(tmp_path: Path) -> None:
    write_all(tmp_path / "own.zip", {f"own/{name}": content for name, content in pictures("valid").items()})
    assert len(load("own.zip", tmp_path).train) == 8


def test_grey_pictures_have_one_channel_and_mixed_ones_three(tmp_path: Path) -> None:
    grey = {f"{split}/{i}.png": picture(COLOR[i, 0]) for split in ("train", "test") for i in range(3)}
    data = load(str(write_all(tmp_path / "grey", grey)))
    assert data.shape == (1, 4, 5)
    assert data.labels is None
    mixed = load(str(write_all(tmp_path / "mixed", grey | {"test/3.png": picture(COLOR[3])})))
    assert mixed.shape == (3, 4, 5)
    assert np.array_equal(mixed.images("test")[0].numpy(), np.stack([COLOR[0, 0]] * 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (picture(COLOR[0].transpose(0, 2, 1)), r"train/x/9\.png is \(5, 4\), but test/cat/0\.png is \(4, 5\)"),
        (b"no picture", r"train/x/9\.png is not a readable image"),
        (picture(np.zeros((4, 4, 5), dtype=np.uint8)), r"transparent pixels \(mode RGBA\)"),
    ],
)
def test_a_picture_that_does_not_fit_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("own", "own.zip"):
        with pytest.raises(DataCorruptError, match=message):
            load(str(write_all(tmp_path / name, pictures() | {"train/x/9.png": content})))


def test_paths_without_images_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"there is no file or folder .*absent\.zip"):
        load("absent.zip", tmp_path)
    only = {name: content for name, content in pictures().items() if name.startswith("train")}
    with pytest.raises(DataNotFoundError, match="has no test images; it should have train/ and test/"):
        load(str(write_all(tmp_path / "own", only)))
    (tmp_path / "bad.zip").write_bytes(b"text")
    with pytest.raises(DataCorruptError, match="not a readable zip archive"):
        load("bad.zip", tmp_path)


def test_arrays(tmp_path: Path) -> None:
    labels = {"labels_train": np.arange(8), "labels_valid": np.arange(2), "labels_test": np.arange(2)}
    np.savez(tmp_path / "own.npz", train=COLOR[:8], valid=COLOR[8:10], test=COLOR[10:], **labels)
    data = load("own.npz", tmp_path)
    assert (data.shape, data.levels, data.binarization) == ((3, 4, 5), 256, "dynamic")
    assert np.array_equal(data.images("valid").numpy(), COLOR[8:10])
    assert data.labels["train"].tolist() == list(range(8))

    np.savez(tmp_path / "binary.npz", train=COLOR[:8, 0] > 99, test=COLOR[8:, 0] > 99)
    data = load("binary.npz", tmp_path)
    assert (data.shape, data.levels, data.binarization, data.labels) == ((1, 4, 5), 2, "static", None)
    assert np.array_equal(data.images("test")[:, 0].numpy(), COLOR[8:, 0] > 99)


@pytest.mark.parametrize(
    ("stored", "shape"),
    [((12, 8, 8, 3), (3, 8, 8)), ((12, 6, 5, 1), (1, 6, 5)), ((12, 5, 5, 5), (5, 5, 5)), ((12, 3, 3, 3), (3, 3, 3)),
     ((12, 3, 8, 5), (3, 8, 5)), ((12, 1, 4, 4), (1, 4, 4)), ((12, 2, 8, 8), (2, 8, 8)), ((12, 9, 5, 7), (9, 5, 7))],
)  # fmt: skip
def test_channels_last_is_told_by_the_sizes(tmp_path: Path, stored: tuple[int, ...], shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, stored, dtype=np.uint8)
    np.savez(tmp_path / "own.npz", train=array, test=array)
    data = load("own.npz", tmp_path)
    assert data.shape == shape
    expected = array if stored[1:] == shape else np.moveaxis(array, -1, 1)
    assert np.array_equal(data.images("test").numpy(), expected)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train": np.zeros((12, 3, 8, 3), np.uint8), "test": COLOR}, r"train of shape .* may be \(N, C, H, W\) or"),
        ({"train": np.zeros((12, 8, 8, 2), np.uint8), "test": COLOR}, r"as 2 are fewer .* store \(N, C, H, W\)"),
        ({"train": np.zeros((12, 8, 9, 5), np.uint8), "test": COLOR}, "as 5 are fewer than its other sides"),
        ({"train": np.zeros((12, 9, 8, 7), np.uint8), "test": COLOR}, "as 7 are fewer than its other sides"),
        ({"train": np.full((3, 4, 5), 0.3), "test": np.zeros((3, 4, 5))}, "train .* has the value 0.3"),
        ({"train": np.zeros((3, 4, 5)), "test": COLOR}, "differ in their types: train is float64, test is uint8"),
        ({"train": COLOR > 99, "test": COLOR}, "differ in their types: train is bool, test is uint8; store them alike"),
        ({"train": COLOR.reshape(12, -1), "test": COLOR}, r"must have the layout .* not \(12, 60\)"),
        ({"train": COLOR[:, :, 1:], "test": COLOR}, "differ in the shape"),
        ({"train": np.array([{}], dtype=object), "test": COLOR}, "holds Python objects, which are not loaded"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataCorruptError, match=message):
        load("own.npz", tmp_path)


def test_arrays_without_test_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", train=COLOR)
    with pytest.raises(DataNotFoundError, match="has no test images; it should have the arrays"):
        load("own.npz", tmp_path)


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ([0, 0, 0, 0, 1, 2, 2], [0, 4, 5, 1, 6, 2, 3]),  # class after class: dealt out, whatever their sizes
        ([2, 2, 0, 0, 1, 1, 1], [0, 2, 4, 1, 3, 5, 6]),  # in any order of the classes
        ([0, 1, 0, 0, 1, 2, 2], [0, 1, 2, 3, 4, 5, 6]),  # mixed by their owner: left alone
        ([1, 1, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_sorted_classes_are_dealt_out(tmp_path: Path, labels: list[int], order: list[int]) -> None:
    pixels = np.arange(7 * 6, dtype=np.uint8).reshape(7, 2, 3)
    path = tmp_path / "own.npz"
    splits = {split: pixels for split in ("train", "valid", "test")}
    np.savez(path, **splits, **{f"labels_{split}": np.array(labels) for split in splits})
    data = load(str(path))
    for split in splits:
        assert np.array_equal(data.images(split).numpy()[:, 0], pixels[order])
        assert data.labels[split].tolist() == [labels[i] for i in order]
