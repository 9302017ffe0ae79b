"""Nothing runs, leaves its place, grows without bounds or reaches the network because of what a file says."""

from __future__ import annotations

import ast
import contextlib
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from scipy.io import savemat, wavfile

import vi_flows
from vi_flows.data import DataCorruptError, DataNotFoundError
from vi_flows.data.cifar import BATCHES, batches, unpickled
from vi_flows.data.folders import load_path
from vi_flows.data.limits import MOST_MEMBER_BYTES, check_memory
from vi_flows.data.matlab import inflated
from vi_flows.data.mnist import parse_idx
from vi_flows.data.omniglot import chardata, decoded
from vi_flows.data.pictures import decode
from vi_flows.data.sources import SourceFile, read_verified
from vi_flows.data.speech import load_speech, read_wav
from vi_flows.records import Record, RecordError
from vi_flows.training import Run, RunError
from vi_flows.training.checkpoint import CheckpointError, load_tensors

PACKAGE = Path(vi_flows.__file__).parent
REFUSALS = (DataCorruptError, DataNotFoundError, CheckpointError, RecordError, RunError)


# Nothing runs ------------------------------------------------------------------------------------------------------


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.place, "exploded")


def of_file(read: Callable[[Path], object], name: str) -> Callable[[bytes, Path], object]:
    def from_content(content: bytes, folder: Path) -> object:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        return read(folder / name)

    return from_content


def of_content(read: Callable[[bytes], object]) -> Callable[[bytes, Path], object]:
    return lambda content, folder: read(content)


READERS = {
    "npy": of_file(load_path, "a.npy"),
    "npz": of_file(load_path, "a.npz"),
    "zip": of_file(load_path, "a.zip"),
    "image in a folder": of_file(lambda path: load_path(path.parents[1]), "own/train/a.png"),
    "pt": of_file(load_path, "a.pt"),
    "image": of_content(lambda content: decode("a.png", content)),
    "mat": of_content(chardata),
    "idx": of_content(parse_idx),
    "omniglot": of_content(lambda content: list(decoded(content))),
    "batch": of_content(unpickled),
    "tar": of_content(batches),
    "wav": of_content(lambda content: read_wav("a.wav", content)),
    "recordings": of_file(lambda path: load_speech(str(path)), "a.zip"),
    "checkpoint": of_file(load_tensors, "a.safetensors"),
    "record": of_file(Record.read, "a.json"),
    "run": of_file(lambda path: Run.open(path.parent), "run/config.json"),
}


def in_zip(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("train.npy", "train/a.png", "a/0001_01.png", "1_a_0.wav"):
            archive.writestr(name, content)
    return file.getvalue()


def saved(write: Callable[..., object], *words: object, **options: object) -> bytes:
    file = io.BytesIO()
    write(file, *words, **options)
    return file.getvalue()


@pytest.mark.parametrize("name", READERS)
def test_nothing_that_is_read_can_run(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    bomb = Bomb(canary)
    plain = pickle.dumps(bomb)
    pickle.loads(plain)
    assert canary.read_text() == "exploded"  # it would
    canary.unlink()
    objects = np.array([bomb], dtype=object)
    contents = [
        plain, pickle.dumps({"data": bomb, "labels": [1]}), saved(np.save, objects, allow_pickle=True), in_zip(plain),
        in_zip(saved(np.save, objects, allow_pickle=True)), saved(lambda file: torch.save(bomb, file)),
        saved(lambda file: torch.save(bomb, file, _use_new_zipfile_serialization=False)),
        save({"a": torch.ones(1)}, {"state": plain.hex()}), gzip.compress(plain),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n(canary) (w) file\n",
    ]  # fmt: skip
    for content in contents:
        refusal = contextlib.suppress(REFUSALS) if name == "omniglot" else pytest.raises(REFUSALS)  # no image, no error
        with refusal:
            READERS[name](content, tmp_path)
        assert not canary.exists()


FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "marshal.loads", "os.system", "os.popen",
    "torch.load", "torch.jit.load", "torch.hub.load", "yaml.load", "joblib.load", "np.fromfile", "shelve.open",
    "pickle.Unpickler", "runpy.run_path",
}  # fmt: skip
METHODS = {"extractall", "extract"}
ALLOWED = {("autoregressive/made.py", "compile")}


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def dangers(source: str) -> list[str]:
    found = []
    for name, call in calls(ast.parse(source)):
        options = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name == "torch.load" and options.get("weights_only") == "True":
            continue
        if name in FORBIDDEN or name.rpartition(".")[2] in METHODS:
            found.append(name)
        if name == "np.load" and options.get("allow_pickle") != "False":
            found.append("np.load without allow_pickle=False")
        if name.startswith("subprocess.") and "shell" in options:
            found.append(f"{name} by a shell")
    return found


def test_the_package_calls_nothing_that_runs_files() -> None:
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in PACKAGE.rglob("*.py")
        if (names := dangers(path.read_text(encoding="utf-8")))
    }
    assert found == {}
    assert dangers("torch.load(x)\nnp.load(x)\narchive.extractall()\neval('1')\nsubprocess.run('x', shell=True)") == [
        "torch.load", "np.load without allow_pickle=False", "archive.extractall", "eval", "subprocess.run by a shell",
    ]  # fmt: skip


