from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro

from vi_flows.cli.data import DataCheck, DataDownload, DataList
from vi_flows.data import names, registry


def test_list_shows_every_set_its_files_and_its_origin(
    tiny: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write("mnist", compress=True)[0].unlink()
    assert DataList(data_root=tiny.root).run() == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names())
    assert "3 of 4 found" in out
    assert "0 of 3 found" in out
    assert str(tiny.root / "MNIST/raw/t10k-images-idx3-ubyte.gz") in out
    assert "missing: MNIST/raw/train-images-idx3-ubyte" in out
    assert "licence  MIT" in out
    assert "Larochelle and Murray" in out


def test_list_shows_public_homes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DataList(data_root=tmp_path).run()
    out = capsys.readouterr().out
    assert "https://ossci-datasets.s3.amazonaws.com/mnist" in out
    assert "https://raw.githubusercontent.com/brendenlake/omniglot/master/python" in out


def test_check_of_everything_passes_over_what_was_never_fetched(
    tiny: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write("binarized_mnist")
    assert DataCheck(data_root=tiny.root).run() == 0
    out = capsys.readouterr().out
    assert "not found" in out
    assert registry.find("binarized_mnist").read(registry.resolve_root(tiny.root)).sha256 in out
    assert "07e808ee73874fd183f2c5815ff64f4e403cff278aed855d7f7cec83dcdd036f" in out


def test_check_tells_corrupt_missing_incomplete_and_different(
    tiny: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write("binarized_mnist")[1].write_bytes(b"0")
    assert DataCheck(data_root=tiny.root).run() == 1
    output = capsys.readouterr()
    assert "CORRUPT" in output.out
    assert "expected sha1:" in output.err
    assert DataCheck("mnist", tiny.root).run() == 1
    assert "vi-flows data download mnist" in capsys.readouterr().err
    tiny.write("mnist")[3].unlink()
    assert DataCheck("all", tiny.root).run() == 1
    assert "missing: MNIST/raw/t10k-labels-idx1-ubyte" in capsys.readouterr().err
    tiny.write("mnist")
    registry.REGISTRY["mnist"] = dataclasses.replace(registry.REGISTRY["mnist"], sha256="0" * 64)
    assert DataCheck("mnist", tiny.root).run() == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_check_sees_a_corrupt_file_behind_a_good_cached_copy(
    tiny: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    path = tiny.write("binarized_mnist")[0]
    registry.load("binarized_mnist", tiny.root)
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert DataCheck("binarized_mnist", tiny.root).run() == 1
    assert "CORRUPT" in capsys.readouterr().out


def test_download_reports_and_fails_without_a_home(tiny: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert DataDownload("digits", tiny.root).run() == 0
    assert "part of an installed package" in capsys.readouterr().out
    tiny.write("mnist")
    assert DataDownload("mnist", tiny.root).run() == 0
    assert "nothing to download, it is intact" in capsys.readouterr().out
    assert DataDownload("all", tiny.root).run() == 1
    output = capsys.readouterr()
    assert "chardata: OMNIGLOT/chardata.mat could not be downloaded" in output.err
    assert "mnist: nothing to download" in output.out


@pytest.mark.parametrize("command", [DataCheck, DataDownload])
def test_unknown_names_exit_with_2(command: type[DataCheck | DataDownload], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("cifar").run() == 2
    assert (
        "choose one of digits, binarized_mnist, mnist, omniglot28, chardata, cifar10, or all" in capsys.readouterr().err
    )


def test_command_lines(tmp_path: Path) -> None:
    assert tyro.cli(DataCheck, args=["mnist", "--data-root", str(tmp_path)]) == DataCheck("mnist", tmp_path)
    assert tyro.cli(DataCheck, args=[]) == DataCheck("all", None)
    assert tyro.cli(DataDownload, args=["mnist"]) == DataDownload("mnist", None)
    assert tyro.cli(DataList, args=[]) == DataList(None)
