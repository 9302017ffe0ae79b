"""The pages of the site as documents whose blocks run.

A block of ``python`` runs in its page's one namespace, a block of ``bash`` in its page's one folder; a block of
``text`` after either is what it printed (``...`` for what may differ). ``<!-- skip: next "reason" -->`` before a block
of ``bash`` says why it doesn't run.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from unittest import SkipTest

from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "vi_flows" / "docs" / "pages"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass
class Runner:
    """Runs the blocks of some languages, and checks what they print."""

    languages: Collection[str]
    printed: str | None = None
    """By the block before; None: it did not run."""
    num_run: int = 0
    num_checked: int = 0

    def python(self, example: Example) -> None:
        self.printed = None
        if "python" in self.languages:
            code = compile("\n" * (example.line + 1) + example.parsed, example.path, "exec", dont_inherit=True)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, example.namespace)
            self.printed, self.num_run = out.getvalue(), self.num_run + 1

    def bash(self, example: Example) -> None:
        self.printed = None
        if "bash" in self.languages:
            self.printed, self.num_run = shell(example.parsed), self.num_run + 1

    def text(self, example: Example) -> None:
        if self.printed is None:
            return
        self.num_checked += 1
        if not doctest.OutputChecker().check_output(example.parsed, self.printed, FLAGS):
            raise AssertionError(f"{example.path}:{example.line}: not what was printed:\n{self.printed}")

    def run(self, path: Path) -> None:
        """Run a page, top to bottom."""
        for example in self.parse(path).examples():
            try:
                example.evaluate()
            except SkipTest:
                self.printed = None

    def parse(self, path: Path) -> Document:
        parsers = [CodeBlockParser(name, getattr(self, name)) for name in ("python", "bash", "text")]
        return Sybil(parsers=[SkipParser(), *parsers]).parse(path)


def shell(script: str) -> str:
    """What commands print, with the executables of this environment.

    Raises:
        AssertionError: one of them failed.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "NO_COLOR": "1"}
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit code {done.returncode} of\n{script}\n{done.stderr[-2000:]}"
    return done.stdout


def command_lines(path: Path) -> list[str]:
    """Every ``vi-flows`` command of a page, those of skipped blocks too, continued lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.partition(" #")[0] for line in lines if line.startswith("vi-flows ")]
