"""Plates that are loops: they say nothing that a guide of one joint vector would have to know."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger

__all__ = ["WithoutSequentialPlates"]


class WithoutSequentialPlates(Messenger):
    """Leaves ``for i in pyro.plate(…)`` out of what sites say of themselves, where the loop is over all of the plate.

    Pyro's guides refuse such programs; their sites have names and shapes of their own like any others.
    """

    def _pyro_sample(self, msg: Any) -> None:
        msg["cond_indep_stack"] = tuple(
            frame for frame in msg["cond_indep_stack"] if frame.vectorized or frame.size != frame.full_size
        )
