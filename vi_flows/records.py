"""Result records, one schema for all: a JSON file with everything that its figures depend on, and the scores beside it.

A record is written once: another one in its place has to be asked for. The scores of the single images, which two
records can be compared by, lie in a file of the same name that ends in ``.npz``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vi_flows import __version__

__all__ = [
    "SCHEMA", "Clock", "Record", "RecordError", "RecordExistsError", "describe_device", "from_json", "git_revision",
    "provenance", "row_key", "to_json", "write_atomic",
]  # fmt: skip

SCHEMA = 1
"""Version of the schema; a reader refuses others."""


NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""Numbers that JSON doesn't know, by the strings that stand for them (those of Protocol Buffers' JSON mapping)."""


class RecordError(ValueError):
    """A record is missing, damaged, or of another schema."""


class NoRecordError(RecordError):
    """A file that is whole, and something else than a record."""


class RecordExistsError(ValueError):
    """A record is there already."""


READY = ".npz.ready"
"""The ending of scores that are written before the record that they belong to."""


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: readers see the old content or the new, never a part.

    Raises:
        OSError: the disk is full, or the folder can't be written; what was there before stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # on a full disk, its part would be in the way
        raise OSError(f"{path} can't be written: {error}") from error


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON (RFC 8259), with strings for the numbers that it doesn't know, see :data:`NOT_FINITE`.

    Args:
        value: of dictionaries, lists, tuples, strings, numbers, booleans and ``None``.
        indent: spaces a level; all in one line by default.

    Raises:
        ValueError: a string is one of those already, and would be read back as a number.
        TypeError: something else is in it.
    """
    return json.dumps(_spelled_out(value), indent=indent, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """What :func:`to_json` was given, but for tuples; ``NaN`` and ``Infinity`` of older files are read too.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deeply.
    """
    return _as_numbers(json.loads(text))


def _spelled_out(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _spelled_out(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled_out(inner) for inner in value]
    if isinstance(value, str) and value in NOT_FINITE:
        raise ValueError(f"the text {value!r} can't be written to JSON: it stands for a number there; use another one")
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _as_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_as_numbers(inner) for inner in value]
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def git_revision() -> str | None:
    """Commit of the source tree, with ``-dirty`` where tracked code was changed.

    Outside a repository (a copy on another machine, an installed wheel): what the environment variable
    ``VI_FLOWS_REVISION`` says, else ``None``.
    """
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()  # fmt: skip

    try:
        git("ls-files", "--error-unmatch", __file__)  # else the repository around us is not ours
        head = git("rev-parse", "HEAD")
        # Results and figures are outputs: only changed code makes a revision dirty.
        status = git(
            "status", "--porcelain", "--untracked-files=no", "--", str(folder), ":(top,glob)experiments/**/*.py"
        )
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("VI_FLOWS_REVISION") or None
    return head + ("-dirty" if status else "")


def describe_device(device: str) -> str:
    """What did the work, in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


