"""The site: what it takes from the repository, and the links of what is built."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import PAGES, ROOT, command_lines
from vi_flows.cli.main import COMMANDS
from vi_flows.flows import FLOWS

DOCS = PAGES.parent


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"site_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_tables_come_from_the_records():
    hooks = load("hooks")
    text = hooks.with_tables("before\n\n<!-- record: fit2d-table -->\n\nafter")
    assert "| conv_flow K = 8 | 80 |" in text
    assert "record:" not in text
    with pytest.raises(KeyError, match="no-table"):
        hooks.with_tables("<!-- record: no-table -->")


def test_every_table_is_shown():
    names = set(load("hooks").tables())
    shown = {name for page in PAGES.glob("*.md") for name in names if f"<!-- record: {name} -->" in page.read_text()}
    assert shown == names


def test_api_pages_name_what_is_public():
    hooks = load("hooks")
    assert {"AutoConvFlow", "fit"} <= set(hooks.public_names("guides"))
    assert "::: vi_flows.guides.fit.fit\n" in hooks.api_page("guides")
    rooms = {path.parent.name for path in (ROOT / "vi_flows").glob("*/__init__.py")}
    without_api = {"bench", "cli", "fit2d", "kernels", "nn", "table"}  # commands, and what the other rooms are made of
    assert set(hooks.ROOMS) == rooms - without_api


def test_every_flow_can_be_chosen():
    page = (PAGES / "choosing.md").read_text(encoding="utf-8")
    assert [name for name in FLOWS if f"`{name}`" not in page] == []


def test_every_command_is_shown():
    lines = [line for page in PAGES.glob("*.md") for line in command_lines(page)]
    assert {shlex.split(line)[1] for line in lines} == set(COMMANDS)


def test_docstrings_become_markdown():
    pytest.importorskip("griffe")
    to_markdown = load("docstrings").to_markdown
    assert to_markdown(":func:`~vi_flows.fit`::\n\n    fit()") == (
        '<autoref optional identifier="vi_flows.fit"><code>fit</code></autoref>:\n\n    fit()'
    )
    assert to_markdown("see :class:`Chain`, :meth:`a.b`") == (
        'see `Chain`, <autoref optional identifier="a.b"><code>a.b</code></autoref>'
    )
    assert to_markdown("one\n\n>>> 1 + 1\n2\n\ntwo") == "one\n\n```python\n>>> 1 + 1\n2\n```\n\ntwo"


class _Page(HTMLParser):
    """Where a page points to, what it loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.loads, self.ids = set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found[key] for key in ("id", "name") if key in found}
        if tag in ("a", "link") and found.get("href"):
            (self.links if tag == "a" else self.loads).add(found["href"])
        if found.get("src"):
            self.loads.add(found["src"])


def broken(site: Path) -> list[str]:
    """Links and files of a built site that lead nowhere, and whatever is loaded from elsewhere."""
    pages = {path.resolve(): _Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    found = []
    for path, page in pages.items():
        for target in sorted(page.links | page.loads):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                found += [f"{path.name} loads {target}"] if target in page.loads else []
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            file = file / "index.html" if file.is_dir() else file
            if not file.exists() or (parts.fragment and file in pages and parts.fragment not in pages[file].ids):
                found.append(f"{path.name}: {target}")
    return found


def test_a_broken_link_is_noticed(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#x">b</a><img src="c.png"><a href="https://pyro.ai">elsewhere</a>')
    (tmp_path / "b.html").write_text('<p id="y"><script src="https://example.org/x.js"></script>')
    assert sorted(broken(tmp_path)) == ["a.html: b.html#x", "a.html: c.png", "b.html loads https://example.org/x.js"]


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", DOCS / "mkdocs.yml", "-d", tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "site").rglob("*.html"))) > 20
    assert broken(tmp_path / "site") == []
