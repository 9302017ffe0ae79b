"""Docstrings of the package, which are written for the terminal, as Markdown of the site."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|mod|meth|data|attr|exc):`(~?)([\w.]+)`")
LITERAL = re.compile(r"::[ \t]*$", re.MULTILINE)
PROMPTS = re.compile(r"(?:^[ \t]*>>>.*\n(?:^[ \t]*[^\s>].*\n|^[ \t]*(?:>>>|\.\.\.).*\n)*)", re.MULTILINE)


def to_markdown(text: str) -> str:
    """Roles as links where the target is on the site, ``::`` as a colon, and examples as code.

    >>> to_markdown("see :func:`~vi_flows.fit`::")
    'see <autoref optional identifier="vi_flows.fit"><code>fit</code></autoref>:'
    """

    def link(match: re.Match[str]) -> str:
        shown = match[2].rpartition(".")[2] if match[1] else match[2]
        if "." not in match[2]:
            return f"`{shown}`"
        return f'<autoref optional identifier="{match[2]}"><code>{shown}</code></autoref>'

    def fenced(match: re.Match[str]) -> str:
        lines = match[0].rstrip("\n").split("\n")
        indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
        return "\n".join([f"{indent}```python", *lines, f"{indent}```", ""])

    text = ROLE.sub(link, text)
    text = re.sub(r"^[ \t]*::[ \t]*\n", "", text, flags=re.MULTILINE)
    text = LITERAL.sub(":", text)
    return PROMPTS.sub(fenced, text + "\n").removesuffix("\n")


class RolesToMarkdown(griffe.Extension):
    """Rewrites every docstring as it is read."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """See griffe."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
