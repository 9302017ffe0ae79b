"""Posteriors that lean on a bound more closely than floating-point numbers can tell."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch

from vi_flows.diagnostics import diagnose
from vi_flows.diagnostics.rounding import density_step, steps_per_sd
from vi_flows.guides import AutoConvFlow, fit
from vi_flows.guides.pairs import Draws

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[request.param])
    yield request.param
    torch.set_default_dtype(before)


def beta(a: float, b: float) -> Callable[[], None]:
    return lambda: pyro.sample("q", dist.Beta(torch.tensor(a), torch.tensor(b)))


def test_log_odds_that_no_probability_has(dtype: str) -> None:
    """The largest ``float32`` below 1 has log-odds of 16.6, the largest ``float64`` 36.7; the smallest −87 and −708."""
    guide = AutoConvFlow(beta(1.0, 1.0))
    x = torch.tensor([[-705.0], [-84.0], [-20.0], [0.0], [10.0], [14.0], [20.0], [34.0], [40.0]])
    expected = {"float32": 5 / 9, "float64": 2 / 9}[dtype]  # −705, −84, 20, 34, 40, and −705, 40
    assert guide.unresolved(x)["q"] == pytest.approx(expected)


def test_numbers_of_the_real_line_and_zeros_that_are_meant_are_told_apart() -> None:
    def model() -> None:
        pyro.sample("real", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("factor", dist.LKJCholesky(3, 1.0))
        pyro.sample("parts", dist.Dirichlet(torch.ones(3)))
        pyro.sample("none", dist.Normal(torch.zeros(0), 1.0).to_event(1))
        pyro.sample("rate", dist.Gamma(torch.ones(2), 1.0).to_event(1))

    guide = AutoConvFlow(model)
    x = torch.randn(8, guide.latent_dim)
    assert guide.unresolved(x) == {"real": 0.0, "factor": 0.0, "parts": 0.0, "rate": 0.0}
    x[0, :2] = 0.0
    x[0, -1] = x[1, -1] = -86.0
    x[2, 5] = -100.0  # the first of the parts
    assert guide.unresolved(x) == {"real": 0.0, "factor": 0.0, "parts": 0.125, "rate": 0.25}


@pytest.mark.parametrize(
    ("a", "b", "lost"), [(51.7, 0.11, True), pytest.param(0.03, 3.0, True, marks=pytest.mark.slow), (2.0, 0.5, False)]
)
def test_a_posterior_beyond_the_numbers_is_not_trusted(a: float, b: float, lost: bool) -> None:
    """A quarter of the first one's mass is nearer to 1 than 3e-8, and its evidence is off by 0.28 nats."""
    pyro.set_rng_seed(0)
    model = beta(a, b)
    guide = AutoConvFlow(model)
    fit(model, guide, progress=False)
    found = diagnose(model, guide)
    if lost:
        assert found.verdict == "don't trust"
        assert "of the draws of 'q' are so near a bound that float32 has no numbers to tell them apart" in found.reason
    else:
        assert (found.verdict, round(found.log_evidence, 2)) == ("ok", 0.0)


def test_double_precision_is_the_way_out() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        pyro.set_rng_seed(0)
        model = beta(0.03, 3.0)
        guide = AutoConvFlow(model)
        fit(model, guide, progress=False)
        found = diagnose(model, guide)
        assert (found.verdict, round(found.log_evidence, 1)) == ("ok", 0.0)
    finally:
        torch.set_default_dtype(torch.float32)


def test_numbers_far_from_zero_lie_apart() -> None:
    """Between 2²³ and 2²⁴ ``float32`` knows whole numbers only, from 2²⁶ multiples of 8, below 1 multiples of 2⁻²⁴."""
    x = torch.tensor([-1.0, 0.0, 1.0])[:, None] + torch.tensor([[1e7, -1e7, 0.0, 5.0]])
    x = torch.cat([x, torch.tensor([[8e7], [8.0e7 + 16], [8.0e7 - 16]]), torch.tensor([[0.75], [0.5], [1.0]])], 1)
    expected = [1.0, 1.0, 2.0**-23, 2.0**-21, 8 / 16, 2.0**-24 / 0.25]
    torch.testing.assert_close(steps_per_sd(x), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0.0)
    far = steps_per_sd(torch.tensor([[1e7, math.inf, 0.0], [1e7, 1.0, 1.0]]))
    assert far.tolist() == [math.inf, 0.0, pytest.approx(0.0, abs=1e-6)]
    assert float(steps_per_sd(x.double())[0]) == pytest.approx(2.0**-29)


def at(loc: float, scale: float) -> Callable[[], None]:
    return lambda: pyro.sample("t", dist.Normal(torch.tensor([0.0, loc]), torch.tensor([1.0, scale])).to_event(1))


def step(start: float) -> Callable[[], None]:
    """When a level rises, in seconds since 1970, of one measurement a minute."""
    elapsed = 60 * torch.arange(200.0)
    y = 2.0 * (elapsed > 5000.0) + torch.randn(200, generator=torch.Generator().manual_seed(0))

    def model() -> None:
        low, high = pyro.sample("low", dist.Normal(0.0, 5.0)), pyro.sample("high", dist.Normal(0.0, 5.0))
        t = pyro.sample("t", dist.Uniform(start, start + 12000.0))
        share = torch.sigmoid((start + elapsed - t) / 120.0)
        pyro.sample("y", dist.Normal(low + (high - low) * share, 1.0).to_event(1), obs=y)

    return model


