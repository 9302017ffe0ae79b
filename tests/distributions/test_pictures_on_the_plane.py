"""The histograms of a flow's draws count every draw that lies in the view."""

from __future__ import annotations

import pytest
import torch

from vi_flows.fit2d.plotting import INNER, picture_of_draws
from vi_flows.transforms import Affine


def test_a_histogram_is_of_as_many_draws_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Affine(torch.ones(2))
    sizes: list[int] = []
    forward = flow.forward_and_ladj
    monkeypatch.setattr(flow, "forward_and_ladj", lambda z: sizes.append(len(z)) or forward(z))
    state = torch.random.get_rng_state()
    assert picture_of_draws(flow, 700)((-50.0, 50.0, -50.0, 50.0)).sum() == 700
    assert picture_of_draws(flow, 250_000)(INNER).sum() > 249_000
    assert sizes == [700, 100_000, 100_000, 50_000]
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        picture_of_draws(flow, 0)
