"""The house was rebuilt without changing a loss, but for what is said."""

from __future__ import annotations

import pytest

from experiments.first_losses import ROWS, Options, as_before, first_losses
from vi_flows.data import DataNotFoundError
from vi_flows.records import Record


@pytest.fixture(scope="module")
def record():
    return Record.read(Options().record)


def test_the_record_says_which_are_equal_to_the_bit(record):
    assert record.figures["equal_to_the_bit"] == {"vae": True, "image": False, "image, as before 8b9847f": True}
    assert {name: len(losses) for name, losses in record.figures["now"].items()} == {
        "vae": 100, "image": 100, "image, as before 8b9847f": 100,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_they_come_out_again(record, row):
    with as_before():
        try:
            losses = first_losses(ROWS[row], 5)
        except DataNotFoundError:
            pytest.skip("needs MNIST's files")
    assert losses == pytest.approx(record.figures["before"][row][:5], rel=1e-5)