class Clock:
    """Time since it was made: on the wall, and of this process' CPUs."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def record(self) -> dict[str, float]:
        """``seconds`` and ``cpu_seconds``."""
        return {
            "seconds": round(time.monotonic() - self._wall, 1),
            "cpu_seconds": round(time.process_time() - self._cpu, 1),
        }


def provenance(device: str = "cpu", clock: Clock | None = None, **more: Any) -> dict[str, Any]:
    """What every record says of its making: code, PyTorch, device, threads and date.

    Args:
        device: that did the work.
        clock: started before the work; adds ``seconds`` and ``cpu_seconds``.
        more: what else is to be said.
    """
    return {
        "revision": git_revision(),
        "vi_flows": __version__,
        "torch": torch.__version__,
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        **({} if clock is None else clock.record()),
        **more,
    }


def _content(path: Path) -> dict[str, Any]:
    """What a file that was written as a record holds, of whatever version.

    Raises:
        RecordError: it is none, or damaged.
    """
    try:
        content = from_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is no record ({error})") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise NoRecordError(f"{path} is no record (it names no schema)")
    return content


def row_key(slug: str, settings: Mapping[str, Any]) -> str:
    """A name that two runs share only if all their settings are equal.

    Args:
        slug: what people read.
        settings: all that distinguishes the run, JSON-ready; eight digits of their SHA-256 end the key.
    """
    content = json.dumps(settings, sort_keys=True)
    return f"{slug}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Record:
    """What was done, what was found, and by which code.

    Attributes:
        kind: of the record: that of a run (``vae``, ``image`` …) or the experiment's name.
        key: of its row, see :func:`row_key`.
        label: of its row in a table for people.
        settings: all that was asked for.
        figures: what was found.
        provenance: how it was made, see :func:`provenance`.
        paper_row: the row of ``experiments/published.json`` whose number belongs beside it; ``None`` where the paper
            has none.
        scores: float32 vectors by name, an image an entry, in the order of the data; empty where there are none.
        note: what a reader has to know.
    """

    kind: str
    key: str
    label: str
    settings: dict[str, Any]
    figures: dict[str, Any]
    provenance: dict[str, Any]
    paper_row: str | None = None
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    note: str = ""

    def images(self, score: str) -> np.ndarray:
        """Which images a score is of, by their places in the data, ``(n,)``.

        The score ``image`` names those that were scored, where not all were; ``ais_image`` those of ``ais_nll`` and its
        like, by their places among these. Where a score has no names, its images are the first ones.
        """
        named = self.scores.get(f"{score.partition('_')[0]}_image")
        places = np.arange(len(self.scores[score])) if named is None else named.astype(np.int64)
        scored = self.scores.get("image")
        return places if scored is None else scored.astype(np.int64)[places]

    def to_dict(self) -> dict[str, Any]:
        """All but the scores, ready for JSON."""
        return {
            "schema": SCHEMA, "kind": self.kind, "key": self.key, "label": self.label, "paper_row": self.paper_row,
            "note": self.note, "figures": self.figures, "scores": None, "provenance": self.provenance,
            "settings": self.settings,
        }  # fmt: skip

    def write(self, path: Path, overwrite: bool = False) -> None:
        """Write the JSON file, and the scores beside it.

        Args:
            path: of the JSON file.
            overwrite: replace what is there.

        Raises:
            RecordExistsError: a record is there and ``overwrite`` was not asked for.
            ValueError: a score is no float32 vector.
        """
        self.refuse_to_replace(path, overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The scores lie ready beside the old ones until the record names them: between any two steps one record is
        # whole, the old or the new (see _with_scores).
        beside, ready = path.with_suffix(".npz"), path.with_suffix(READY)
        scores = None
        if self.scores:
            for name, values in self.scores.items():
                if values.dtype != np.float32 or values.ndim != 1:
                    raise ValueError(f"scores are float32 vectors; {name} is {values.dtype} of shape {values.shape}")
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **self.scores)  # type: ignore[arg-type]  # taken for allow_pickle
            write_atomic(ready, buffer.getvalue())
            digest = hashlib.sha256(buffer.getvalue()).hexdigest()
            scores = {"file": beside.name, "names": list(self.scores), "sha256": digest}
        write_atomic(path, to_json(self.to_dict() | {"scores": scores}, 2) + "\n")
        if scores is None:
            beside.unlink(missing_ok=True)  # those of a record that was replaced
            ready.unlink(missing_ok=True)  # of one whose writing was ended
        else:
            ready.replace(beside)

    @staticmethod
    def refuse_to_replace(path: Path, overwrite: bool = False) -> None:
        """Look before the work, not after it.

        Raises:
            RecordExistsError: a record is there and ``overwrite`` was not asked for, or something else is there, or
                where the scores go.
            NotADirectoryError: a folder on the way to it is a file.
        """
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir():
            raise NotADirectoryError(f"{path} can't be written: {above} is a file, not a folder")
        if path.exists() and not overwrite:
            raise RecordExistsError(f"{path} exists; give --overwrite to replace it, or name another place")
        if path.suffix != ".json":  # pictures
            return
        try:
            scores = _content(path).get("scores") if path.exists() else None
        except RecordError as error:
            raise RecordExistsError(
                f"{path} is no record, and stays as it is; name another place, or move it away"
            ) from error
        beside = path.with_suffix(".npz")
        if beside.exists() and not (isinstance(scores, dict) and scores.get("file") == beside.name):
            raise RecordExistsError(
                f"{beside}, where the scores go, is of no record, and stays as it is; name another place, or move it "
                "away"
            )

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record and its scores.

        Raises:
            RecordError: it is missing, damaged, of another schema, or its scores are not the ones it was written with.
        """
        path = Path(path)
        if not path.is_file():
            raise RecordError(f"there is no record {path}; vi-flows evaluate RUN writes one, and says where")
        content = _content(path)
        if content.pop("schema") != SCHEMA:
            raise RecordError(
                f"{path} is of another schema than {SCHEMA}: it was written by another version; evaluate the run again"
            )
        scores = content.pop("scores", None)
        try:
            record = cls(**content)
            kinds = {"key": str, "label": str, "settings": dict, "figures": dict, "provenance": dict}
            wrong = [name for name, kind in kinds.items() if not isinstance(getattr(record, name), kind)]
            if wrong:
                raise TypeError(f"{wrong[0]} is {getattr(record, wrong[0])!r}")
            return record if scores is None else record._with_scores(path.with_name(scores["file"]), scores["sha256"])
        except (TypeError, KeyError) as error:
            raise RecordError(f"{path} is no record ({error})") from error

    def _with_scores(self, path: Path, sha256: str) -> Record:
        # The second where the process that wrote the record was ended before it moved them.
        places = (place for place in (path, path.with_suffix(READY)) if place.is_file())
        found = (place.read_bytes() for place in places)
        content = next((content for content in found if hashlib.sha256(content).hexdigest() == sha256), None)
        if content is None:
            raise RecordError(
                f"the scores {path} are missing, or not those that the record was written with; evaluate the run again"
            )
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                scores = {name: arrays[name] for name in arrays.files}
        except Exception as error:  # written with this hash, and yet no scores
            raise RecordError(f"the scores {path} can't be read: {error}") from error
        return Record(**{**self.__dict__, "scores": scores})
