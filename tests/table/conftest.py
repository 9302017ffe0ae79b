"""What the tests of tables share."""

import pytest

from vi_flows.table import Workplace


@pytest.fixture
def place(tmp_path):
    """Where runs and records lie."""
    return Workplace(tmp_path / "runs", tmp_path / "results")
