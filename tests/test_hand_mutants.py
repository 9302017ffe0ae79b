"""The changes by hand that the tests must notice still have their places in the code."""

import pytest

from tests.hand_mutants import CHANGES, ROOT


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[0])
def test_what_is_to_be_changed_stands_there_once(change):
    assert (ROOT / "vi_flows" / change.file).read_text(encoding="utf-8").count(change.before) == 1
