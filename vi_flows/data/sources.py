"""Where data files are looked for, how their content is verified and how they are downloaded.

A data root is a folder in torchvision's layout. It is, in this order, the one that is passed in, the one that the
environment variable ``VI_FLOWS_DATA`` names, or a folder of the platform's user cache. The first that is named is the
only one that is searched: a run never mixes files of two roots.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vi_flows.data.base import DataCorruptError, DataNotFoundError

DATA_VARIABLE = "VI_FLOWS_DATA"
CACHE_VARIABLE = "VI_FLOWS_CACHE"

_CHUNK = 1 << 20
_MOST = 1 << 30  # bytes of content where no size is published; what goes on may be a bomb
_TIMEOUT = 30.0  # seconds without an answer before the next mirror is tried


@dataclass(frozen=True)
class SourceFile:
    """One public file of a data set.

    Attributes:
        paths: names under the data root, the preferred first, each also accepted with ``.gz`` appended.
        urls: public homes, tried in order. A URL ending in ``.gz`` is stored compressed.
        checksum: "algorithm:hexdigest" of the *uncompressed* content, None where no checksum is published.
        size: uncompressed bytes, None where it may vary.
        served_checksum: "algorithm:hexdigest" of the bytes behind the URLs, None if it is ``checksum``.
        digest: maps the content to the hexdigest, for an algorithm that hashlib does not have.
    """

    paths: tuple[str, ...]
    urls: tuple[str, ...]
    checksum: str | None
    size: int | None = None
    served_checksum: str | None = None
    digest: Callable[[bytes], str] | None = None

    @property
    def known_hash(self) -> str | None:
        """Of the bytes behind the URLs; without one, nothing is downloaded."""
        return self.served_checksum or self.checksum

    @property
    def name(self) -> str:
        """The preferred path under the data root."""
        return self.paths[0]


@dataclass(frozen=True)
class DataRoot:
    """A data root and what named it: "data root" (an argument), the environment variable, or "cache"."""

    path: Path
    origin: str

    def __str__(self) -> str:
        note = "" if self.path.is_dir() else ", a folder that does not exist"
        named = {"data root": "given as the data root", "cache": "the default"}.get(self.origin, f"from {self.origin}")
        return f"{self.path} ({named}{note})"


def cache_folder() -> Path:
    """The folder for what can be made again: ``VI_FLOWS_CACHE``, else the platform's user cache. Not created here."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    import pooch

    return Path(pooch.os_cache("vi_flows"))


def resolve_root(root: str | os.PathLike[str] | None = None) -> DataRoot:
    """The data root: the argument, else ``VI_FLOWS_DATA``, else the folder ``data`` of :func:`cache_folder`.

    Raises:
        ValueError: it is a file.
    """
    if root is not None:
        found = DataRoot(Path(root).expanduser().absolute(), "data root")
    elif named := os.environ.get(DATA_VARIABLE):
        found = DataRoot(Path(named).expanduser().absolute(), DATA_VARIABLE)
    else:
        found = DataRoot((cache_folder() / "data").absolute(), "cache")
    if found.path.is_file():
        raise ValueError(f"the data root must be a folder, {found.path} is a file")
    return found


def candidates(file: SourceFile, root: DataRoot) -> list[Path]:
    """Every path at which a file is looked for, in order."""
    return [root.path / (name + suffix) for name in file.paths for suffix in ("", ".gz")]


def locate(file: SourceFile, root: DataRoot) -> Path | None:
    """The first candidate that is a file, or None."""
    return next((path for path in candidates(file, root) if path.is_file()), None)


def not_found(dataset: str, missing: Sequence[SourceFile], root: DataRoot, reason: str = "") -> DataNotFoundError:
    """The error for missing files: what is missing, where it was looked for, its homes, the command to fetch it."""
    lines = [f"the data set {dataset!r} is not complete; missing: {', '.join(file.name for file in missing)}"]
    for file in missing:
        lines += [f"  looked for {path}" for path in candidates(file, root)]
        lines += [f"  comes from {url}" for url in file.urls]
    lines.append(f"The data root is {root}; another one is named by --data-root or {DATA_VARIABLE}.")
    if reason:
        lines.append(reason)
    option = f" --data-root {root.path}" if root.origin == "data root" else ""
    unknown = next((file for file in missing if file.known_hash is None), None)
    if unknown is None:
        lines.append(f"Fetch it with: vi-flows data download {dataset}{option}")
    else:
        lines.append(f"No checksum of it is published: fetch it yourself, and put it at {root.path / unknown.name}")
    return DataNotFoundError("\n".join(lines))


