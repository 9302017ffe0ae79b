"""Feeds damaged files to every reader: ``python tests/fuzz_readers.py --inputs 100000``.

Each input is a good file, mutated by a seed: bits flipped, numbers replaced by extreme ones, cut, spliced with another
file. It must be read, or refused by the reader's own error in one sentence: no other exception, no memory that a small
file can't need, no hang, no crash. Every input can be made again from its kind, seed and number.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import lzma
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script, this file has only its own folder there

from tests.fuzz_files import (
    amat_files,
    checkpoint_files,
    cifar_files,
    idx_files,
    image_files,
    mat_files,
    npy_files,
    npz_files,
    omniglot_files,
    packed_files,
    tar_files,
    wav_files,
    zip_files,
)
from tests.fuzz_mutations import mutated, with_crcs
from vi_flows.data import DataCorruptError, DataNotFoundError
from vi_flows.data.arrays import from_npy, from_npz
from vi_flows.data.cifar import BATCHES, batches, unpickled
from vi_flows.data.folders import load_path
from vi_flows.data.mnist import parse_amat, parse_idx
from vi_flows.data.omniglot import chardata, decoded
from vi_flows.data.pictures import decode
from vi_flows.data.speech import read_wav
from vi_flows.records import Clock, Record, provenance, row_key
from vi_flows.training.checkpoint import CheckpointError, load_tensors

SECONDS = 10.0
"""CPU time that an input may take; the files have a few kilobytes."""
MEMORY = 1 << 28
"""Bytes by which the process may grow."""


class TooSlow(BaseException):
    """No ``Exception``, so that no reader takes it for damage."""


# Readers ----------------------------------------------------------------------------------------------------------


@cache
def place() -> Path:
    """A file for the readers that take a path; in memory where the system offers that."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared if os.access(shared, os.W_OK) else None))


def of_path(read: Callable[[Path], Any], name: str) -> Callable[[bytes], Any]:
    """A reader of contents."""

    def from_content(content: bytes) -> Any:
        path = place() / name
        path.write_bytes(content)
        return read(path)

    return from_content


def check_idx(content: bytes) -> None:
    """An array of bytes."""
    assert parse_idx(content).dtype == np.uint8


def check_amat(content: bytes) -> None:
    """Zeros and ones."""
    assert set(np.unique(parse_amat(content, 12))) <= {0, 1}


def check_mat(content: bytes) -> None:
    """Grey values of both parts."""
    for images, labels in chardata(content):
        assert images.dtype == np.uint8
        assert images.shape[1:] == (784,)
        assert labels is None or labels.shape == (len(images),)


def check_arrays(read: Callable[[Path], tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]) -> Callable[[Path], None]:
    """Images and as many labels."""

    def check(path: Path) -> None:
        images, labels = read(path)
        assert all(array.dtype == np.uint8 and array.ndim == 4 for array in images.values())
        assert all(labels[split].shape == (len(images[split]),) for split in labels)
        assert all(array.dtype == np.int64 for array in labels.values())

    return check


def check_image(content: bytes) -> None:
    """Grey or colour."""
    pixels = decode("a file", content)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert len(pixels) in (1, 3)


def check_wav(content: bytes) -> None:
    """16-bit samples."""
    rate, samples = read_wav("a file", content)
    assert isinstance(rate, int)
    assert samples.dtype == np.int16
    assert samples.ndim == 1


def check_checkpoint(path: Path) -> None:
    """Tensors and their bookkeeping."""
    tensors, state = load_tensors(path)
    assert isinstance(state, dict)
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


def check_packed(path: Path) -> None:
    """The same, out of the packed file."""
    check_checkpoint(path.with_suffix(""))


def check_cifar(content: bytes) -> None:
    """Pixels and classes."""
    pixels, labels = unpickled(content)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (len(labels), 3072)


def check_tar(content: bytes) -> None:
    """All batches."""
    assert set(batches(content)) == set(BATCHES)


