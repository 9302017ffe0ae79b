"""A slice of the fuzz run over the readers, and that the run would notice what it looks for."""

from __future__ import annotations

import random

import pytest

from tests import fuzz_readers
from tests.fuzz_readers import KINDS, Kind, files_of, fuzz, input_of
from vi_flows.data import DataCorruptError


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_or_refused_in_a_sentence(name: str) -> None:
    tally = fuzz(name, range(200))
    assert tally.failures == {}
    assert tally.read + tally.refused == 200
    assert tally.read > 0
    assert len(tally.reasons) > 1


@pytest.mark.parametrize("name", KINDS)
def test_the_files_themselves_are_good_or_of_known_kinds_that_are_refused(name: str) -> None:
    good = 0
    for content in files_of(name):
        try:
            KINDS[name].read(content)
            good += 1
        except DataCorruptError:
            pass
    assert good


def test_inputs_are_the_same_every_time() -> None:
    assert input_of("npy", 0, 7) == input_of("npy", 0, 7)
    assert len({input_of("npy", 0, number) for number in range(50)}) > 40
    assert input_of("npy", 0, 7) != input_of("npy", 1, 7)


def slow(content: bytes) -> None:
    while True:
        random.random()


def large(content: bytes) -> None:
    """Made out to be, by the peak that the test gives."""


def hidden(content: bytes) -> None:
    try:
        raise MemoryError
    except MemoryError as error:
        raise DataCorruptError("damaged") from error


def wordy(content: bytes) -> None:
    raise DataCorruptError("one\ntwo")


def foreign(content: bytes) -> None:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("read", "found"),
    [(slow, "more than"), (large, "MiB"), (hidden, "MemoryError"), (wordy, "no sentence"), (foreign, "KeyError")],
)
def test_what_must_not_be_is_noticed(read: object, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_readers, "SECONDS", 0.1)
    monkeypatch.setattr(fuzz_readers, "peak", iter([0, 1 << 30, 0]).__next__ if read is large else lambda: 0)
    monkeypatch.setitem(KINDS, "bad", Kind(lambda: [b"abc"], read))
    files_of.cache_clear()
    assert found in fuzz("bad", range(1)).failures["0"]
