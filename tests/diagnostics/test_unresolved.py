"""Posteriors that lean on a bound more closely than floating-point numbers can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch

from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, fit

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


@pytest.mark.parametrize(("a", "b", "lost"), [(51.7, 0.11, True), (0.03, 3.0, True), (2.0, 0.5, False)])
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
