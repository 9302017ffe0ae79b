"""Downloads from a home on this machine: verified, or refused and nothing left behind."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.data.damage import flip
from vi_flows.data import DataNotFoundError, load, registry


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the URL it is served at."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "home"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def serve(home: tuple[Path, str], name: str, contents: dict[str, bytes], compress: bool) -> None:
    """Put a set's files at the home, behind a first mirror that does not have them."""
    folder, url = home
    entry = registry.REGISTRY[name]
    files = []
    for file in entry.files:
        served = Path(file.name).name + (".gz" if compress else "")
        (folder / served).write_bytes(gzip.compress(contents[file.name]) if compress else contents[file.name])
        checksum = None if compress or file.digest else file.checksum
        urls = (f"{url}/absent/{served}", f"{url}/{served}")
        files.append(dataclasses.replace(file, urls=urls, served_checksum=checksum))
        if compress or file.digest:
            import hashlib

            md5 = hashlib.md5((folder / served).read_bytes()).hexdigest()
            files[-1] = dataclasses.replace(files[-1], served_checksum=f"md5:{md5}")
    registry.REGISTRY[name] = dataclasses.replace(entry, files=tuple(files))


@pytest.mark.parametrize(("name", "compress"), [("binarized_mnist", False), ("mnist", True), ("omniglot28", False)])
def test_download_takes_the_next_mirror_verifies_and_leaves_no_scraps(
    tiny: SimpleNamespace, home: tuple[Path, str], name: str, compress: bool
) -> None:
    serve(home, name, tiny.contents, compress)
    load(name, tiny.root, download=True)
    suffix = ".gz" if compress else ""
    expected = sorted(file.name + suffix for file in registry.REGISTRY[name].files)
    assert sorted(str(path.relative_to(tiny.root)) for path in tiny.root.rglob("*") if path.is_file()) == expected


def test_a_named_root_is_not_downloaded_to_unless_asked(tiny: SimpleNamespace, home: tuple[Path, str]) -> None:
    serve(home, "mnist", tiny.contents, True)
    with pytest.raises(DataNotFoundError):
        load("mnist", tiny.root)
    assert not tiny.root.exists()


def test_without_a_named_root_the_cache_is_filled_unless_forbidden(
    tiny: SimpleNamespace, home: tuple[Path, str], tmp_path: Path
) -> None:
    serve(home, "mnist", tiny.contents, True)
    with pytest.raises(DataNotFoundError, match=r"(?s)\(the default.*download mnist$"):
        load("mnist", download=False)
    assert load("mnist").source.startswith(str(tmp_path / "cache" / "data" / "MNIST"))
    (home[0] / "train-images-idx3-ubyte.gz").unlink()
    load("mnist")


def test_a_wrong_file_from_a_home_is_refused(tiny: SimpleNamespace, home: tuple[Path, str]) -> None:
    serve(home, "binarized_mnist", tiny.contents, False)
    name = "binarized_mnist_valid.amat"
    (home[0] / name).write_bytes(flip(tiny.contents[f"BinarizedMNIST/{name}"]))
    with pytest.raises(DataNotFoundError, match="does not match the known hash") as caught:
        load("binarized_mnist", tiny.root, download=True)
    assert "missing: BinarizedMNIST/binarized_mnist_valid.amat, " in str(caught.value)
    assert [path.name for path in tiny.root.rglob("*") if path.is_file()] == ["binarized_mnist_train.amat"]


def test_wrong_content_behind_a_right_download_is_refused(tiny: SimpleNamespace, home: tuple[Path, str]) -> None:
    """As when the checksum of a compressed file and that of its content come from different places."""
    serve(home, "mnist", {path: flip(content) for path, content in tiny.contents.items()}, True)
    with pytest.raises(DataNotFoundError, match="its content is not what was published"):
        load("mnist", tiny.root, download=True)
    assert not [path for path in tiny.root.rglob("*") if path.is_file()]


def test_download_replaces_what_is_corrupt_and_nothing_else(tiny: SimpleNamespace, home: tuple[Path, str]) -> None:
    serve(home, "mnist", tiny.contents, True)
    paths = tiny.write("mnist")
    paths[0].write_bytes(b"broken")
    fetched = registry.find("mnist").fetch(registry.resolve_root(tiny.root))
    assert [path.name for path in fetched] == ["train-images-idx3-ubyte.gz"]
    assert not paths[0].exists()
    assert paths[1].exists()
    assert len(load("mnist", tiny.root).train) == 9
    assert registry.find("mnist").fetch(registry.resolve_root(tiny.root)) == []


def test_a_root_that_cannot_be_written_is_an_error_of_the_download(
    tiny: SimpleNamespace, home: tuple[Path, str], tmp_path: Path
) -> None:
    serve(home, "mnist", tiny.contents, True)
    blocked = tmp_path / "a_file"
    blocked.write_text("")
    with pytest.raises(DataNotFoundError, match="could not be downloaded"):
        load("mnist", blocked / "root", download=True)
