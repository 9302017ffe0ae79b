"""The README's examples run as written, and its tables say what the records say."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pyro

ROOT = Path(__file__).parent.parent


def test_examples_run_as_written():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted > 8
    assert result.failed == 0


def test_tables_equal_the_records():
    command = [sys.executable, str(ROOT / "experiments" / "render_tables.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0
