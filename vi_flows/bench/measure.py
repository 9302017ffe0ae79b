"""Comparing two computations by interleaved runs of CPU time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["Measurement", "compare", "one_thread"]

Work = Callable[[], object]


@dataclass(frozen=True)
class Measurement:
    """Two sides, and how many times one costs the other.

    Attributes:
        ratio: median over the rounds of numerator time / denominator time.
        low: first quartile of the rounds' ratios.
        high: third quartile.
        numerator_ms: median CPU milliseconds of one call.
        denominator_ms: the same of the other side.
        rounds: how many pairs were run.
    """

    ratio: float
    low: float
    high: float
    numerator_ms: float
    denominator_ms: float
    rounds: int


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch (and the kernels, which follow it) on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compare(numerator: Work, denominator: Work, rounds: int = 9, min_seconds: float = 0.03) -> Measurement:
    """Time two computations alternately, so that a change of the machine's speed meets both.

    CPU time of the process is what counts: other programs on the machine hardly change it.

    Args:
        numerator: called again and again.
        denominator: what it is compared with.
        rounds: pairs of runs.
        min_seconds: each run repeats its call until it has lasted this long.

    Raises:
        ValueError: no round.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    with one_thread():
        sides = [(work, _repeats(work, min_seconds)) for work in (numerator, denominator)]
        times = [[_seconds(work, repeats) for work, repeats in sides] for _ in range(rounds)]
    ratios = [a / b for a, b in times]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if rounds > 1 else (ratios[0],) * 3
    a, b = (1e3 * statistics.median(side) for side in zip(*times, strict=True))
    return Measurement(statistics.median(ratios), low, high, a, b, rounds)


def _repeats(work: Work, min_seconds: float) -> int:
    for _ in range(2):  # the first call allocates, and some compile
        work()
    return max(1, round(min_seconds / max(_seconds(work, 1), 1e-6)))


def _seconds(work: Work, repeats: int) -> float:
    begun = time.process_time()
    for _ in range(repeats):
        work()
    return max(time.process_time() - begun, 1e-9) / repeats
