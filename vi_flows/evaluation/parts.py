"""The parts of a long evaluation: made one after the other, and taken up again where they have been kept."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["NOT_KEPT", "Parts"]


class Parts:
    """What an evaluation makes its parts through; this class keeps none of them.

    A part's draws depend on the seed and on its own position alone, so that an evaluation which takes up kept parts
    ends with the bits of one that was never stopped.

    Attributes:
        seconds_before: wall time that the parts taken up had cost.
        cpu_seconds_before: their CPU time.
    """

    seconds_before: float = 0.0
    cpu_seconds_before: float = 0.0

    def part(self, name: str, first: int, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The figures of some rows: what ``make`` gives, or what it gave before.

        Args:
            name: of the figures' kind.
            first: position of the part's first row.
            make: the work; called where the part is not there yet.
        """
        return make()


NOT_KEPT = Parts()
"""Every part is made anew."""
