"""The progress bar of a fit."""

from __future__ import annotations

import math
from types import TracebackType

from vi_flows.guides.remaining import Remaining
from vi_flows.progress import progress_bar

__all__ = ["Progress"]


class Progress:
    """A bar with the ELBO (smoothed over about 50 steps), what remains to be gained, and the time left.

    The time left is that to the most steps there can be, until the descent of the learning rate begins, whose end is
    known; a fit with nothing left to gain ends earlier.

    Args:
        total: the most steps.
        shown: whether to show it where the standard error is a terminal.
    """

    def __init__(self, total: int, shown: bool) -> None:
        self.bar = progress_bar(total=total, desc="fit", unit="step", shown=shown, leave=False)
        self._elbo = math.nan
        self._left = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.close()

    def step(self, elbo: float) -> None:
        """One step with its estimate of the ELBO."""
        if self.bar.disable:
            return
        if math.isfinite(elbo):
            self._elbo = elbo if math.isnan(self._elbo) else 0.96 * self._elbo + 0.04 * elbo
        self.bar.update()
        if self.bar.n % 20 == 0:
            self._show()

    def look(self, remaining: Remaining) -> None:
        """A new estimate of what remains."""
        self._left = f", to gain {remaining.kl:.3f} ± {remaining.kl_se:.3f} nats" if math.isfinite(remaining.kl) else ""
        self._show()

    def expect(self, total: int) -> None:
        """The step at which the fit ends."""
        if not self.bar.disable:
            self.bar.total = total
            self.bar.refresh()

    def _show(self) -> None:
        if not self.bar.disable:
            self.bar.set_postfix_str(f"ELBO {self._elbo:.3f}{self._left}")
