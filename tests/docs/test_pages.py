"""Every block of code of the site runs, and prints what the page says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import shlex
from pathlib import Path

import pyro
import pytest

import vi_flows
from tests.docs.pages import PAGES, ROOT, Runner, command_lines
from vi_flows.cli.main import _parse

FILES = sorted(PAGES.glob("*.md"))
each_page = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def _an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pyro.clear_param_store()


@each_page
def test_python_blocks_run(path):
    Runner({"python"}).run(path)


@pytest.mark.slow
@each_page
def test_commands_run(path):
    Runner({"bash"}).run(path)


@pytest.mark.parametrize("path", [ROOT / "README.md", *FILES], ids=lambda path: path.stem)
def test_commands_are_commands(path):
    for line in command_lines(path):
        assert _parse(shlex.split(line)[1:]).run is not None


def test_there_is_something_to_run():
    texts = "".join(path.read_text(encoding="utf-8") for path in FILES)
    assert texts.count("```python\n") >= 15
    assert texts.count("```text\n") >= 15
    assert sum(len(command_lines(path)) for path in FILES) >= 30


def test_blocks_can_fail(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:5"):
        Runner({"python"}).run(page)
    page.write_text("```bash\necho two\n```\n\n```text\ntwo\n```\n\n```bash\nfalse\n```\n")
    with pytest.raises(AssertionError, match="exit code 1"):
        Runner({"bash"}).run(page)
    Runner({"python"}).run(page)
    page.write_text('<!-- skip: next "an hour" -->\n\n```bash\nfalse\n```\n')
    Runner({"bash"}).run(page)


def test_examples_of_docstrings_run():
    folder = Path(vi_flows.__file__).parent
    names = [info.name for info in pkgutil.walk_packages([str(folder)], "vi_flows.")]
    texts = {name: folder.parent.joinpath(*name.split(".")) for name in names}
    with_examples = [
        name
        for name, path in texts.items()
        for file in (path.with_suffix(".py"), path / "__init__.py")
        if file.is_file() and ">>> " in file.read_text(encoding="utf-8")
    ]
    assert with_examples
    for name in with_examples:
        result = doctest.testmod(importlib.import_module(name))
        assert result.attempted > 0
        assert result.failed == 0