def rare(count: float) -> Callable[[], None]:
    counts = torch.tensor([count, 3.0, 2.0])

    def model() -> None:
        t = pyro.sample("t", dist.Dirichlet(torch.ones(3)))
        pyro.factor("counts", (counts * t.log()).sum())

    return model


def still() -> None:
    """A part and the factor's first row are 1 in each draw, as they should be."""
    pyro.sample("t", dist.LKJCholesky(3, 1.0))
    pyro.sample("one", dist.Dirichlet(torch.ones(1)))


def correlations() -> None:
    """The diagonal is 1, and what rounding makes of it."""
    pyro.sample("t", dist.LKJ(6, torch.tensor(2.0)))


@pytest.mark.parametrize(
    ("model", "steps"),
    [
        (at(1e8, 8.0), 1.0), (at(1e6, 1.0), None), pytest.param(step(1.7e9), 1.28, marks=pytest.mark.slow),
        pytest.param(step(0.0), None, marks=pytest.mark.slow), (rare(1e8), 2.0),
        (rare(1e6), None), (still, None), (correlations, None),
    ],
    ids=["1e8", "1e6", "seconds", "elapsed", "rare", "not-rare", "constants", "correlations"],
)  # fmt: skip
def test_draws_that_are_rounded_to_their_own_spread_are_not_trusted(
    model: Callable[[], None], steps: float | None
) -> None:
    """The means of rare(1e8)'s small parts are off by 1.5 standard deviations."""
    pyro.set_rng_seed(0)
    guide = AutoConvFlow(model)
    fit(model, guide, progress=False)
    found = diagnose(model, guide)
    if steps is None:
        assert found.verdict == "ok"
    else:
        assert found.verdict == "don't trust"
        told = re.match(r"the numbers that float32 has for 't' lie (\S+) of its standard deviations", found.reason)
        assert told is not None
        assert float(told[1]) == pytest.approx(steps, rel=0.15)


@pytest.mark.slow
def test_a_diagonal_of_rounding_alone_does_not_move() -> None:
    """Sums of numbers near 1 are rounded by more than its spread, of which its mean seemed to move by many."""
    torch.set_default_dtype(torch.float64)
    try:
        pyro.set_rng_seed(0)
        guide = AutoConvFlow(correlations)
        fit(correlations, guide, num_steps=100, progress=False)
        found = diagnose(correlations, guide)
        assert found.verdict == "ok"
        assert float(found.shift["t"].abs().max()) < 0.1
        assert all(0.9 < float(ratio) < 1.1 for ratio in found.sd_ratio["t"].flatten())
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_step_of_a_density() -> None:
    """Numbers next to 3 are 2⁻²² apart; of 1000 draws the first 200 are asked for."""
    x = torch.full((1000, 2), 3.0)
    x[200:] = math.nan
    x[:100, 1] = 0.0  # its neighbours are 1e-45 away

    def steep(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 0] > 3.0, math.inf, 2.0**22 * x.double().sum(-1))

    draws = Draws(x, steep, None, lambda x: {}, False, lambda x: {})
    assert density_step(draws) == pytest.approx((100 * 1 + 100 * 2) ** 0.5 / 200**0.5, rel=0.12)
    assert density_step(dataclasses.replace(draws, log_density=lambda x: torch.full((len(x),), -math.inf))) == 0.0


def parabola(num: int) -> Callable[[], None]:
    """Powers of a year, uncentred."""
    x = torch.linspace(2000.0, 2020.0, num)
    noise = 0.1 * torch.randn(num, generator=torch.Generator().manual_seed(0))
    y = 1.3 * (x - 2010.0) + 0.02 * (x - 2010.0) ** 2 + noise

    def model() -> None:
        a, b = pyro.sample("a", dist.Normal(0.0, 1e6)), pyro.sample("b", dist.Normal(0.0, 1e4))
        c = pyro.sample("c", dist.Normal(0.0, 10.0))
        pyro.sample("y", dist.Normal(a + b * x + c * x * x, 0.1).to_event(1), obs=y)

    return model


@pytest.mark.slow
@pytest.mark.parametrize(("num", "verdict"), [(50, "ok"), (2000, "don't trust")])
def test_a_density_that_rounding_spoils_is_named_as_such(num: int, verdict: str) -> None:
    """The conditional spread of ``a`` of 2000 values is 0.002, and the numbers next to 77 600 are 0.008 apart."""
    pyro.set_rng_seed(0)
    model = parabola(num)
    guide = AutoConvFlow(model)
    fit(model, guide, progress=False)
    found = diagnose(model, guide)
    assert found.verdict == verdict
    told = re.search(r"numbers of float32 differ by (\S+) nats of the log density", found.reason)
    assert (told is None) == (verdict == "ok")
    if told is not None:
        assert float(told[1]) == pytest.approx(56.0, rel=0.3)
