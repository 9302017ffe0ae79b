"""Progress bars: on a terminal, for what takes longer than a second; never in a pipe or a log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

__all__ = ["progress_bar"]

DELAY_SECONDS = 1.0


def progress_bar(over: Iterable[Any] | None = None, *, shown: bool = True, **options: Any) -> tqdm:
    """A bar on the standard error where that is a terminal, once a second has passed.

    Elsewhere nothing is written: the metrics of a run, and ``vi-flows runs``, say how far it is.

    Args:
        over: what to iterate over; ``None`` for a bar that is updated by hand.
        shown: whether to show it at all.
        options: of :class:`tqdm.tqdm`: ``total``, ``unit`` and the like.
    """
    # tqdm looks for a terminal itself where ``disable`` is None.
    return tqdm(over, disable=None if shown else True, delay=DELAY_SECONDS, dynamic_ncols=True, **options)
