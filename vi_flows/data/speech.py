"""Spoken digits as 16-bit samples: recordings named ``DIGIT_SPEAKER_TAKE.wav`` in a zip archive or folder.

The Free Spoken Digit Dataset (CC BY-SA 4.0) names its files so:
https://github.com/Jakobovski/free-spoken-digit-dataset
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from vi_flows.data.base import DataCorruptError, DataNotFoundError, Protocol, Splits
from vi_flows.data.folders import files_in
from vi_flows.data.limits import is_junk, open_zip, read_member, short
from vi_flows.data.registry import is_path
from vi_flows.data.sources import resolve_root

__all__ = ["NUM_DIGITS", "SpeechData", "load_speech"]

NUM_DIGITS = 10
TEST_TAKES, VALID_TAKES = range(5), range(5, 10)  # the data set's own test takes are 0 to 4
_NAME = re.compile(r"(\d)_([^_/]+)_(\d+)\.wav", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class SpeechData:
    """Recordings in three splits, a row each.

    Attributes:
        name: what it was loaded by.
        rate: samples a second.
        max_steps: samples ``T`` of the longest recording.
        train: int16 ``(N, T + 2)``: samples, zeros after the end, then the number of samples, then the digit.
        valid: as ``train``; takes 5 to 9 of every speaker and digit.
        test: as ``train``; takes 0 to 4.
        sha256: hash of the rows of all splits and the rate.
    """

    name: str
    rate: int
    max_steps: int
    train: Tensor
    valid: Tensor
    test: Tensor
    sha256: str

    def split(self, protocol: Protocol) -> Splits:
        """The splits to train, select and report on, as of :class:`~vi_flows.data.ImageData`."""
        if protocol == "paper":
            return Splits(torch.cat([self.train, self.valid]), self.valid[:0], self.test)
        return Splits(self.train, self.valid, self.test)


def load_speech(name: str = "fsdd-jackson", root: Path | None = None) -> SpeechData:
    """Recordings from a zip archive or a folder.

    Args:
        name: a path (with a ``/``, or the ending of an archive), or the name of an archive ``NAME.zip`` or folder
            ``NAME`` under the data root.
        root: the data root; see :func:`~vi_flows.data.load`.

    Raises:
        DataNotFoundError: there is nothing of that name, or a split has no recordings.
        DataCorruptError: a recording is no 16-bit mono WAV file, or the sampling rates differ.
    """
    location = resolve_root(root)
    # A folder that happens to have a data set's name, as one that a run is kept in, is not meant by it.
    here = [Path(name).expanduser()] if is_path(name) else []
    places = [*here, location.path / name, location.path / f"{name}.zip"]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        looked = ", ".join(map(str, places))
        raise DataNotFoundError(
            f"there are no recordings {name!r}; looked for {looked}. Put an archive of DIGIT_SPEAKER_TAKE.wav files "
            "there (https://github.com/Jakobovski/free-spoken-digit-dataset), or name another --data-root, or a path "
            "(./…)"
        )
    recordings: dict[str, list[tuple[np.ndarray, int]]] = {"train": [], "valid": [], "test": []}
    rates = set()
    for file, content in _contents(path):
        found = _NAME.fullmatch(PurePosixPath(file).name)
        if found is None:
            raise DataCorruptError(f"{path}: {file} is not named DIGIT_SPEAKER_TAKE.wav; rename it, or move it away")
        rate, samples = read_wav(f"{path}: {file}", content)
        rates.add(rate)
        take = int(found[3])
        split = "test" if take in TEST_TAKES else "valid" if take in VALID_TAKES else "train"
        recordings[split].append((samples, int(found[1])))
    empty = [split for split, rows in recordings.items() if not rows]
    if empty:
        raise DataNotFoundError(
            f"{path} has no recordings DIGIT_SPEAKER_TAKE.wav for {', '.join(empty)}: takes 0 to 4 are the test, 5 "
            "to 9 valid"
        )
    if len(rates) > 1:
        raise DataCorruptError(f"{path}: the recordings differ in their sampling rates: {sorted(rates)}")
    (rate,) = rates
    longest = max(len(samples) for rows in recordings.values() for samples, _ in rows)
    if longest > np.iinfo(np.int16).max:
        raise DataCorruptError(f"{path}: a recording has {longest} samples; 32767 are the most")
    splits = {split: _rows(rows, longest) for split, rows in recordings.items()}
    digest = hashlib.sha256(f"speech rate {rate} steps {longest}\n".encode())
    for rows in splits.values():
        digest.update(rows.numpy().data.cast("B"))
    return SpeechData(name, rate, longest, **splits, sha256=digest.hexdigest())


def _contents(path: Path) -> list[tuple[str, bytes]]:
    """The WAV files by name, in the order of their names; of a folder, those that its archive would have."""
    if path.is_dir():
        return [(str(name), read()) for name, read in files_in(path) if _is_recording(str(name))]
    with open_zip(path, str(path)) as (archive, files):
        return [
            (name, read_member(archive, info, f"{path}: {name}"))
            for name, info in sorted(files.items())
            if _is_recording(name)
        ]


def _is_recording(name: str) -> bool:
    return name.lower().endswith(".wav") and not is_junk(PurePosixPath(name))


def read_wav(place: str, content: bytes) -> tuple[int, np.ndarray]:
    """Sampling rate and 16-bit samples ``(T,)`` of a WAV file.

    Args:
        place: the file's name in messages.
        content: of the file.

    Raises:
        DataCorruptError: it can't be read, ends too early, or has other samples.
    """
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            # Of chunks that are no samples; a recording that ends too early is damaged.
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
            rate, samples = wavfile.read(io.BytesIO(content))
    except Exception as error:  # the reader raises many kinds for damaged files
        raise DataCorruptError(f"{place} can't be read as a WAV file: {short(error)}") from error
    if samples.dtype != np.int16 or samples.ndim != 1 or not len(samples):
        raise DataCorruptError(f"{place} has {samples.dtype} samples of shape {samples.shape}; 16-bit mono is needed")
    return rate, samples


def _rows(recordings: list[tuple[np.ndarray, int]], longest: int) -> Tensor:
    rows = np.zeros((len(recordings), longest + 2), dtype=np.int16)
    for row, (samples, digit) in zip(rows, recordings, strict=True):
        row[: len(samples)] = samples
        row[-2:] = len(samples), digit
    return torch.from_numpy(rows)
