"""The histograms of a flow's draws count every draw that lies in the view."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributions import AffineTransform

from vi_flows.fit2d.plotting import INNER, picture_of_draws, plot_panels_2d
from vi_flows.flows import MAF
from vi_flows.transforms import Affine, FromPyro


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


def test_flows_in_double_precision_and_of_single_entries_are_drawn() -> None:
    assert picture_of_draws(MAF(1, (4,)).build(2).double(), 500)(INNER).sum() == 500
    assert picture_of_draws(FromPyro(AffineTransform(0.0, 2.0)), 500)((-50.0, 50.0, -50.0, 50.0)).sum() == 500


def test_the_file_is_the_one_that_was_named(tmp_path: Path) -> None:
    panel = ("flow", picture_of_draws(Affine(torch.zeros(2)), 100), INNER)
    assert plot_panels_2d([panel], tmp_path / "picture").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="panels is empty"):
        plot_panels_2d([], tmp_path / "none.png")
    with pytest.raises(ValueError, match="columns must be at least 1"):
        plot_panels_2d([panel], tmp_path / "none.png", columns=0)
    with pytest.raises(ValueError, match="view of 'flow'"):
        plot_panels_2d([(*panel[:2], (5.0, -5.0, -5.0, 5.0))], tmp_path / "none.png")
    assert [file.name for file in tmp_path.iterdir()] == ["picture"]
