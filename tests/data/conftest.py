"""Small files in the layout of the public ones, and registry entries that expect exactly them."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vi_flows.data import mnist, omniglot, registry
from vi_flows.data.sources import CACHE_VARIABLE, DATA_VARIABLE

COUNTS = (9, 4, 5)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


def amat(array: np.ndarray) -> bytes:
    return "".join(" ".join(map(str, row)) + "\n" for row in array).encode()


def drawing(character: int, drawer: int) -> np.ndarray:
    """White paper with one black vertical bar high up on the left, whose length tells the character."""
    paper = np.ones((105, 105), dtype=bool)
    paper[10 : 30 + 5 * character, 15 : 20 + drawer] = False
    return paper


def archive(top: str, characters: range, compression: int = zipfile.ZIP_DEFLATED, junk: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as members:
        order = [(character, drawer) for character in characters for drawer in range(1, 21)]
        for character, drawer in reversed(order) if junk else order:
            png = io.BytesIO()
            Image.fromarray(drawing(character, drawer)).save(png, "PNG", optimize=junk)
            members.writestr(
                f"{top}/Alphabet/character{character:02d}/{character:04d}_{drawer:02d}.png", png.getvalue()
            )
        if junk:
            members.writestr(f"__MACOSX/{top}/Alphabet/._0001_01.png", b"resource fork")
            members.writestr(f"{top}/", b"")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No test reads or writes the user's folders; only those marked so see the real data."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    if "real_root" not in request.fixturenames:
        monkeypatch.delenv(DATA_VARIABLE, raising=False)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Synthetic twins of every set with files: ``contents`` by path, ``images`` by set, ``root``, ``write``."""
    rng = np.random.default_rng(3)
    monkeypatch.setattr(mnist, "_VALID", COUNTS[1])
    monkeypatch.setattr(omniglot, "_VALID", COUNTS[1])
    contents: dict[str, bytes] = {}
    images: dict[str, dict[str, np.ndarray]] = {}

    def expect(name: str, counts: tuple[int, int, int], files: dict[str, bytes]) -> None:
        entry = registry.REGISTRY[name]
        contents.update(files)
        replaced = []
        for file, (path, content) in zip(entry.files, files.items(), strict=True):
            algorithm = file.checksum.partition(":")[0] if file.checksum else None
            known = {"sha256-of-images": omniglot.images_sha256} | {
                which: lambda data, which=which: hashlib.new(which, data).hexdigest() for which in ("md5", "sha1")
            }
            checksum = f"{algorithm}:{known[algorithm](content)}" if algorithm else None
            size = None if file.size is None else len(content)
            assert path in file.paths
            replaced.append(dataclasses.replace(file, checksum=checksum, size=size, served_checksum=None, urls=()))
        small = dataclasses.replace(entry, counts=counts, files=tuple(replaced), sha256=None)
        monkeypatch.setitem(registry.REGISTRY, name, small)

    binary = {
        split: rng.integers(0, 2, (count, 784), dtype=np.uint8)
        for split, count in zip(("train", "valid", "test"), COUNTS, strict=True)
    }
    images["binarized_mnist"] = binary
    text = {f"BinarizedMNIST/binarized_mnist_{split}.amat": amat(array) for split, array in binary.items()}
    expect("binarized_mnist", COUNTS, text)

    train, test = (
        rng.integers(0, 256, (count, 28, 28), dtype=np.uint8) for count in (COUNTS[0] + COUNTS[1], COUNTS[2])
    )
    labels = {count: rng.integers(0, 10, count, dtype=np.uint8) for count in (len(train), len(test))}
    images["mnist"] = {"train+valid": train.reshape(-1, 784), "test": test.reshape(-1, 784)}
    named = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    arrays = (train, labels[len(train)], test, labels[len(test)])
    expect("mnist", COUNTS, {f"MNIST/raw/{n}-ubyte": idx(a) for n, a in zip(named, arrays, strict=True)})

    zips = {
        "background": archive("images_background", range(1, 3)),
        "evaluation": archive("images_evaluation", range(3, 4)),
    }
    expect("omniglot28", (41, 4, 15), {f"omniglot-py/images_{part}.zip": data for part, data in zips.items()})

    grey = {key: rng.random((784, count)) for key, count in (("data", COUNTS[0] + COUNTS[1]), ("testdata", COUNTS[2]))}
    images["chardata"] = grey
    expect("chardata", COUNTS, {"OMNIGLOT/chardata.mat": matlab(grey)})

    root = tmp_path / "root"

    def write(name: str, compress: bool = False, change: Callable[[bytes], bytes] = bytes) -> list[Path]:
        written = []
        for file in registry.REGISTRY[name].files:
            path = root / (file.name + (".gz" if compress else ""))
            path.parent.mkdir(parents=True, exist_ok=True)
            content = change(contents[file.name])
            path.write_bytes(gzip.compress(content, 1) if compress else content)
            written.append(path)
        return written

    return SimpleNamespace(contents=contents, images=images, root=root, write=write, arrays=arrays)


def matlab(matrices: dict[str, np.ndarray]) -> bytes:
    from scipy.io import savemat

    alphabets = {
        f"{'test' if key == 'testdata' else ''}target": np.eye(50)[:, : value.shape[1]]
        for key, value in matrices.items()
    }
    buffer = io.BytesIO()
    savemat(buffer, matrices | alphabets, do_compression=True)
    return buffer.getvalue()


@pytest.fixture
def zipped() -> Callable[..., bytes]:
    return archive


@pytest.fixture
def drawn() -> Callable[[int, int], np.ndarray]:
    return drawing
