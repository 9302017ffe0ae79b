from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vi_flows.data import ImageData, cache, load, registry


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "packed").glob("*"))


@pytest.fixture
def unparsed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a set's files unreadable to the loader, so that only the cached copy can answer."""

    def forbid(name: str) -> None:
        import dataclasses

        def refuse(contents: object) -> None:
            raise AssertionError("parsed again")

        monkeypatch.setitem(registry.REGISTRY, name, dataclasses.replace(registry.REGISTRY[name], build=refuse))

    return forbid


def same(one: ImageData, other: ImageData) -> bool:
    pixels = all((getattr(one, name) == getattr(other, name)).all() for name in ("train", "valid", "test"))
    labels = all((one.labels[name] == other.labels[name]).all() for name in one.labels or {})
    return bool(pixels and labels and (one.labels is None) == (other.labels is None) and one.sha256 == other.sha256)


@pytest.mark.parametrize("name", ["binarized_mnist", "omniglot28", "chardata"])
def test_second_load_reads_the_packed_copy(
    tiny: SimpleNamespace, unparsed: Callable[[str], None], tmp_path: Path, name: str
) -> None:
    tiny.write(name)
    first = load(name, tiny.root)
    assert len(entries(tmp_path)) == 1
    unparsed(name)
    second = load(name, tiny.root)
    assert same(first, second)
    assert (first.source, first.shape, first.levels) == (second.source, second.shape, second.levels)
    second.train[0] = 1  # a tensor of its own, not a read-only view


def test_binary_images_are_kept_as_bits(tiny: SimpleNamespace, tmp_path: Path) -> None:
    tiny.write("binarized_mnist")
    load("binarized_mnist", tiny.root)
    with np.load(entries(tmp_path)[0]) as entry:
        assert entry["train"].shape == (9, 98)


def test_a_changed_source_is_parsed_again(
    tiny: SimpleNamespace, tmp_path: Path, unparsed: Callable[[str], None]
) -> None:
    path = tiny.write("binarized_mnist")[2]
    load("binarized_mnist", tiny.root)
    os.utime(path, ns=(1, 1))
    unparsed("binarized_mnist")
    with pytest.raises(AssertionError, match="parsed again"):
        load("binarized_mnist", tiny.root)


def test_a_new_version_of_the_recipe_is_another_entry(tiny: SimpleNamespace) -> None:
    paths = tiny.write("omniglot28")
    assert cache.entry_path("omniglot28", 1, paths) != cache.entry_path("omniglot28", 2, paths)


def flip_pixels(path: Path) -> None:
    with np.load(path) as entry:
        arrays = dict(entry)
    arrays["test"][0, 0] ^= 1
    np.savez(path, **arrays)


def drop_split(path: Path) -> None:
    with np.load(path) as entry:
        arrays = dict(entry)
    del arrays["valid"]
    np.savez(path, **arrays)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "flipped byte": lambda path: path.write_bytes(path.read_bytes()[:700] + b"~" + path.read_bytes()[701:]),
    "empty": lambda path: path.write_bytes(b""),
    "other pixels": flip_pixels,
    "missing split": drop_split,
    "pickle": lambda path: np.savez(path, sha256=np.array([{}], dtype=object)),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", ["binarized_mnist", "omniglot28"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_made_again(
    tiny: SimpleNamespace, tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.write(name)
    first = load(name, tiny.root)
    (entry,) = entries(tmp_path)
    DAMAGES[damage](entry)
    with caplog.at_level(logging.WARNING):
        assert same(first, load(name, tiny.root))
    assert "made again" in caplog.text
    if damage != "folder":
        caplog.clear()
        assert same(first, load(name, tiny.root))
        assert not caplog.records


def test_an_interrupted_write_leaves_nothing(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write("binarized_mnist")

    def interrupted(stream: object, **arrays: np.ndarray) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load("binarized_mnist", tiny.root)
    assert entries(tmp_path) == []
    load("binarized_mnist", tiny.root)
    assert len(entries(tmp_path)) == 1


def test_half_a_write_of_a_killed_process_is_never_read(tiny: SimpleNamespace, tmp_path: Path) -> None:
    paths = tiny.write("binarized_mnist")
    entry = cache.entry_path("binarized_mnist", 1, paths)
    entry.parent.mkdir(parents=True)
    (entry.parent / f".{entry.stem}-dead.part").write_bytes(b"half")
    assert len(load("binarized_mnist", tiny.root).train) == 9
    assert entry.is_file()


def test_a_cache_that_cannot_be_written_is_done_without(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.write("binarized_mnist")
    blocked = tmp_path / "a_file"
    blocked.write_text("")
    monkeypatch.setenv("VI_FLOWS_CACHE", str(blocked))
    with caplog.at_level(logging.WARNING):
        assert len(load("binarized_mnist", tiny.root).train) == 9
    assert "no cached copy of binarized_mnist is kept" in caplog.text


def test_a_full_disk_is_done_without(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.write("binarized_mnist")

    def full(stream: object, **arrays: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with caplog.at_level(logging.WARNING):
        assert len(load("binarized_mnist", tiny.root).train) == 9
    assert "No space left" in caplog.text
    assert entries(tmp_path) == []


def test_check_reads_the_files_whatever_the_cache_holds(tiny: SimpleNamespace, unparsed: Callable[[str], None]) -> None:
    tiny.write("binarized_mnist")
    load("binarized_mnist", tiny.root)
    unparsed("binarized_mnist")
    with pytest.raises(AssertionError, match="parsed again"):
        registry.find("binarized_mnist").read(registry.resolve_root(tiny.root), use_cache=False)


def test_images_that_differ_from_the_record_are_reported(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import dataclasses

    tiny.write("omniglot28")
    entry = dataclasses.replace(registry.REGISTRY["omniglot28"], sha256="0" * 64)
    monkeypatch.setitem(registry.REGISTRY, "omniglot28", entry)
    for _ in range(2):
        caplog.clear()
        load("omniglot28", tiny.root)
        assert "results may differ" in caplog.text
