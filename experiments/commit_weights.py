"""Put a finished run with its weights into ``experiments/pretrained``, small enough to be committed.

    python experiments/commit_weights.py RUN NAME
    vi-flows evaluate experiments/pretrained/NAME --limit 100   # its figures, for tests/experiments/test_pretrained.py

Settings and metrics are copied, but for where the data and the source lay and what computed; the weights that the run's
protocol chooses are packed without loss (``best.safetensors.xz``).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vi_flows.cli.outcome import exit_with
from vi_flows.records import from_json, to_json, write_atomic
from vi_flows.training import Run
from vi_flows.training.packed import pack

PRETRAINED = Path(__file__).parent / "pretrained"
LIMIT = 20_000_000
"""Bytes of all committed weights together."""


@dataclass(frozen=True)
class Commit:
    """Which run, and what it is to be called."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    name: Annotated[str, tyro.conf.Positional]
    """What ``vi-flows evaluate --pretrained NAME`` will know it by."""
    pretrained: Path = PRETRAINED
    """Folder of the committed runs."""


def put(run: Run, folder: Path) -> Path:
    """Write a run's settings, metrics and packed weights into a new folder.

    Args:
        run: with whole weights.
        folder: where to.

    Returns:
        The packed weights.

    Raises:
        RunUnusableError: the run has no whole weights.
        FileExistsError: the folder is there.
    """
    there = run.on("cpu")  # wherever it was trained
    there.load_weights(there.build_task())
    folder.mkdir(parents=True)
    settings = from_json((run.folder / "config.json").read_text(encoding="utf-8"))
    machine = {"data_root": None, "start_from": None, "device": "cpu", "cuda_graph": False}
    settings["settings"].update({name: value for name, value in machine.items() if name in settings["settings"]})
    write_atomic(folder / "config.json", to_json(settings, 2) + "\n")
    shutil.copy(run.folder / "metrics.jsonl", folder)
    return pack(run.weights.path(), folder)


def size(pretrained: Path) -> int:
    """Bytes of all committed weights, packed or not."""
    return sum(path.stat().st_size for path in pretrained.rglob("*.safetensors*"))


def main(options: Commit) -> None:
    """Write it and say how much room is left.

    Raises:
        ValueError: there is one of that name, or all together are larger than the limit; nothing is left then.
    """
    folder = options.pretrained / options.name
    if folder.exists():
        raise ValueError(f"{folder} exists: take another name, or move it away")
    weights = put(Run.open(options.run), folder)
    total = size(options.pretrained)
    if total > LIMIT:
        shutil.rmtree(folder)
        raise ValueError(f"with {options.run} the committed weights would have {total:,} bytes, more than {LIMIT:,}")
    print(f"{weights}: {weights.stat().st_size:,} bytes; {total:,} of {LIMIT:,} are used")


if __name__ == "__main__":
    exit_with("commit_weights", lambda words: main(tyro.cli(Commit, description=__doc__, args=words)))
