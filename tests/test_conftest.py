"""The settings of all tests."""

import pytest
import torch
from torch.distributions import Distribution, Normal


@pytest.mark.parametrize("turn", [1, 2])
def test_what_turns_argument_validation_off_ends_with_its_test(turn):
    with pytest.raises(ValueError, match="Expected parameter scale"):
        Normal(0.0, torch.tensor(-1.0))
    Distribution.set_default_validate_args(False)  # as torch.compile does at its first use, for the whole process
    Normal(0.0, torch.tensor(-1.0))