def check_omniglot(content: bytes) -> None:
    """Drawings of one size."""
    assert all(pixels.shape == (105, 105) for _, pixels in decoded(content))


def check_zip(path: Path) -> None:
    """A data set, whose container checks itself."""
    load_path(path)


@dataclass(frozen=True)
class Kind:
    """A reader, good files of its kind, and how checksums in them are put right after a mutation."""

    files: Callable[[], list[bytes]]
    read: Callable[[bytes], Any]
    repair: Callable[[bytes, random.Random], bytes] | None = None


def rezipped(content: bytes, draw: random.Random) -> bytes:
    """A good archive with one member mutated, instead of the mutated archive."""
    seeds = npz_files_once()
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(draw.choice(seeds))) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        hit = draw.choice(names)
        for name in names:
            inner = old.read(name)
            new.writestr(name, mutated(inner, [inner], draw) if name == hit else inner)
    return file.getvalue()


def repacked(content: bytes, draw: random.Random) -> bytes:
    """A good packed file of mutated content."""
    seeds = checkpoint_files_once()
    return lzma.compress(mutated(draw.choice(seeds), seeds, draw))


npz_files_once, checkpoint_files_once = cache(npz_files), cache(checkpoint_files)
KINDS: dict[str, Kind] = {
    "idx": Kind(idx_files, check_idx),
    "amat": Kind(amat_files, check_amat),
    "mat": Kind(mat_files, check_mat),
    "npy": Kind(npy_files, of_path(check_arrays(from_npy), "a.npy")),
    "npz": Kind(npz_files, of_path(check_arrays(from_npz), "a.npz"), rezipped),
    "image": Kind(image_files, check_image, with_crcs),
    "zip": Kind(zip_files, of_path(check_zip, "a.zip")),
    "wav": Kind(wav_files, check_wav),
    "checkpoint": Kind(checkpoint_files, of_path(check_checkpoint, "a.safetensors")),
    "packed": Kind(packed_files, of_path(check_packed, "packed.safetensors.xz"), repacked),
    "cifar": Kind(cifar_files, check_cifar),
    "tar": Kind(tar_files, check_tar),
    "omniglot": Kind(omniglot_files, check_omniglot),
}
REFUSALS = (DataCorruptError, DataNotFoundError, CheckpointError)


# Inputs --------------------------------------------------------------------------------------------------------


def input_of(name: str, seed: int, number: int) -> bytes:
    """The input of this number."""
    kind, draw = KINDS[name], random.Random(f"{name} {seed} {number}")
    files = files_of(name)
    content = mutated(draw.choice(files), files, draw)
    return content if kind.repair is None or draw.random() < 0.5 else kind.repair(content, draw)


@cache
def files_of(name: str) -> list[bytes]:
    """Good files of a kind."""
    return KINDS[name].files()


# Running ----------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What became of the inputs: counts, reasons of refusal, and what must not be, by the input's number."""

    read: int = 0
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def limited_time() -> Iterator[None]:
    """Stop at :data:`SECONDS` of CPU time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def failure_of(error: BaseException) -> str | None:
    """Why an exception is none of the reader's own, or ``None``."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, MemoryError):
            return "MemoryError"
        chain = chain.__cause__ or chain.__context__
    if not isinstance(error, REFUSALS):
        return f"{type(error).__name__}: {error}"
    text = str(error)
    return None if text and "\n" not in text and len(text) < 500 else f"no sentence: {text!r}"