# Nothing leaves its place --------------------------------------------------------------------------------------------


def tar_with(change: Callable[[tarfile.TarInfo], None], name: str = "cifar-10-batches-py/test_batch") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for batch in BATCHES:
            member = tarfile.TarInfo(f"cifar-10-batches-py/{batch}")
            member.size = 4
            if member.name == name:
                change(member)
            archive.addfile(member, io.BytesIO(b"1234"))
    return file.getvalue()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../etc/passwd", "test_batch", "cifar-10-batches-py/test_batch"])
def test_a_tar_archive_gives_plain_files_only(kind: bytes, target: str) -> None:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname, member.size = kind, target, 0

    with pytest.raises(DataCorruptError, match="no plain file"):
        batches(tar_with(change))
    assert batches(tar_with(lambda member: None))["test_batch"] == b"1234"


@pytest.mark.parametrize("name", ["../evil.png", "/tmp/evil.png", "a/../../evil.png", "C:\\evil.png", "..\\evil.png"])
def test_no_zip_archive_writes_or_names_a_place_outside(tmp_path: Path, name: str) -> None:
    before = set(os.listdir(tmp_path.parent))
    for read, suffix in ((load_path, "zip"), (load_path, "npz"), (lambda path: load_speech(str(path)), "zip")):
        path = tmp_path / f"a.{suffix}"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"x")
        with pytest.raises(DataCorruptError, match="leads out of the archive"):
            read(path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.zip", "a.npz"}
    assert set(os.listdir(tmp_path.parent)) == before


# Nothing grows without bounds ----------------------------------------------------------------------------------------


def peak_of(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def npy_header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def claiming(name: str, content: bytes, size: int) -> bytes:
    """An archive whose directory says that the member has another size."""
    whole = bytearray(in_zip_of(name, content))
    at = whole.rindex(b"PK\x01\x02")
    struct.pack_into("<I", whole, at + 24, size)
    return bytes(whole)


def in_zip_of(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def mat_bomb() -> bytes:
    whole = saved(savemat, {"data": np.zeros((784, 2)), "testdata": np.zeros((784, 2))})
    element = zlib.compress(struct.pack("<II", 14, 2**31) + bytes(1 << 24))
    return whole[:128] + struct.pack("<II", 15, len(element)) + element


def tar_claiming(size: int) -> bytes:
    member = tarfile.TarInfo("cifar-10-batches-py/test_batch")
    member.size = size
    whole = tar_with(lambda member: None)
    at = whole.index(b"cifar-10-batches-py/test_batch")
    return whole[:at] + member.tobuf() + whole[at + 512 :]


def wav_claiming(size: int) -> bytes:
    content = bytearray(saved(wavfile.write, 8000, np.zeros(10, np.int16)))
    at = content.index(b"data")
    struct.pack_into("<I", content, at + 4, size)
    return bytes(content)


BOMBS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "npy of 2^40 items": ("npy", lambda: npy_header((2**20, 2**20)) + bytes(9), "claims 1099511627776 bytes"),
    "npy of 2^62 numbers": ("npy", lambda: npy_header((2**31, 2**31), "<f8"), "its header claims"),
    "npy of no items beyond all bounds": ("npy", lambda: npy_header((0, 2**40, 2**40)), "a.npy"),
    "npy of negative sides": ("npy", lambda: npy_header((-4, -4)) + bytes(16), "of shape"),
    "npy with a long header": ("npy", lambda: b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31), "its header has"),
    "npz of 2^40 items": ("npz", lambda: in_zip_of("train.npy", npy_header((2**40,))), "claims 1099511627776 bytes"),
    "npz with a lie in its directory": (
        "npz", lambda: claiming("train.npy", npy_header((2**31,)), 2**31 + 128), "train.npy"
    ),
    "image of 2^40 pixels": ("image", lambda: png_of(2**20, 2**20), "a.png is not a readable image"),
    "image of many pixels": ("image", lambda: png_of(9000, 9000), "9000x9000 pixels"),
    "zip of an image of 300 MB": ("zip", lambda: claiming("train/a.png", b"x", 300 << 20), "268435456 are the most"),
    "omniglot of an image of 2 MB": ("omniglot", lambda: claiming("a/1_1.png", b"x", 2 << 20), "1048576 are the most"),
    "recording of 300 MB": ("recordings", lambda: claiming("1_a_0.wav", b"x", 300 << 20), "268435456 are the most"),
    "idx of 2^40 items": (
        "idx", lambda: bytes([0, 0, 8, 2]) + struct.pack(">II", 2**20, 2**20) + bytes(16), "with 16 bytes of values"
    ),
    "idx whose size is 0 modulo 2^64": (
        "idx", lambda: bytes([0, 0, 8, 4]) + struct.pack(">IIII", *[2**16] * 4), "with 0 bytes of values"
    ),
    "idx of 255 dimensions": ("idx", lambda: bytes([0, 0, 8, 255]) + bytes(4 * 255), "255 dimensions"),
    "mat that inflates to 16 MB": ("mat", mat_bomb, "inflates to more than 4194304 bytes"),
    "checkpoint with a header of 2^60 bytes": ("checkpoint", lambda: struct.pack("<Q", 2**60) + b"{}", "is damaged"),
    "checkpoint of 2^40 numbers": ("checkpoint", lambda: tensor_claiming(2**40), "is damaged"),
    "checkpoint of deep lists": ("checkpoint", lambda: save({"a": torch.ones(1)}, {"state": "[" * 99999}), "damaged"),
    "pickle of a memo of 2^31 places": ("batch", lambda: b"\x80\x02]r\xff\xff\xff\x7f.", "claims 2147483647 objects"),
    "pickle of a string of 2^60 bytes": ("batch", lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".", "batch"),
    "tar of a batch of 2^33 bytes": (
        "tar", lambda: tar_claiming(2**33), "not a readable archive of the batches|no plain file"
    ),
    "record of deep lists": ("record", lambda: b"[" * 100000, "is no record"),
    "run of deep lists": ("run", lambda: b"[" * 100000, "can't be read"),
}  # fmt: skip


def tensor_claiming(count: int) -> bytes:
    head = json.dumps({"a": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(64)


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_cannot_claim_much_memory(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, make, message = BOMBS[name]
    content = make()
    monkeypatch.setattr("vi_flows.data.omniglot._MOST_MAT_BYTES", 1 << 22)

    def read() -> None:
        with pytest.raises(REFUSALS, match=message):
            READERS[reader](content, tmp_path)

    assert peak_of(read) < 4 * len(content) + (16 << 20)


def test_a_recording_of_unknown_length_is_read_as_far_as_it_goes() -> None:
    content = wav_claiming(2**32 - 2)  # as programs write it that don't know the length when they begin
    assert peak_of(lambda: read_wav("a.wav", content)) < 1 << 20
    assert read_wav("a.wav", content)[1].tolist() == [0] * 10


def test_a_compressed_file_of_unknown_size_is_read_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vi_flows.data.sources._MOST", 1 << 22)
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(1 << 24)))
    file = SourceFile(("a",), (), "md5:0", digest=lambda content: pytest.fail("looked into a bomb"))
    with pytest.raises(DataCorruptError, match="longer than it should be"):
        read_verified(file, tmp_path / "a.gz")


def test_a_mat_file_is_the_same_without_compression() -> None:
    grey = {"data": np.eye(784, 5), "testdata": np.eye(784, 3)}
    packed, plain = (saved(savemat, grey, do_compression=how) for how in (True, False))
    assert inflated(packed, 1 << 20)[128:] == plain[128:]
    with pytest.raises(DataCorruptError, match="inflates to more than 1000 bytes"):
        inflated(packed, 1000)


def test_more_than_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vi_flows.data.limits.memory_bytes", lambda: 2000)
    with pytest.raises(DataCorruptError, match=r"a needs 0\.0 GiB, and this machine has 0\.0: use fewer images"):
        check_memory("a", 1001)
    check_memory("a", 1000)
    np.save(tmp_path / "a.npy", np.zeros((11, 100), np.uint8))
    with pytest.raises(DataCorruptError, match=r"a\.npy needs"):
        load_path(tmp_path / "a.npy")
    assert MOST_MEMBER_BYTES == 268435456
