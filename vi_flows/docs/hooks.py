"""What the site takes from elsewhere in the repository: tables of records, figures, docstrings.

- ``<!-- record: NAME -->`` in a page becomes the table of that name of ``experiments/render_tables.py``, made from the
  committed records at every build.
- ``figures/NAME.png`` and ``figures/NAME.wav`` are the files of that name in the repository's ``figures``.
- ``api/ROOM.md`` shows every public name of a room with its docstring.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[2]
MARKER = re.compile(r"<!-- record: (?P<name>[\w-]+) -->")
ROOMS = {
    "guides": "Guides",
    "diagnostics": "Diagnostics",
    "flows": "Flows by name",
    "transforms": "Bijections",
    "distributions": "Distributions",
    "autoregressive": "Autoregressive densities",
    "vae": "VAEs",
    "objectives": "Objectives",
    "evaluation": "Evaluation",
    "data": "Data",
    "training": "Training",
}
"""Rooms with a page of their own, and its title."""


def public_names(room: str) -> list[str]:
    """What a room's ``__all__`` lists, without importing it."""
    tree = ast.parse((ROOT / "vi_flows" / room / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    raise ValueError(f"vi_flows.{room} has no __all__")


def api_page(room: str) -> str:
    """Markdown that mkdocstrings fills in."""
    parts = [f"# {ROOMS[room]}", f"`vi_flows.{room}`"]
    for name in public_names(room):
        # `vi_flows.guides.fit` is a function, and to a reader of files the module of that name, which holds it.
        in_module = (ROOT / "vi_flows" / room / f"{name}.py").exists()
        parts.append(f"::: vi_flows.{room}.{name}.{name}" if in_module else f"::: vi_flows.{room}.{name}")
    return "\n\n".join(parts) + "\n"


def tables() -> dict[str, Any]:
    """Functions that render the tables of records, by name."""
    for folder in (ROOT, ROOT / "experiments"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    return importlib.import_module("render_tables").SECTIONS


def with_tables(markdown: str) -> str:
    """A page with the tables that it asks for.

    Raises:
        KeyError: no table has that name.
    """
    if not MARKER.search(markdown):
        return markdown
    known = tables()
    return MARKER.sub(lambda match: "\n" + known[match["name"]]() + "\n", markdown)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The API pages stand at the end of the navigation, before the changelog."""
    assert config.nav is not None
    config.nav.insert(len(config.nav) - 1, {"API": [{title: f"api/{room}.md"} for room, title in ROOMS.items()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the figures and the API pages."""
    from mkdocs.structure.files import File

    for path in sorted(path for path in (ROOT / "figures").iterdir() if path.suffix in (".png", ".wav")):
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    for room in ROOMS:
        files.append(File.generated(config, f"api/{room}.md", content=api_page(room)))
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Put the tables in."""
    return with_tables(markdown)
