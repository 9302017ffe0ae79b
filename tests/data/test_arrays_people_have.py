"""Arrays as people have them: read to the number, or refused by the name of file and array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vi_flows.data import DataCorruptError, DataNotFoundError, load

RNG = np.random.default_rng(1)

IMAGES = RNG.integers(0, 256, (12, 5, 6, 3), dtype=np.uint8)
BINARY = RNG.integers(0, 2, (20, 36), dtype=np.uint8)


def saved_arrays(path: Path, **arrays: np.ndarray) -> str:
    np.savez_compressed(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    ("array", "shape", "levels", "expected"),
    [
        (BINARY, (1, 6, 6), 2, BINARY),
        (BINARY.astype(bool), (1, 6, 6), 2, BINARY),
        (BINARY.astype(np.float32), (1, 6, 6), 2, BINARY),
        (BINARY.astype(np.int64).reshape(20, 9, 4), (1, 9, 4), 2, BINARY),
        (IMAGES[..., 0], (1, 5, 6), 256, IMAGES[..., 0]),
        (np.asfortranarray(IMAGES[..., 0]), (1, 5, 6), 256, IMAGES[..., 0]),
        (IMAGES[..., 0] / 255, (1, 5, 6), 256, IMAGES[..., 0]),
        ((IMAGES[..., 0] / 255).astype(np.float32), (1, 5, 6), 256, IMAGES[..., 0]),
        ((IMAGES[..., 0] / 255).astype(np.float16), (1, 5, 6), 256, IMAGES[..., 0]),
        (IMAGES[..., 0].astype(np.float64), (1, 5, 6), 256, IMAGES[..., 0]),
        (IMAGES[..., 0].astype(">i4"), (1, 5, 6), 256, IMAGES[..., 0]),
        (IMAGES, (3, 5, 6), 256, IMAGES.transpose(0, 3, 1, 2)),
        (IMAGES.transpose(0, 3, 1, 2), (3, 5, 6), 256, IMAGES.transpose(0, 3, 1, 2)),
        (IMAGES[..., :1], (1, 5, 6), 256, IMAGES[..., 0]),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else "",
)
def test_an_array_of_all_images(
    tmp_path: Path, array: np.ndarray, shape: tuple[int, ...], levels: int, expected: np.ndarray
) -> None:
    np.save(tmp_path / "mine.npy", array)
    np.savez(tmp_path / "mine.npz", array)
    data = load("mine.npy", tmp_path)
    assert (data.name, data.shape, data.levels) == ("mine", shape, levels)
    assert data.binarization == ("static" if levels == 2 else "dynamic")
    tenth = len(array) // 10
    assert [len(part) for part in data.split("clean")] == [len(array) - 2 * tenth, tenth, tenth]
    everything = np.concatenate([part.numpy() for part in data.split("clean")])
    assert sorted(map(tuple, everything)) == sorted(map(tuple, expected.reshape(len(expected), -1)))
    assert load("mine.npz", tmp_path).sha256 == load(str(tmp_path / "mine.npy")).sha256 == data.sha256


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((12, 4, 4), 256), "values from 256 to 256"),
        (np.full((12, 4, 4), -1), "values from -1 to -1"),
        (np.full((12, 4, 4), 0.3), "has the value 0.3, which is no grey level"),
        (np.full((12, 4, 4), 1.5), "has the value 1.5, which is no grey level"),
        (np.full((12, 4, 4), np.nan), "values from nan to nan"),
        (np.full((12, 4, 4), np.inf), "values from inf to inf"),
        (np.full((12, 4, 4), 1j), "must be uint8 or bool.*not complex128"),
        (np.full((12, 4, 4), "a"), "must be uint8 or bool.*not <U1"),
        (np.full((12, 4, 4), None), "holds Python objects, which are not loaded"),
        (np.zeros((12, 4, 4), [("a", "u1")]), "it holds .*'a'"),
        (np.zeros((12, 60)), r"layout .* not \(12, 60\)"),
        (np.zeros((12, 2, 3, 4, 5)), "layout"),
        (np.zeros(12), "layout"),
        (np.zeros(()), "layout"),
        (np.zeros((12, 0, 4)), "without a pixel"),
        (np.zeros((12, 3, 8, 3)), r"may be \(N, C, H, W\) or \(N, H, W, C\)"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "mine.npy", array, allow_pickle=True)
    with pytest.raises(DataCorruptError, match=message) as refusal:
        load("mine.npy", tmp_path)
    assert "mine.npy" in str(refusal.value)
    np.save(tmp_path / "few.npy", np.zeros((9, 4, 4)))
    with pytest.raises(DataNotFoundError, match="9 images and no splits; give at least 10"):
        load("few.npy", tmp_path)


def test_arrays_by_the_names_others_give_them(tmp_path: Path) -> None:
    rows, words = IMAGES[..., 0], np.array(["cat", "dog", "ant"])
    keras = saved_arrays(
        tmp_path / "k.npz", x_train=rows[:9], y_train=np.arange(9) % 3, x_test=rows[9:], y_test=np.arange(3)
    )
    medical = saved_arrays(
        tmp_path / "m.npz", train_images=rows[:6], val_images=rows[6:9], test_images=rows[9:],
        train_labels=np.tile(words, 2)[:, None], val_labels=words[:, None], test_labels=words[::-1, None],
    )  # fmt: skip
    assert np.array_equal(load(keras).images("test")[:, 0].numpy(), rows[9:])
    assert load(keras).labels["test"].tolist() == [0, 1, 2]
    data = load(medical)
    assert [len(part) for part in data.split("clean")] == [6, 3, 3]
    assert [data.labels[name].tolist() for name in ("train", "valid", "test")] == [[1, 2, 0] * 2, [1, 2, 0], [0, 2, 1]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels_train": np.zeros(8), "labels_test": np.zeros(2)}, r"labels of shape \(8,\) for 9 train images"),
        ({"labels_train": np.zeros(9)}, "labels for train and images for train, test"),
        ({"labels_train": np.full(9, np.nan), "labels_test": np.zeros(3)}, "labels of train must be whole numbers"),
        ({"labels_train": np.full(9, 0.5), "labels_test": np.zeros(3)}, "labels of train must be whole numbers"),
        ({"labels_train": np.full(9, "a"), "labels_test": np.zeros(3)}, "strings in one split and numbers in another"),
        (
            {"labels_train": np.full(9, b"\xff"), "labels_test": np.full(3, b"a")},
            "labels of train are bytes that are no",
        ),
        ({"labels_train": np.eye(9), "labels_test": np.zeros(3)}, r"labels of shape \(9, 9\)"),
        ({"labels": np.arange(9)}, "the labels labels belong to no split; name them labels_train"),
        ({"y": np.arange(9)}, "the labels y belong to no split; name them labels_train"),
        ({"more": IMAGES[..., 0]}, "the array more belongs to no split"),
        ({"x_train": IMAGES[..., 0]}, "both train and x_train"),
    ],
)
def test_arrays_and_labels_that_do_not_belong_together(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    path = saved_arrays(tmp_path / "own.npz", train=IMAGES[:9, ..., 0], test=IMAGES[9:, ..., 0], **arrays)
    with pytest.raises(DataCorruptError, match=message):
        load(path)


def test_labels_in_bytes_are_read_as_utf_8(tmp_path: Path) -> None:
    words = np.array([word.encode() for word in ("\u00e9t\u00e9", "hiver", "\u00e9t\u00e9")])
    path = saved_arrays(
        tmp_path / "own.npz", train=IMAGES[:9, ..., 0], test=IMAGES[9:, ..., 0],
        labels_train=np.tile(words, 3), labels_test=words,
    )  # fmt: skip
    assert load(path).labels["test"].tolist() == [1, 0, 1]


def test_an_array_without_validation_images_is_as_none(tmp_path: Path) -> None:
    splits = {"train": IMAGES[:9, ..., 0], "test": IMAGES[9:, ..., 0]}
    labels = {"labels_train": np.arange(9) % 2, "labels_test": np.arange(3) % 2}
    plain = load(saved_arrays(tmp_path / "plain.npz", **splits, **labels))
    none = {"valid": IMAGES[:0, ..., 0], "labels_valid": np.arange(0)}
    found = load(saved_arrays(tmp_path / "none.npz", **splits, **labels, **none))
    for name in ("train", "valid", "test"):
        assert np.array_equal(found.images(name).numpy(), plain.images(name).numpy())
        assert found.labels[name].tolist() == plain.labels[name].tolist()


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (np.uint8([0, 1]), np.uint8([0, 255])), (np.uint8([0, 255]), np.uint8([0, 1])),
        (np.int64([0, 1]), np.uint8([0, 7])), (np.float32([0, 1]), np.float32([0, 255])),
    ],
)  # fmt: skip
def test_splits_of_different_scales(tmp_path: Path, train: np.ndarray, test: np.ndarray) -> None:
    """Zeros and ones beside grey levels would be black and nearly black."""
    arrays = {"train": np.tile(train, (12, 4, 2)), "test": np.tile(test, (5, 4, 2))}
    with pytest.raises(DataCorruptError, match=r"has only 0 and 1, and .* goes up to (255|7): store all splits alike"):
        load(saved_arrays(tmp_path / "own.npz", **arrays))
    one = {**arrays, "test": np.zeros_like(arrays["test"])}  # a split of one level is of any scale
    assert load(saved_arrays(tmp_path / "one.npz", **one)).images("test").max() == 0


@pytest.mark.parametrize("name", ["labels", "y"])
def test_labels_of_a_single_array(tmp_path: Path, name: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    for labels in (np.arange(40) % 3, (np.arange(40) % 3)[:, None]):
        found = load(saved_arrays(tmp_path / "own.npz", images=images, **{name: labels}))
        together = np.concatenate([found.labels[split].numpy() for split in ("train", "valid", "test")])
        assert sorted(together.tolist()) == sorted((np.arange(40) % 3).tolist())
        for split in ("train", "valid", "test"):
            places = [int((images == image[0].numpy()).all((1, 2)).nonzero()[0][0]) for image in found.images(split)]
            assert found.labels[split].tolist() == [place % 3 for place in places]
    with pytest.raises(DataCorruptError, match="has both labels and y"):
        load(saved_arrays(tmp_path / "both.npz", images=images, labels=labels, y=labels))
