"""Observed sites of a simulated program: their shapes, and those that are neither data nor parameters."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam

from vi_flows.diagnostics import simulation_based_calibration
from vi_flows.guides import AutoConvFlow, datatree
from vi_flows.guides.amortize import Simulator, fit_amortized

ZERO = torch.tensor(0.0)


def noisy():
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    t = pyro.sample("t", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(t, s), obs=ZERO)


def observed_twice():
    t = pyro.sample("t", dist.Normal(0.0, 1.0))
    pyro.sample("c", dist.Normal(t, 0.1), obs=torch.tensor(2.0))
    pyro.sample("x", dist.Normal(t, 1.0), obs=ZERO)


AT = torch.tensor(0.1)


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (poutine.condition(noisy, {"s": AT}), "s"),
        (poutine.uncondition(poutine.condition(noisy, {"s": AT})), "s"),
        (observed_twice, "c"),
    ],
)
def test_observed_sites_that_are_no_data_are_refused(program, name):
    wanted = rf"site '{name}' is observed.*data=\('x', '{name}'\).*leave its observation out.*poutine\.do"
    with pytest.raises(ValueError, match=wanted):
        Simulator(program, data="x")
    with pytest.raises(ValueError, match=wanted):
        fit_amortized(program, data="x", progress=False)
    with pytest.raises(ValueError, match=wanted):
        simulation_based_calibration(program, AutoConvFlow, data="x", num_replications=20)


def test_the_ways_out_are_ways_out():
    """With s = 0.1 the residual has the standard deviation 0.1; over its prior it has e = 2.72."""
    fixed = Simulator(poutine.do(noisy, {"s": AT}), parameters="t", data="x")
    drawn = fixed.draw(4000)
    assert float((drawn.data["x"] - drawn.values["t"]).std()) == pytest.approx(0.1, rel=0.05)
    both = Simulator(observed_twice, data=("x", "c"))
    drawn = both.draw(4000)
    assert both.parameters == ("t",)
    assert float((drawn.data["c"] - drawn.values["t"]).std()) == pytest.approx(0.1, rel=0.05)
    assert Simulator(poutine.condition(noisy, {"s": AT})).data == ("s", "x")
    assert Simulator(noisy, parameters="t", data="x").has_nuisance


def test_computed_sites_are_no_observations():
    def program():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        theta = pyro.sample("theta", dist.Normal(mu, 0.5))
        pyro.deterministic("twice", 2 * theta)
        pyro.deterministic("nothing", torch.tensor(float("nan")))
        pyro.sample("point", dist.Delta(theta), obs=theta)
        with pyro.plate("rows", 3):
            pyro.deterministic("in_rows", theta)
            pyro.sample("x", dist.Normal(theta, 1.0), obs=torch.zeros(3))

    for made in (program, poutine.reparam(program, {"theta": LocScaleReparam(0.0)})):
        drawn = Simulator(made, data="x").draw(50)
        assert drawn.data["x"].shape == (50, 3)


def test_values_in_place_of_computed_ones_are_refused():
    def program():
        t = pyro.sample("t", dist.Normal(0.0, 1.0))
        x = pyro.deterministic("x", 2 * t)
        pyro.sample("y", dist.Normal(x, 1.0), obs=ZERO)

    with pytest.raises(ValueError, match=r"'x' is computed, and is given another value.*condition the sites"):
        Simulator(poutine.condition(program, {"x": torch.tensor(3.0)}), data="y")


def vector():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.zeros(10))


def stretched():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu * torch.ones(1, 2), 1.0), obs=torch.zeros(5, 2))


def of_events():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu * torch.ones(2), 1.0).to_event(1), obs=torch.zeros(5, 2))


def plated():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 10):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.tensor(0.0))


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("program", "shape"), [(vector, (10,)), (stretched, (5, 2)), (of_events, (5, 2)), (plated, (10,))]
)
def test_data_have_the_shape_of_their_observations(program, shape, at_once):
    torch.manual_seed(0)
    drawn = Simulator(program).draw(1000, at_once=at_once)
    assert drawn.data["y"].shape == (1000, *shape)
    noise = drawn.data["y"].reshape(1000, 10) - drawn.values["mu"][:, None]
    assert float(noise.std()) == pytest.approx(1.0, abs=0.03)
    # Ten independent numbers, and not one in ten places.
    assert float((torch.corrcoef(noise.T) - torch.eye(10)).abs().max()) < 0.2


def test_rows_against_rows_are_refused():
    def crossed():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu * torch.ones(10), 1.0), obs=torch.zeros(10, 1))

    with pytest.raises(ValueError, match=r"'y' has values of shape \(10, 1\).*\(10,\)"):
        Simulator(crossed)


def test_a_mean_of_ten_is_learnt_from_ten():
    """The posterior of mu has the standard deviation 11^-1/2 = 0.302; from one datum it would be 0.707."""
    options = {"num_simulations": 2000, "num_epochs": 15, "hidden_dims": (16,), "progress": False}
    y = torch.linspace(-1.0, 2.0, 10)
    draws = fit_amortized(vector, **options).sample(y, (4000,), seed=0)["mu"]
    assert float(draws.mean()) == pytest.approx(float(y.sum()) / 11, abs=0.1)
    assert float(draws.std()) == pytest.approx(11**-0.5, abs=0.06)


@pytest.mark.parametrize("kind", ["DiscreteHMM", "GaussianHMM"])
def test_hidden_markov_models_are_drawn_for_their_duration(kind):
    y = torch.linspace(-1.0, 1.0, 5)

    def program(duration):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        if kind == "DiscreteHMM":
            steps = dist.Normal(torch.stack([mu, -mu]), 1.0)
            fn = dist.DiscreteHMM(torch.zeros(2), torch.zeros(2, 2), steps, duration=duration)
        else:
            one = dist.Normal(torch.zeros(1), 1.0).to_event(1)
            start = dist.Normal(mu[None], 1.0).to_event(1)
            fn = dist.GaussianHMM(start, torch.eye(1), one, torch.eye(1), one, duration=duration)
        pyro.sample("y", fn, obs=y if kind == "DiscreteHMM" else y[:, None])

    shape = (5,) if kind == "DiscreteHMM" else (5, 1)
    guide = AutoConvFlow(program, num_blocks=1, prototype_args=(5,))
    pytest.importorskip("xarray")
    assert datatree(program, guide, (5,), num_draws=3)["posterior_predictive"]["y"].shape == (4, 3, *shape)
    assert Simulator(program, (5,)).draw(3).data["y"].shape == (3, *shape)
    wanted = rf"site 'y' is a {kind} without a duration.*duration=len\(y\)"
    with pytest.raises(ValueError, match=wanted):
        datatree(program, AutoConvFlow(program, num_blocks=1, prototype_args=(None,)), (None,), num_draws=3)
    with pytest.raises(ValueError, match=wanted):
        Simulator(program, (None,))
