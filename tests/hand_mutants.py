"""Wrong changes of the recipe and the statistics that no test noticed once: each must fail a test now.

Works on a copy of the package in a temporary folder, as ``tests/mutation.py`` does::

    python tests/hand_mutants.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Change(NamedTuple):
    """What is wrong, where, what stood there and what stands there now, and the tests that are to notice."""

    what: str
    file: str
    before: str
    after: str
    tests: str


CHANGES = [
    Change(
        "the KL weight multiplies the prior alone", "vae/vae.py",
        "kl_weight * (self.log_prior - self.log_posterior)", "kl_weight * self.log_prior - self.log_posterior",
        "tests/training/test_recipe.py",
    ),
    Change(
        "the decay of the average is reversed", "training/loop.py",
        "update(1 - self.average.decay_at(", "update(self.average.decay_at(", "tests/training/test_recipe.py",
    ),
    Change(
        "the average's ramp is a hundred times as steep", "training/average.py",
        "(1 + rounds) / (10 + rounds)", "(1 + 100 * rounds) / (10 + 100 * rounds)", "tests/training/test_recipe.py",
    ),
    Change(
        "every epoch has the same order", "training/loop.py",
        "self.config.seed * 1_000_003 + epoch", "self.config.seed * 1_000_003", "tests/training/test_recipe.py",
    ),
    Change(
        "the encoder's widths are not mirrored", "vae/guide.py",
        "[*reversed(widths),", "[*widths,", "tests/vae/test_architecture.py",
    ),
    Change(
        "the output bias comes from the test images", "training/tasks/vae.py",
        "self.data.means(self.train_rows)", "self.data.means(self.test_rows)", "tests/training/test_recipe.py",
    ),
    Change(
        "the tail of k-hat is 2 √S", "evaluation/psis.py", "3 * math.sqrt(size)", "2 * math.sqrt(size)",
        "tests/evaluation/test_statistics.py",
    ),
    Change(
        "k-hat without its prior", "evaluation/psis.py", "return (n * k + 5) / (n + 10), sigma", "return k, sigma",
        "tests/evaluation/test_statistics.py",
    ),
    Change(
        "the bootstrap covers 90 %", "evaluation/nll.py",
        "def bootstrap_interval(\n    values: Tensor, level: float = 0.95",
        "def bootstrap_interval(\n    values: Tensor, level: float = 0.90",
        "tests/evaluation/test_statistics.py",
    ),
    Change(
        "one standard error instead of 1.96", "evaluation/nll.py", "return 1.96 * (", "return 1.0 * (",
        "tests/evaluation/test_statistics.py",
    ),
    Change(
        "the threshold of active units is ten times as high", "diagnostics/measures.py",
        "threshold: float = 0.01", "threshold: float = 0.1", "tests/evaluation tests/diagnostics/test_diagnostics.py",
    ),
    Change(
        "a log-scale is read as a log-variance", "vae/guide.py",
        "FlowNormal(loc, log_scale, flow, validate_args)", "FlowNormal(loc, 0.5 * log_scale, flow, validate_args)",
        "tests/vae/test_architecture.py tests/vae/test_by_hand.py tests/vae/test_vae.py",
    ),
]  # fmt: skip


def noticed(change: Change, folder: Path) -> bool:
    """Whether the tests fail with the change in the copy; it is put back afterwards.

    Raises:
        ValueError: what is to be changed does not stand there once.
    """
    path = folder / "vi_flows" / change.file
    source = path.read_text(encoding="utf-8")
    if source.count(change.before) != 1:
        raise ValueError(f"{change.file} has {source.count(change.before)} times {change.before!r}")
    path.write_text(source.replace(change.before, change.after), encoding="utf-8")
    code = tested(change.tests.split(), folder)
    path.write_text(source, encoding="utf-8")
    return code == 1


def tested(tests: Iterable[str], folder: Path) -> int:
    """Run tests in the copy: 0 where they pass, 1 where one fails.

    Raises:
        RuntimeError: they could not be run.
    """
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {ended.returncode}\n{ended.stdout[-2000:]}")
    return ended.returncode


def main() -> None:
    """Try every change, print who noticed, exit 1 if one was not noticed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "copy"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", "__pycache__", "shared", "runs", "figures"))
        if tested(sorted({test for change in CHANGES for test in change.tests.split()}), folder) != 0:
            sys.exit("the tests fail without any change: mend them first")
        found = []
        for change in CHANGES:
            found.append(noticed(change, folder))
            print(f"{'noticed' if found[-1] else 'NOT NOTICED':12s} {change.what}", flush=True)
    print(f"{sum(found)} of {len(found)} noticed")
    sys.exit(not all(found))


if __name__ == "__main__":
    main()
