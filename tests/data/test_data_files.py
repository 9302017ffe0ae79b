"""Finding, verifying, parsing and downloading, on synthetic twins of the public files."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.data.damage import flip
from vi_flows.data import DataCorruptError, DataNotFoundError, load, registry
from vi_flows.data.matlab import load_matrices
from vi_flows.data.mnist import parse_amat, parse_idx
from vi_flows.data.omniglot import images_sha256, resize

WITH_FILES = ["binarized_mnist", "mnist", "omniglot28", "chardata"]


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
def test_static_mnist_is_the_text(tiny: SimpleNamespace, compress: bool) -> None:
    tiny.write("binarized_mnist", compress)
    data = load("binarized_mnist", tiny.root)
    for split, array in tiny.images["binarized_mnist"].items():
        assert np.array_equal(getattr(data, split).numpy(), array)
    assert (data.levels, data.binarization, data.labels) == (2, "static", None)
    assert "binarized_mnist_valid.amat" in data.source


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
def test_mnist_is_split_at_the_end_of_the_training_images(tiny: SimpleNamespace, compress: bool) -> None:
    tiny.write("mnist", compress)
    data = load("mnist", tiny.root)
    assert np.array_equal(data.pixels("train+valid").numpy(), tiny.images["mnist"]["train+valid"])
    assert np.array_equal(data.test.numpy(), tiny.images["mnist"]["test"])
    assert [len(part) for part in data.split("clean")] == [9, 4, 5]
    labels = torch.cat([data.labels["train"], data.labels["valid"]])
    assert (labels.tolist(), data.labels["test"].tolist()) == (tiny.arrays[1].tolist(), tiny.arrays[3].tolist())
    assert labels.dtype == torch.int64


def test_omniglot28_splits_by_drawer_and_keeps_strokes_bright_and_upright(
    tiny: SimpleNamespace, drawn: Callable[[int, int], np.ndarray]
) -> None:
    tiny.write("omniglot28")
    data = load("omniglot28", tiny.root)
    expected = [resize(drawn(character, drawer)) for character in (1, 2, 3) for drawer in range(16, 21)]
    assert np.array_equal(data.images("test")[:, 0].numpy(), np.stack(expected))
    assert data.labels["test"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    first = data.images("test")[0, 0]
    assert first[4, 7] == 255  # the bar, high up on the left
    assert first[7, 20] == 0
    assert first[20, 7] == 0
    everything = {tuple(row) for row in data.pixels("train+valid").tolist()}
    assert everything == {
        tuple(resize(drawn(character, drawer)).reshape(-1).tolist())
        for character in (1, 2, 3)
        for drawer in range(1, 16)
    }
    assert len(data.valid) == 4


def test_chardata_is_turned_to_row_major(tiny: SimpleNamespace) -> None:
    tiny.write("chardata")
    data = load("chardata", tiny.root)
    columns = tiny.images["chardata"]["testdata"].T.reshape(-1, 28, 28)
    for row, column in ((3, 11), (27, 0)):
        grey = data.images("test")[:, 0, row, column].numpy() / 255
        np.testing.assert_allclose(grey, columns[:, column, row], atol=0.5 / 255 + 1e-9)
    assert data.labels["test"].tolist() == [0, 1, 2, 3, 4]
    expected = {
        tuple(np.rint(x.T.reshape(-1) * 255).astype(int)) for x in tiny.images["chardata"]["data"].T.reshape(-1, 28, 28)
    }
    train = data.pixels("train+valid")
    assert {tuple(row) for row in train.tolist()} == expected
    labels = torch.cat([data.labels["train"], data.labels["valid"]])
    originals = np.rint(tiny.images["chardata"]["data"].T.reshape(-1, 28, 28).transpose(0, 2, 1).reshape(-1, 784) * 255)
    assert np.array_equal(originals[labels.numpy()], train.numpy())  # the synthetic label of an image is its place


@pytest.mark.parametrize("place", ["omniglot-py/chardata.mat", "chardata.mat"])
def test_chardata_is_found_in_other_places(tiny: SimpleNamespace, place: str) -> None:
    (path,) = tiny.write("chardata")
    target = tiny.root / place
    target.parent.mkdir(exist_ok=True)
    path.rename(target)
    assert load("chardata", tiny.root).source == str(target)


def test_chardata_without_labels(tiny: SimpleNamespace) -> None:
    from scipy.io import savemat

    (path,) = tiny.write("chardata")
    savemat(path, tiny.images["chardata"])
    assert load("chardata", tiny.root).labels is None


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        ({"data": np.zeros((784, 13))}, "without testdata"),
        ({"data": np.zeros((784, 13)), "testdata": np.zeros((5, 784))}, r"testdata is float64 \(5, 784\) instead of"),
        ({"data": np.full((784, 13), 2.0), "testdata": np.zeros((784, 5))}, "outside"),
        ({"data": np.full((784, 13), np.nan), "testdata": np.zeros((784, 5))}, "outside"),
        ({"data": np.zeros((784, 14)), "testdata": np.zeros((784, 5))}, r"\(10, 4, 5\) images"),
    ],
)
def test_chardata_has_no_published_checksum_but_its_form_is_checked(
    tiny: SimpleNamespace, matrices: dict[str, np.ndarray], message: str
) -> None:
    from scipy.io import savemat

    (path,) = tiny.write("chardata")
    savemat(path, matrices)
    with pytest.raises(DataCorruptError, match=message):
        load("chardata", tiny.root)
    path.write_bytes(b"no MATLAB file")
    with pytest.raises(DataCorruptError, match=r"not a readable MATLAB file.*chardata\.mat"):
        load("chardata", tiny.root)


@pytest.mark.parametrize("name", WITH_FILES)
def test_missing_files_are_named_with_places_origin_and_command(tiny: SimpleNamespace, name: str) -> None:
    home = "http://localhost/home/file"
    entry = registry.REGISTRY[name]
    files = tuple(dataclasses.replace(file, urls=(home,)) for file in entry.files)
    registry.REGISTRY[name] = dataclasses.replace(entry, files=files)  # undone with the fixture's own replacement
    with pytest.raises(DataNotFoundError) as caught:
        load(name, tiny.root)
    message = str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    for file in entry.files:
        for path in file.paths:
            assert str(tiny.root / path) + "\n" in message
            assert str(tiny.root / path) + ".gz\n" in message
    assert home in message
    assert "given as the data root, a folder that does not exist" in message
    if name == "chardata":
        assert message.endswith(
            f"No checksum of it is published: fetch it yourself, and put it at {tiny.root}/OMNIGLOT/chardata.mat"
        )
    else:
        assert message.endswith(f"vi-flows data download {name} --data-root {tiny.root}")


def test_only_what_is_missing_is_named(tiny: SimpleNamespace) -> None:
    paths = tiny.write("mnist")
    paths[2].unlink()
    with pytest.raises(DataNotFoundError, match="missing: MNIST/raw/t10k-images-idx3-ubyte\n") as caught:
        load("mnist", tiny.root)
    assert "train-images" not in str(caught.value)


def test_the_variable_names_the_root_and_an_argument_overrides_it(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write("mnist")
    monkeypatch.setenv("VI_FLOWS_DATA", str(tiny.root))
    assert len(load("mnist").test) == 5
    with pytest.raises(DataNotFoundError):
        load("mnist", tmp_path / "elsewhere")
    monkeypatch.setenv("VI_FLOWS_DATA", str(tmp_path / "elsewhere"))
    assert len(load("mnist", str(tiny.root)).test) == 5
    with pytest.raises(DataNotFoundError, match=r"(?s)from VI_FLOWS_DATA.*download mnist$"):
        load("mnist")


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (flip, "its content is not what was published"),
        (lambda content: content[:-7], "shorter than it should be"),
        (lambda content: content + b"0", "longer than it should be"),
        (lambda content: b"", "shorter than it should be"),
    ],
    ids=["flipped", "truncated", "longer", "empty"],
)
@pytest.mark.parametrize("name", ["binarized_mnist", "mnist"])
def test_wrong_content_is_refused_with_both_checksums(
    tiny: SimpleNamespace, name: str, change: Callable[[bytes], bytes], why: str, compress: bool
) -> None:
    import hashlib

    path = tiny.write(name, compress, change)[0]
    file = registry.REGISTRY[name].files[0]
    with pytest.raises(DataCorruptError, match=why) as caught:
        load(name, tiny.root)
    message = str(caught.value)
    content = change(tiny.contents[file.name])
    algorithm = file.checksum.partition(":")[0]
    assert str(path) in message
    assert f"expected {file.checksum}, {file.size} bytes" in message
    assert f"found    {algorithm}:{hashlib.new(algorithm, content).hexdigest()}, {len(content)} bytes" in message


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], flip, lambda data: b"plain text"])
def test_damaged_compression_is_refused(tiny: SimpleNamespace, damage: Callable[[bytes], bytes]) -> None:
    path = tiny.write("binarized_mnist", compress=True)[1]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataCorruptError, match=r"decompression failed|not what was published") as caught:
        load("binarized_mnist", tiny.root)
    assert registry.REGISTRY["binarized_mnist"].files[1].checksum in str(caught.value)


def test_nothing_is_cached_of_a_corrupt_set(tiny: SimpleNamespace, tmp_path: Path) -> None:
    tiny.write("binarized_mnist", change=flip)
    with pytest.raises(DataCorruptError):
        load("binarized_mnist", tiny.root)
    assert not list((tmp_path / "cache").rglob("*.npz"))


def test_omniglot_is_verified_by_its_images_not_its_zip(
    tiny: SimpleNamespace, zipped: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tiny.write("omniglot28")[0]
    before = load("omniglot28", tiny.root)
    rezipped = zipped("images_background", range(1, 3), compression=0, junk=True)
    assert rezipped != path.read_bytes()
    path.write_bytes(rezipped)
    assert load("omniglot28", tiny.root).sha256 == before.sha256
    other = zipped("images_background", range(2, 4))
    path.write_bytes(other)
    with pytest.raises(DataCorruptError, match=f"found    sha256-of-images:{images_sha256(other)}"):
        load("omniglot28", tiny.root)


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: data[:900] + bytes(300) + data[1200:]]
)
def test_damaged_zip_is_refused(tiny: SimpleNamespace, damage: Callable[[bytes], bytes]) -> None:
    path = tiny.write("omniglot28")[1]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataCorruptError, match=r"not a readable zip archive|can't be read") as caught:
        load("omniglot28", tiny.root)
    assert registry.REGISTRY["omniglot28"].files[1].checksum in str(caught.value)
    assert "found    no checksum" in str(caught.value)


@pytest.mark.parametrize("text", [b"0 1 2\n", b"0 1\n1\n", b"0 1 1 ", b"0\t1 1\n", b"1 1\n0 1 1\n0\n", b"01 1 0"])
def test_other_texts_are_not_parsed(text: bytes) -> None:
    with pytest.raises(DataCorruptError):
        parse_amat(text, 3)


def test_amat_text() -> None:
    assert parse_amat(b"0 1 1\n1 0 0\n", 3).tolist() == [[0, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x0d\x01\0\0\0\x01\0", b"\0\0\x08\x02\0\0\0\x01", b"\0\0\x08\x01\0\0\0\x02\0"]
)
def test_other_idx_files_are_not_parsed(content: bytes) -> None:
    with pytest.raises(DataCorruptError):
        parse_idx(content)


def test_a_read_only_root_is_only_read(tiny: SimpleNamespace) -> None:
    def tree() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in tiny.root.rglob("*"))

    for name in WITH_FILES:
        for path in tiny.write(name, compress=name == "mnist"):
            path.chmod(0o444)
    folders = [tiny.root, *(path for path in tiny.root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    before = tree()
    try:
        for name in WITH_FILES:
            assert load(name, tiny.root).sha256 == load(name, tiny.root).sha256
        assert tree() == before
    finally:
        for folder in folders:
            folder.chmod(0o755)


@pytest.mark.parametrize("packed", [True, False])
def test_matrices_of_matlab_files_are_those_that_were_saved(packed: bool) -> None:
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    kinds = ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"]
    saved = {f"a{kind.strip('?') or 'b'}": (100 * rng.random((5, 7))).astype(kind) for kind in kinds}
    saved |= {"cube": rng.random((2, 3, 4)), "one": np.ones((1, 1)), "none": np.zeros((0, 4)), "n": np.eye(3) * 5}
    others = {"text": "words", "z": np.ones(3) * 1j, "cell": np.array([1, "a"], object), "struct": {"a": 1.0}}
    file = io.BytesIO()
    savemat(file, saved | others, do_compression=packed)
    found = load_matrices(file.getvalue(), list(saved), 1 << 20)
    assert found.keys() == saved.keys()
    for name, array in saved.items():
        assert np.array_equal(found[name], array)
        assert found[name].dtype == (np.uint8 if array.dtype == bool else array.dtype)
    for name in others:
        with pytest.raises(DataCorruptError, match=f"whose {name} is no array of real numbers"):
            load_matrices(file.getvalue(), [name], 1 << 20)
    file = io.BytesIO()
    savemat(file, {"a": np.ones((2, 2))}, format="4")
    with pytest.raises(DataCorruptError, match="not a readable MATLAB file of version 5"):
        load_matrices(file.getvalue(), ["a"], 1 << 20)
