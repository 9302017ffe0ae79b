"""The commands ``vi-flows data list``, ``check`` and ``download``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from tabulate import tabulate

from vi_flows.data.base import DataCorruptError, DataNotFoundError
from vi_flows.data.dataset import Dataset
from vi_flows.data.registry import REGISTRY, find, is_path
from vi_flows.data.sources import DataRoot, locate, resolve_root
from vi_flows.progress import progress_bar

_ALL = "all"


@dataclass
class DataList:
    """List the data sets: size, shape, whether their files are found and where, origin, licence and citation."""

    data_root: Path | None = None
    """Folder of the data files, in torchvision's layout; VI_FLOWS_DATA, else the user's cache folder, by default."""

    def run(self) -> int:
        """Print one table and a paragraph per data set; the exit code is 0."""
        root = resolve_root(self.data_root)
        head = ("name", "train", "valid", "test", "shape", "levels", "binarised", "files")
        rows = [_row(dataset, root) for dataset in REGISTRY.values()]
        print(tabulate(rows, head, disable_numparse=True))
        print(f"\ndata root: {root}")
        for dataset in REGISTRY.values():
            print(f"\n{dataset.name}: {dataset.title}")
            for file in dataset.files:
                print(f"  file     {locate(file, root) or 'missing: ' + file.name}")
            for url in {url.rpartition("/")[0]: None for file in dataset.files for url in file.urls}:
                print(f"  source   {url}")
            print(f"  about    {dataset.homepage}\n  licence  {dataset.licence}\n  cite     {dataset.citation}")
        return 0


@dataclass
class DataCheck:
    """Read data sets from their files, verify every checksum, and compare the images with the hash on record."""

    name: tyro.conf.Positional[str] = _ALL
    """Data set to check, or "all" for every one whose files are found."""
    data_root: Path | None = None
    """Folder of the data files, in torchvision's layout; VI_FLOWS_DATA, else the user's cache folder, by default."""

    def run(self) -> int:
        """Print a table of results; the exit code is 1 if a set is incomplete, corrupt or different, else 0."""
        root = resolve_root(self.data_root)
        chosen = _chosen(self.name)
        if chosen is None:
            return 2
        rows, problems = [], []
        for dataset in progress_bar(chosen, unit="set", leave=False):
            result, sha256, problem = self._check(dataset, root)
            rows.append((dataset.name, result, sha256))
            problems += [problem] if problem else []
        print(tabulate(rows, ("name", "result", "sha256 of the images"), disable_numparse=True))
        print(f"\ndata root: {root}")
        for problem in problems:
            print(f"\n{problem}", file=sys.stderr)
        return 1 if problems else 0

    def _check(self, dataset: Dataset, root: DataRoot) -> tuple[str, str, str]:
        """Result and hash to show, and what is wrong, "" if nothing is."""
        # A set with none of its files there was never fetched, which is no fault unless it was asked for.
        if self.name == _ALL and dataset.files and len(dataset.missing(root)) == len(dataset.files):
            return "not found", "", ""
        try:
            sha256 = dataset.read(root, use_cache=False).sha256
        except DataNotFoundError as error:
            return "missing", "", str(error)
        except DataCorruptError as error:
            return "CORRUPT", "", str(error)
        if dataset.sha256 is None:
            return "readable, no hash on record", sha256, ""
        if sha256 != dataset.sha256:
            why = f"{dataset.name}: the files are intact, but the images hash to {sha256} instead of {dataset.sha256}"
            return "DIFFERENT", sha256, f"{why}: another version of a package decodes or resizes them otherwise"
        return "ok", sha256, ""


@dataclass
class DataDownload:
    """Download what is missing or corrupt of a data set from its public home, and verify it."""

    name: tyro.conf.Positional[str]
    """Data set to download, or "all"."""
    data_root: Path | None = None
    """Folder to download to, in torchvision's layout; VI_FLOWS_DATA, else the user's cache folder, by default."""

    def run(self) -> int:
        """Print what was fetched; the exit code is 0, or 1 if something could not be had."""
        root = resolve_root(self.data_root)
        chosen = _chosen(self.name)
        if chosen is None:
            return 2
        failed = False
        for dataset in chosen:
            try:
                fetched = dataset.fetch(root, progress=sys.stderr.isatty())
            except DataNotFoundError as error:
                print(f"{dataset.name}: {error}", file=sys.stderr)
                failed = True
                continue
            for path in fetched:
                print(f"{dataset.name}: downloaded {path}")
            if not fetched:
                already = f"intact under {root}" if dataset.files else "part of an installed package"
                print(f"{dataset.name}: nothing to download, it is {already}")
        return 1 if failed else 0


def _chosen(name: str) -> list[Dataset] | None:
    """The data sets of a name or "all"; None, and a message on stderr, for an unknown name."""
    if name == _ALL:
        return list(REGISTRY.values())
    try:
        return [find(name)]
    except ValueError as error:
        own = "; images of your own are checked where they are read, by --dataset" if is_path(name) else ""
        print(f"{error}, or {_ALL}{own}", file=sys.stderr)
        return None


def _row(dataset: Dataset, root: DataRoot) -> tuple[str, ...]:
    missing, total = len(dataset.missing(root)), len(dataset.files)
    files = f"{total - missing} of {total} found" if total else "in an installed package"
    shape = "x".join(map(str, dataset.shape))
    return (dataset.name, *map(str, dataset.counts), shape, str(dataset.levels), dataset.binarization, files)