def read_verified(file: SourceFile, path: Path) -> bytes:
    """The uncompressed content of a file, checked against its size and checksum.

    Args:
        file: what it should be.
        path: where it is; a name ending in ``.gz`` is decompressed.

    Raises:
        DataCorruptError: with the expected and the found checksum and size, if they differ or decompression fails.
    """
    content, problem = _read(path, _MOST if file.size is None else file.size)
    if file.size is not None and len(content) != file.size and not problem:
        problem = "it is shorter than it should be"
    found = None
    if file.checksum is not None and len(content) <= _MOST:
        algorithm, _, expected = file.checksum.partition(":")
        found, fault = _digest(file, algorithm, content)
        if found != expected and not problem:
            problem = fault or "its content is not what was published"
    if problem:
        raise DataCorruptError(
            f"{path} is corrupt: {problem}\n"
            f"  expected {file.checksum or 'no published checksum'}{_bytes(file.size)}\n"
            f"  found    {algorithm + ':' + found if found else 'no checksum'}{_bytes(len(content))}"
            f"{' of uncompressed content' if path.suffix == '.gz' else ''}\n"
            f"  comes from {', '.join(file.urls)}\n"
            "Delete it, or let `vi-flows data download` replace it."
        )
    return content


def _read(path: Path, limit: int) -> tuple[bytes, str]:
    """Uncompressed content and, if it could not all be read or goes on past the limit, why."""
    chunks: list[bytes] = []
    size = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    return b"".join(chunks), "it is longer than it should be (reading stopped)"
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        return b"".join(chunks), f"decompression failed: {error}"
    return b"".join(chunks), ""


def _digest(file: SourceFile, algorithm: str, content: bytes) -> tuple[str | None, str]:
    """The content's hexdigest, or None and why it cannot be computed."""
    if file.digest is None:
        return hashlib.new(algorithm, content, usedforsecurity=False).hexdigest(), ""
    try:
        return file.digest(content), ""
    except DataCorruptError as error:
        return None, str(error)


def _bytes(size: int | None) -> str:
    return "" if size is None else f", {size} bytes"


def download(file: SourceFile, root: DataRoot, progress: bool = False) -> Path:
    """Fetch one file into the data root, verify it, and only then put it in its place.

    Args:
        file: what to fetch.
        root: where to, in torchvision's layout; created if need be.
        progress: show a progress bar.

    Returns:
        The path of the stored file.

    Raises:
        DataNotFoundError: if no public home gives the published file, or the root cannot be written; says what
            happened at each home, with the expected and the found checksum of a file that is not the published one.
    """
    import pooch

    failures = []
    known = file.known_hash
    if known is None:
        raise DataNotFoundError(
            f"{file.name} could not be downloaded, because no checksum of it is published: fetch it yourself from "
            f"{' or '.join(file.urls)}, look at it, and put it at {root.path / file.name}"
        )
    try:
        (root.path / file.name).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataNotFoundError(
            f"{file.name} could not be downloaded, because the data root {root} can't be made ({error}): name another "
            f"one by --data-root or {DATA_VARIABLE}"
        ) from error
    for url in file.urls:
        name = file.name + (".gz" if url.endswith(".gz") else "")
        target = root.path / name
        partial = target.with_name(f".{os.getpid()}.part.{target.name}")
        try:
            pooch.retrieve(
                url,
                known_hash=known,
                fname=partial.name,
                path=partial.parent,
                downloader=pooch.HTTPDownloader(progressbar=progress, timeout=_TIMEOUT),
            )
            read_verified(file, partial)
            os.replace(partial, target)
            return target
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
            failures.append(f"  {url}: {type(error).__name__}: {error}")
        finally:
            if partial.is_file():
                partial.unlink()
    raise DataNotFoundError(f"{file.name} could not be downloaded to {root}:\n" + "\n".join(failures))
