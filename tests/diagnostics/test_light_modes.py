"""Modes of little mass: told where they move a moment, and no modes where nothing lies around their tops."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide.initialization import init_to_value

from vi_flows.diagnostics import diagnose
from vi_flows.diagnostics.elsewhere import missed_mass
from vi_flows.guides import AutoConvFlow, fit


@pytest.mark.parametrize(("y", "told"), [((0.2, -0.4, 25.0), "m = 24.9"), ((0.0, 0.5, 15.0), "m = 14.8")])
def test_a_light_mode_far_away_is_told_as_it_widens_the_posterior(y, told):
    """An outlier among three Cauchy observations: 0.1 % of the mass make the sd 1.4 times as large, as sums tell."""

    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 20.0))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Cauchy(m, 1.0), obs=y)

    y = torch.tensor(y)
    # Without the search for modes of a start, which may find it.
    guide = AutoConvFlow(
        model, warm_start=False, init_scale=0.5, init_loc_fn=init_to_value(values={"m": torch.tensor(0.1)})
    )
    fit(model, guide, y, num_steps=300, seed=0, progress=False)
    report = diagnose(model, guide, y)
    grid = torch.linspace(-150.0, 150.0, 300_001).double()
    weight = (dist.Normal(0.0, 20.0).log_prob(grid) + dist.Cauchy(grid[:, None], 1.0).log_prob(y).sum(-1)).softmax(0)
    sd = float((weight @ grid.square() - (weight @ grid) ** 2).sqrt())
    pyro.set_rng_seed(1)
    draws = guide.sample_posterior(20_000)["m"]
    assert sd > 1.25 * float(draws.std())
    assert report.verdict == "don't trust"
    assert told in report.elsewhere


def test_a_top_without_mass_around_it_is_not_missed():
    # Denser than ten times the guide at its top, and less dense where it has its draws, 30 nats below.
    here = dist.Normal(torch.zeros(60).double(), 1.0).to_event(1)
    top = torch.full((60,), math.sqrt(100 / 60)).double()
    there = dist.Normal(top, 0.1).to_event(1)
    log_weight = 9.0 - 50.0 - 60 * math.log(10.0)

    def log_p(x):
        return torch.logaddexp(here.log_prob(x), there.log_prob(x) + log_weight)

    assert float(log_p(top) - here.log_prob(top)) == pytest.approx(9.0, abs=1e-3)
    torch.manual_seed(0)
    assert missed_mass(log_p, here.log_prob, here.sample((1000,)), 0.0, hints=[top]) is None
