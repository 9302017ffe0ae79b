"""The sites of Pyro's traces, with types that can be worked with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, cast

from pyro.poutine import Trace
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample

__all__ = ["Site", "is_deterministic", "is_subsample", "nodes", "stochastic_nodes"]

Site = dict[str, Any]
"""A site: ``type``, ``name``, ``fn``, ``value``, ``is_observed``, ``infer``, … as in Pyro's documentation.

Pyro declares a dictionary whose entries may all be ``None`` and whose distribution is any callable.
"""


def nodes(trace: Trace) -> MutableMapping[str, Site]:
    """``trace.nodes`` itself: sites by name, in the order in which they ran."""
    return cast("MutableMapping[str, Site]", trace.nodes)


def stochastic_nodes(trace: Trace) -> Iterator[tuple[str, Site]]:
    """``trace.iter_stochastic_nodes()``: names and sites of what is sampled and not observed."""
    return cast("Iterator[tuple[str, Site]]", trace.iter_stochastic_nodes())


def is_deterministic(site: Mapping[str, Any]) -> bool:
    """Whether the site only notes a value (``pyro.deterministic``), wherever it stands: it has no density."""
    return bool(site["infer"].get("_deterministic"))


def is_subsample(site: Mapping[str, Any]) -> bool:
    """Whether the site draws the indices of a subsampled plate."""
    return site_is_subsample(cast("Message", site))
