"""The command ``vi-flows info``: what is here, for a report and for one's own questions."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vi_flows.cli.bench import environment
from vi_flows.data.registry import REGISTRY
from vi_flows.data.sources import cache_folder, resolve_root
from vi_flows.records import to_json

__all__ = ["Info"]

LIBRARIES = ("numpy", "scipy", "safetensors", "tyro", "tensorboard", "arviz", "submitit", "zuko", "normflows")
"""Beside PyTorch and Pyro: of the dependencies and of the extras."""


@dataclass(frozen=True)
class Info:
    """Show versions, the ConvFlow kernel in use and why, threads, devices, the data sets found here, and the cache."""

    data_root: Path | None = None
    """Folder of the data files; VI_FLOWS_DATA, else the user's cache folder, by default."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """Print it; exit code 0.

        Raises:
            ValueError: the data root is a file.
        """
        found = environment() | {"processors": os.cpu_count()} | _libraries() | _devices() | _data(self.data_root)
        if self.json:
            print(to_json(found, 2))
            return 0
        for name, value in found.items():
            words = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"{name.replace('_', ' '):16} {'-' if words in (None, '') else words}")
        return 0


def _libraries() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _devices() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"devices": ["cpu", *(f"cuda:{index} ({name})" for index, name in enumerate(gpus))]}


def _data(root: Path | None) -> dict[str, Any]:
    place, cache = resolve_root(root), cache_folder()
    found = [dataset.name for dataset in REGISTRY.values() if not dataset.missing(place)]
    packed = [path for path in cache.rglob("*") if path.is_file()] if cache.is_dir() else []
    return {
        "data_root": f"{place.path} (from {place.origin})",
        "data_found": found,
        "data_missing": [name for name in REGISTRY if name not in found],
        "cache": f"{cache} ({len(packed)} files, {sum(path.stat().st_size for path in packed) / 2**20:.0f} MiB)",
    }
