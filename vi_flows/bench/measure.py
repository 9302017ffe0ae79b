"""Comparing two computations by interleaved runs of CPU time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["Measurement", "compare", "one_thread", "seconds_in_turn"]

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

    @classmethod
    def of(cls, numerator: Sequence[float], denominator: Sequence[float]) -> Measurement:
        """From the seconds of the two sides in each round."""
        ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else (ratios[0],) * 3
        a, b = (1e3 * statistics.median(side) for side in (numerator, denominator))
        return cls(statistics.median(ratios), low, high, a, b, len(ratios))


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
    times = seconds_in_turn({"numerator": numerator, "denominator": denominator}, rounds, min_seconds)
    return Measurement.of(times["numerator"], times["denominator"])


def seconds_in_turn(works: Mapping[str, Work], rounds: int, min_seconds: float = 0.03) -> dict[str, list[float]]:
    """CPU seconds of one call of each computation, at one thread, run in turn round by round.

    Args:
        works: by name, called again and again.
        rounds: how often each gets its turn.
        min_seconds: a turn repeats its call until it has lasted this long.

    Returns:
        Of each computation the seconds of each round.

    Raises:
        ValueError: no round.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    with one_thread():
        repeats = {name: _repeats(work, min_seconds) for name, work in works.items()}
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, work in works.items():
                times[name].append(_seconds(work, repeats[name]))
    return times


def _repeats(work: Work, min_seconds: float) -> int:
    for _ in range(2):  # the first call allocates, and some compile
        if _seconds(work, 1) > 30 * min_seconds:
            return 1
    return max(1, round(min_seconds / max(_seconds(work, 1), 1e-6)))


def _seconds(work: Work, repeats: int) -> float:
    begun = time.process_time()
    for _ in range(repeats):
        work()
    return max(time.process_time() - begun, 1e-9) / repeats
