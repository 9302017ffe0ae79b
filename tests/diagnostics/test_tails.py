"""Tails so heavy that draws have no moments to give, and what the verdict says of them."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from vi_flows.diagnostics import diagnose, tail_shape
from vi_flows.diagnostics.measures import reach
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


def test_values_reach_twice_as_far_as_99_per_cent_where_the_tail_has_no_fourth_moment() -> None:
    """The quantile of a generalised Pareto tail is ``(0.01⁻ᵏ − 1) / k``: 18 for a shape of ½."""
    x = torch.stack([pareto(0.5), 100 + 3 * pareto(0.5), pareto(0.1), torch.ones(4000)], -1)
    low, high = reach(x[torch.randperm(4000)].reshape(4000, 2, 2))
    assert low.shape == high.shape == (2, 2)
    assert (low[0, 0].item(), high[0, 0].item()) == pytest.approx((-36, 36), rel=0.02)
    assert (low[0, 1].item(), high[0, 1].item()) == pytest.approx((100 - 108, 100 + 108), abs=2)
    assert low[1].tolist() == [-math.inf, -math.inf]
    assert high[1].tolist() == [math.inf, math.inf]
    for shape, finite in ((0.22, False), (0.26, True)):  # the estimate of the shape is drawn towards ½ by a twentieth
        assert math.isfinite(reach(pareto(shape))[1].item()) == finite
    assert reach(torch.zeros(200, 0))[0].shape == (0,)


def log_normal(sd: float, loc: float = 0.0) -> None:
    pyro.sample("x", dist.LogNormal(loc * torch.ones(3), sd).to_event(1))


def off(sd: float, narrow: float, loc: float) -> None:
    log_normal(narrow * sd, loc)


@pytest.mark.parametrize("sd", [1.5, 2.0])
def test_exact_draws_of_a_heavy_tail_are_not_warned_of(sd: float) -> None:
    """Their largest one is a hundred thousand times the median and decides any spread that is not bounded."""
    guide = AutoConvFlow(log_normal, prototype_args=(sd,))
    fit(log_normal, guide, sd, progress=False)
    for seed in range(3):
        found = diagnose(log_normal, guide, sd, seed=seed)
        assert found.verdict == "ok", found.reason
        assert "heavy tail" in found.reason
        assert found.shift is not None
        assert found.sd_ratio is not None


@pytest.mark.parametrize(("narrow", "loc"), [(0.5, 0.0), (0.7, 0.0), (1.3, 0.0), (1.0, 0.6)])
def test_wrong_draws_of_a_heavy_tail_are(narrow: float, loc: float) -> None:
    guide = AutoConvFlow(off, prototype_args=(1.5, narrow, loc))
    fit(off, guide, 1.5, narrow, loc, progress=False)

    def right(sd: float, narrow: float, loc: float) -> None:
        log_normal(sd)

    found = diagnose(right, guide, 1.5, narrow, loc)
    assert found.verdict == ("don't trust" if narrow == 0.5 else "use importance weights")
    # Weights give no sd of such a tail either; draws that are much narrower than it don't show it.
    assert ("take quantiles" in found.reason) == (narrow >= 1.0)
