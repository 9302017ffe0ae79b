"""Are ranks uniform? Bands for the empirical distribution function that hold at all points at once."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.stats import binom

__all__ = ["Band", "ecdf_band"]

NUM_NULL = 2000
"""Simulated sets of uniform ranks behind each band and p-value."""


class Band:
    r"""Simultaneous limits of the empirical distribution function of ``N`` uniform ranks among ``L`` draws.

    At each of the points ``z_1 … z_K`` the number of ranks at or below is ``Binomial(N, z_i)``. With ``F`` its
    distribution function, ``γ = 2 min_i min(F(R_i), 1 − F(R_i − 1))`` says how far out a set of ranks is at its worst
    point; its distribution under uniformity is simulated (Säilynoja, Bürkner and Vehtari 2022, section 3.1).

    Attributes:
        points: ``z_i``.

    Args:
        num_ranks: ``N``.
        num_draws: ``L``; ranks are ``0 … L``.
    """

    def __init__(self, num_ranks: int, num_draws: int) -> None:
        self.num_ranks, self.num_draws = num_ranks, num_draws
        count = min(num_draws, 100)
        # Points that are ranks, so that the counts are binomial without a rounding.
        upper = np.unique(np.round(np.linspace(0, num_draws, count + 1)[:-1]).astype(int))
        self._upper = upper
        self.points = (upper + 1) / (num_draws + 1)
        generator = np.random.default_rng(0)
        counts = np.stack([self.counts(generator.integers(0, num_draws + 1, num_ranks)) for _ in range(NUM_NULL)])
        self._null = np.sort(self._gamma(counts))

    def counts(self, ranks: np.ndarray) -> np.ndarray:
        """``R_i``: how many of the ranks lie at or below each point."""
        return np.searchsorted(np.sort(ranks), self._upper, side="right")

    def _gamma(self, counts: np.ndarray) -> np.ndarray:
        below = binom.cdf(counts, self.num_ranks, self.points)
        above = binom.sf(counts - 1, self.num_ranks, self.points)
        return 2 * np.minimum(below, above).min(-1)

    def p_value(self, ranks: np.ndarray) -> float:
        """Of uniformity: the share of sets of uniform ranks ``0 … L`` that are as far out."""
        gamma = float(self._gamma(self.counts(ranks)))
        share = (1 + int(np.searchsorted(self._null, gamma * (1 + 1e-9), side="right"))) / (1 + NUM_NULL)
        # Beyond the simulated sets: as a minimum of p-values, γ has a distribution that is linear near zero.
        first = float(np.quantile(self._null, 0.01))
        return share if gamma >= first else min(share, 0.01 * gamma / first)

    def limits(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper limits at :attr:`points` between which a share ``level`` of sets lies all over."""
        first = float(np.quantile(self._null, 0.01))
        gamma = float(np.quantile(self._null, 1 - level)) if level <= 0.99 else first * (1 - level) / 0.01
        low = binom.ppf(gamma / 2, self.num_ranks, self.points) / self.num_ranks
        high = binom.ppf(1 - gamma / 2, self.num_ranks, self.points) / self.num_ranks
        return low, high


@lru_cache(maxsize=8)
def ecdf_band(num_ranks: int, num_draws: int) -> Band:
    """The band of these numbers, made once."""
    return Band(num_ranks, num_draws)
