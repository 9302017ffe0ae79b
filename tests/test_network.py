"""Nothing reaches the network unless it is asked to, and then listed homes alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vi_flows.data import DataNotFoundError, load, registry
from vi_flows.data.sources import DataRoot, download

WITHOUT_NETWORK = """
import socket, sys
def refuse(*words, **options):
    raise SystemExit("the network was asked for")
for name in ("connect", "connect_ex", "sendto", "bind"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = refuse
import importlib, pkgutil, vi_flows
for module in pkgutil.walk_packages(vi_flows.__path__, "vi_flows."):
    if not module.name.endswith(("__main__", "triton_kernel", "triton_math", "_conv_flow", ".start")):
        importlib.import_module(module.name)
from vi_flows.data import load
assert len(load("digits").train) == 1297
print("quiet", len(sys.modules) > 100)
"""


def test_importing_everything_and_the_default_data_need_no_network() -> None:
    ended = subprocess.run([sys.executable, "-c", WITHOUT_NETWORK], capture_output=True, text=True, check=False)
    assert ended.stdout == "quiet True\n", ended.stderr


def test_the_tests_themselves_cannot_reach_the_network() -> None:
    import socket

    with pytest.raises(RuntimeError, match=r"a test reaches for the network: 192\.0\.2\.1"), socket.socket() as one:
        one.connect(("192.0.2.1", 80))  # an address for documentation, which leads nowhere


def test_downloads_come_from_listed_homes_with_checksums(tmp_path: Path) -> None:
    files = [file for dataset in registry.REGISTRY.values() for file in dataset.files]
    homes = {url.split("/")[2] for file in files for url in file.urls}
    assert homes == {
        "ossci-datasets.s3.amazonaws.com", "storage.googleapis.com", "www.cs.toronto.edu", "raw.githubusercontent.com",
        "github.com",
    }  # fmt: skip
    assert [file.name for file in files if file.checksum is None] == ["OMNIGLOT/chardata.mat"]
    known = [(file.served_checksum or file.checksum or "").partition(":")[0] for file in files]
    assert set(known) <= {"md5", "sha1", ""}  # those that are published
    (without,) = (file for file in files if file.checksum is None)
    with pytest.raises(
        DataNotFoundError, match="no checksum of it is published: fetch it yourself from https://github"
    ):
        download(without, DataRoot(tmp_path, "data root"))
    with pytest.raises(DataNotFoundError, match="no checksum of it is published"):
        load("chardata", tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []
