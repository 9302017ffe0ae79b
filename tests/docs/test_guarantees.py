"""The tests that the page of guarantees names are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT

NAME = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
ROW = re.compile(r"^\| (?P<promise>.+?) \| (?P<tests>.+) \|$", re.MULTILINE)


def promises(text: str) -> dict[str, list[tuple[str, str]]]:
    """By promise: files and functions that keep it."""
    rows = {row["promise"]: row["tests"] for row in ROW.finditer(text) if row["promise"] not in ("promise", "---")}
    return {promise: NAME.findall(tests) for promise, tests in rows.items()}


def test_functions_of(path: Path) -> set[str]:
    """Names of the test functions of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


test_functions_of.__test__ = False


def missing(text: str) -> list[str]:
    """Promises without a test, and tests that are not there."""
    found = []
    for promise, names in promises(text).items():
        found += [] if names else [promise]
        for file, function in names:
            path = ROOT / file
            if not path.exists() or function not in test_functions_of(path):
                found.append(f"{file}::{function}")
    return found


def test_every_promise_has_a_test():
    text = (PAGES / "guarantees.md").read_text(encoding="utf-8")
    assert len(promises(text)) >= 40
    assert missing(text) == []


@pytest.mark.parametrize(
    "row", ["| all is well | a test |", "| all is well | `tests/test_cli.py::test_none` |",
            "| all is well | `tests/test_nothing.py::test_demo` |"],
)  # fmt: skip
def test_a_promise_without_a_test_is_noticed(row):
    assert missing(row)
    assert not missing("| the demo runs | `tests/test_cli.py::test_demo` |")