def peak() -> int:
    """Bytes that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def feed(name: str, seed: int, number: int, tally: Tally) -> None:
    """One input."""
    content, before = input_of(name, seed, number), peak()
    problem = None
    try:
        with limited_time():
            KINDS[name].read(content)
        tally.read += 1
    except TooSlow:
        problem = f"more than {SECONDS:g} s"
    except Exception as error:
        problem = failure_of(error)
        if problem is None:
            tally.refused += 1
            tally.reasons["".join(c for c in str(error).split(": ")[-1] if not c.isdigit())[:60]] += 1
    if peak() - before > MEMORY:
        problem = f"{(peak() - before) >> 20} MiB"
    if problem is not None:
        tally.failures[str(number)] = problem


def fuzz(name: str, numbers: range, seed: int = 0) -> Tally:
    """These inputs, in this process."""
    tally = Tally()
    for number in numbers:
        feed(name, seed, number, tally)
    return tally


def work(name: str, seed: int, begin: int, end: int, result: Path) -> None:
    """The body of a process of its own, where a crash can be noticed; writes its tally, and first where it is."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and others print their complaints
    resource.setrlimit(resource.RLIMIT_AS, (1 << 35, 1 << 35))
    tally, at = Tally(), os.open(result.with_suffix(".at"), os.O_RDWR | os.O_CREAT)
    for number in range(begin, end):
        os.pwrite(at, struct.pack("<q", number), 0)
        feed(name, seed, number, tally)
    result.write_text(json.dumps(vars(tally)))
    for left in place().iterdir():
        left.unlink()
    place().rmdir()


def fuzz_in_processes(name: str, inputs: int, seed: int) -> Tally:
    """As :func:`fuzz`, a few thousand inputs a process; an input that ends its process is a failure too."""
    total, begin = Tally(), 0
    with tempfile.TemporaryDirectory() as folder:
        while begin < inputs:
            end = min(begin + 5000, inputs)
            result = Path(folder, f"{begin}.json")
            command = [sys.executable, __file__, "--work", name, str(seed), str(begin), str(end), str(result)]
            code = subprocess.run(command, check=False).returncode
            if code:
                (dead,) = struct.unpack("<q", result.with_suffix(".at").read_bytes())
                total.failures[str(dead)] = f"the process ended with {code}"
                done = fuzz_in_processes_part(name, seed, begin, dead, Path(folder))
                begin = dead + 1
            else:
                done, begin = json.loads(result.read_text()), end
            total.read += done["read"]
            total.refused += done["refused"]
            total.reasons.update(done["reasons"])
            total.failures |= done["failures"]
    return total


def fuzz_in_processes_part(name: str, seed: int, begin: int, end: int, folder: Path) -> dict[str, Any]:
    """The inputs before one that ended its process."""
    result = folder / f"again-{begin}.json"
    command = [sys.executable, __file__, "--work", name, str(seed), str(begin), str(end), str(result)]
    subprocess.run(command, check=True)
    return json.loads(result.read_text())


def main() -> int:
    """Feed, print the counts, write the record; exit code 1 where anything was neither read nor refused."""
    if sys.argv[1:2] == ["--work"]:
        name, seed, begin, end, result = sys.argv[2:]
        work(name, int(seed), int(begin), int(end), Path(result))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--records", type=Path, help="folder of a record a kind, e.g. experiments/results/fuzz")
    options = parser.parse_args()
    found = {}
    for name in options.kinds:
        clock = Clock()
        tally = fuzz_in_processes(name, options.inputs, options.seed)
        found[name] = {
            "inputs": options.inputs, "read": tally.read, "refused": tally.refused,
            "kinds_of_refusal": len(tally.reasons), "failures": tally.failures,
        }  # fmt: skip
        print(name, json.dumps(found[name]), flush=True)
        settings = {"kind": name, "inputs": options.inputs, "seed": options.seed}
        record = Record(
            kind="fuzz-readers", key=row_key(f"fuzz-{name}", settings), label=f"{options.inputs} damaged files: {name}",
            settings=settings, figures=found[name], provenance=provenance(clock=clock),
        )  # fmt: skip
        if options.records is not None:
            record.write(options.records / f"{name}.json", overwrite=True)
    rows = [(name, *list(tally.values())[:4], len(tally["failures"])) for name, tally in found.items()]
    print(tabulate(rows, ("kind", "inputs", "read", "refused", "kinds of refusal", "failures")))
    return int(any(tally["failures"] for tally in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
