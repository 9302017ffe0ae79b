"""Tails so heavy that draws have no moments to give, and what the verdict says of them."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from vi_flows.diagnostics import diagnose, tail_shape
from vi_flows.guides import AutoConvFlow, fit


def pareto(shape: float, size: int = 4000) -> Tensor:
    """Quantiles of both signs of a generalised Pareto law, as even as can be."""
    p = (torch.arange(size // 2, dtype=torch.float64) + 0.5) / (size // 2)
    x = ((1 - p) ** -shape - 1) / shape
    return torch.cat([-x, x])


@pytest.mark.parametrize("shape", [0.1, 0.5, 1.0, 1.5])
def test_the_shape_of_a_known_tail(shape: float) -> None:
    """190 of 4000 draws, with a prior that weighs ten and believes in 0.5."""
    expected = (190 * shape + 10 * 0.5) / 200
    assert tail_shape(pareto(shape)).item() == pytest.approx(expected, abs=0.04)


def test_coordinates_scales_and_places() -> None:
    x = torch.stack([pareto(0.2), 1e6 + 30 * pareto(0.9), torch.ones(4000), torch.linspace(0, 1, 4000)], -1)
    shapes = tail_shape(x[torch.randperm(4000)].reshape(4000, 2, 2))
    assert shapes.shape == (2, 2)
    assert shapes[0, 0].item() == pytest.approx(0.215, abs=0.03)
    assert shapes[0, 1].item() == pytest.approx(0.88, abs=0.03)
    assert shapes[1, 0].item() == -math.inf
    assert shapes[1, 1].item() < -0.5
    assert tail_shape(torch.zeros(20, 0)).shape == (0,)
    assert tail_shape(torch.arange(10.0)).item() == -math.inf


def half_cauchy() -> None:
    pyro.sample("x", dist.HalfCauchy(torch.tensor(1.0)))


def normal() -> None:
    pyro.sample("y", dist.Normal(torch.tensor(0.0), 1.0))


def test_moments_that_do_not_exist_are_not_called_right() -> None:
    guide = AutoConvFlow(half_cauchy)
    fit(half_cauchy, guide, progress=False)
    found = diagnose(half_cauchy, guide)
    assert set(found.heavy_tails) == {"x"}
    assert found.heavy_tails["x"] > 0.7
    assert "heavy tails   x " in str(found)
    assert found.verdict != "ok" or "draws give no mean and no sd: take quantiles" in found.reason
    guide = AutoConvFlow(normal)
    found = diagnose(normal, guide)
    assert (found.verdict, found.heavy_tails) == ("ok", {})
    assert "heavy" not in str(found)
