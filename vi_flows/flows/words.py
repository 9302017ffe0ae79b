"""Flows as single words of a command line, where their settings can't follow as options of their own."""

from __future__ import annotations

import ast
from dataclasses import fields

from vi_flows.flows.base import VectorFlow
from vi_flows.flows.vector import FLOWS
from vi_flows.settings import settings_from

__all__ = ["flow_from_words", "flow_in_words"]


def flow_from_words(words: str) -> VectorFlow | None:
    """A flow of the registry from its name, with its settings in brackets where they are not the defaults.

    ``real_nvp``, ``real_nvp(6)`` (the first setting says how long the flow is), or
    ``maf(num_layers=4, hidden_dims=(256,))``; ``none`` is ``None``.

    Raises:
        ValueError: there is no such flow, it has no such setting, or this is not how it is written.
    """
    try:
        tree = ast.parse(words.strip(), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        name = ast.unparse(call.func)
        values = [ast.literal_eval(value) for value in call.args]
        named = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
        if None in named:
            raise ValueError("stars unpack nothing here")
        # Python's compiler would refuse these; its parser doesn't.
        twice = [word.arg for word in call.keywords if [other.arg for other in call.keywords].count(word.arg) > 1]
    except (SyntaxError, ValueError):
        raise ValueError(f"a flow is written as NAME or NAME(SETTING=VALUE, …), got {words!r}") from None
    if name == "none" and not values and not named:
        return None
    if name not in FLOWS:
        raise ValueError(f"a flow must be one of {', '.join(FLOWS)} or none, got {name!r}")
    if len(values) > 1:
        raise ValueError(f"only the first setting of {name} goes without its name, got {words!r}")
    first = fields(FLOWS[name])[0].name
    twice += [first] if values and first in named else []
    if twice:
        raise ValueError(f"{twice[0]} of {name} is given twice in {words!r}")
    given = dict(zip([first], values, strict=False)) | {str(key): value for key, value in named.items()}
    return settings_from(FLOWS[name], given, name)


def flow_in_words(flow: VectorFlow | None) -> str:
    """What :func:`flow_from_words` reads as ``flow``."""
    if flow is None:
        return "none"
    settings = ", ".join(f"{name}={value!r}" for name, value in flow.changed())
    return f"{flow.name}({settings})" if settings else flow.name
