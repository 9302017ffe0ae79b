"""The paired bootstrap."""

from __future__ import annotations

import pytest
import torch

from vi_flows.evaluation import paired_bootstrap


def test_what_both_models_share_cancels() -> None:
    torch.manual_seed(0)
    shared = 30 * torch.randn(400, dtype=torch.float64)
    change = 0.5 + torch.randn(400, dtype=torch.float64)
    result = paired_bootstrap(shared + change, shared, seed=1)
    assert result.difference == pytest.approx(change.mean().item())
    half = 1.96 * change.std().item() / 20
    assert result.interval[0] == pytest.approx(result.difference - half, abs=0.02)
    assert result.interval[1] == pytest.approx(result.difference + half, abs=0.02)
    assert result.distinct
    assert result.num_rows == 400
    assert result == paired_bootstrap(shared + change, shared, seed=1)
    assert not paired_bootstrap(shared, shared).distinct


def test_scores_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        paired_bootstrap(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="one image says nothing of how images differ"):
        paired_bootstrap(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="image 1 is not finite"):
        paired_bootstrap(torch.tensor([0.0, torch.nan]), torch.zeros(2))
