"""The model given is the one that is answered for, or it is refused with the name of the site."""

import math
import random
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, fit

Y = torch.linspace(3.0, 7.0, 20)


def location(y=None, scale=10.0):
    mu = pyro.sample("mu", dist.Normal(0.0, scale))
    with pyro.plate("d", 20):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "args", "precision", "mean"),
    [
        (poutine.scale(location, scale=0.25), (Y,), 0.25 * 20.01, 100 / 20.01),
        (poutine.condition(location, data={"y": Y}), (), 20.01, 100 / 20.01),
    ],
)
def test_the_model_given_is_fitted(model, args, precision, mean):
    guide = AutoConvFlow(location, num_blocks=1)
    if args:
        guide.set_up(*args)
    fit(model, guide, *args, num_steps=2500)
    draws = guide.sample_posterior(8000)["mu"]
    assert abs(float(draws.mean()) - mean) < 0.1 * precision**-0.5
    assert float(draws.std()) == pytest.approx(precision**-0.5, rel=0.06)


def test_diagnose_weighs_by_the_model_given():
    guide = AutoConvFlow(location, num_blocks=1, prototype_args=(Y,))
    assert diagnose(partial(location, scale=0.1), guide, Y).verdict != "ok"


def test_sites_that_are_observed_now_are_refused():
    guide = AutoConvFlow(location, num_blocks=1, prototype_args=())
    for call in (fit, diagnose):
        with pytest.raises(ValueError, match="'y'"):
            call(location, guide, Y)


def test_parameters_of_the_model_are_trained():
    pyro.clear_param_store()

    def model(y):
        s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("d", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, s))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    fit(model, AutoConvFlow(model, num_blocks=1), Y, num_steps=700)
    assert pyro.param("s").item() == pytest.approx(float(Y.square().mean() - 1) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("observed", "value"),
    [
        (lambda a: dist.Normal(a, 1.0), float("nan")),
        (lambda a: dist.LogNormal(a, 1.0), 0.0),
        (lambda a: dist.Poisson(a.exp()), -1.0),
        (lambda a: dist.Poisson(a.exp()), 0.5),
        (lambda a: dist.Bernoulli(logits=a), 255.0),
        (lambda a: dist.Categorical(logits=torch.stack([a, -a])), 2.0),
    ],
)
def test_bad_observations_are_named(observed, value):
    def model():
        pyro.sample("seen", observed(pyro.sample("a", dist.Normal(0.0, 1.0))), obs=torch.tensor(value))

    guide = AutoConvFlow(model, num_blocks=1, warm_start=False)
    for call in (fit, diagnose):
        with pytest.raises(ValueError, match=rf"'seen'.*support.*{value}"):
            call(model, guide)


@pytest.mark.parametrize("values", [[1, 0, 1], [True, False, True]])
def test_whole_numbers_that_a_density_can_not_take_are_named(values):
    def model():
        share = pyro.sample("share", dist.Beta(torch.tensor(1.0), 1.0))
        with pyro.plate("rows", 3):
            pyro.sample("seen", dist.Bernoulli(share), obs=torch.tensor(values))

    guide = AutoConvFlow(model, num_blocks=1, warm_start=False)
    for call in (fit, diagnose):
        with pytest.raises(ValueError, match=r"'seen' \(Bernoulli\) has no density .* of shape \(3,\).*\.float\(\)"):
            call(model, guide)


def rows(n):
    with pyro.plate("d", n):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def bounded(upper):
    pyro.sample("z", dist.Uniform(0.0, upper))


def mirrored():
    pyro.sample("z", dist.TransformedDistribution(dist.HalfNormal(2.5), dist.transforms.AffineTransform(0.0, -1.0)))


def mirrored_vector():
    base = dist.HalfNormal(torch.ones(3)).to_event(1)
    pyro.sample(
        "z", dist.TransformedDistribution(base, dist.transforms.AffineTransform(1.0, torch.tensor([-1.0, 2, 3])))
    )


def above_one():
    pyro.sample("z", dist.TransformedDistribution(dist.Exponential(1.0), dist.transforms.ExpTransform()))


def circular():
    pyro.sample("z", dist.VonMises(0.0, 4.0))


@pytest.mark.parametrize(("model", "before", "now"), [
    (rows, (1,), (5,)), (bounded, (10.0,), (2.0,)), (mirrored, (), ()),
    (mirrored_vector, (), ()), (above_one, (), ()), (circular, (), ())])  # fmt: skip
def test_other_shapes_and_supports_are_refused(model, before, now):
    for call in (fit, diagnose):
        with pytest.raises(ValueError, match="'z'"):  # by the guide itself, if nothing changes
            call(model, AutoConvFlow(model, num_blocks=1, prototype_args=before, warm_start=False), *now)


def composed():
    """Composed distributions whose support is the declared one."""
    pyro.sample("a", dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(1.0, -2.0)))
    pyro.sample("b", dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.ExpTransform()))
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    pyro.sample("c", dist.TransformedDistribution(base, dist.transforms.OrderedTransform()))
    pyro.sample("d", dist.TransformedDistribution(base, dist.transforms.StickBreakingTransform()))
    pyro.sample(
        "e", dist.TransformedDistribution(base, dist.transforms.LowerCholeskyAffine(torch.ones(3), torch.eye(3)))
    )
    pyro.sample("f", dist.TransformedDistribution(dist.Uniform(0.0, 1.0), dist.transforms.SigmoidTransform().inv))


def test_composed_distributions_are_fitted():
    guide = AutoConvFlow(composed, num_blocks=1)
    assert fit(composed, guide, num_steps=1).elbo == pytest.approx(0.0, abs=0.2)
    assert diagnose(composed, guide).log_evidence == pytest.approx(0.0, abs=0.1)


def latent(subsampled=True):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("d", 20, subsample_size=5 if subsampled else None):
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=torch.zeros(5) if subsampled else Y)


@pytest.mark.parametrize("subsampled", [True, False])
def test_hidden_sites_are_refused(subsampled):
    hidden = poutine.block(latent, hide=["z"])
    guide = AutoConvFlow(hidden, num_blocks=1, warm_start=False, prototype_args=(subsampled,))
    for call in (fit, diagnose):
        with pytest.raises(ValueError, match=r"continuous latent sites 'z'"):
            call(latent, guide, subsampled)
        with pytest.raises(ValueError, match=r"'y'.*hidden"):
            call(hidden, guide, subsampled)


def generator_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


@pytest.mark.parametrize("kind", ["ours", "ours, begun by fit", "Pyro's"])
def test_fit_and_diagnose_leave_all_generators_alone(kind):
    if kind == "Pyro's":
        guide = AutoNormal(rows)
        guide(2)
    else:
        guide = AutoConvFlow(rows, num_blocks=1, prototype_args=(2,) if kind == "ours" else None)
    before = generator_states()
    fit(rows, guide, 2, num_steps=2)
    assert generator_states() == before
    diagnose(rows, guide, 2, num_samples=200)
    assert generator_states() == before


def test_predictive_takes_from_torch_alone_and_seeds_nothing():
    guide = AutoConvFlow(rows, num_blocks=1)
    before, states, draws = generator_states(), [], []
    for seed in (3, 3, 3, 4):  # at the first call the guide looks for its start, too
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            draws.append(Predictive(rows, guide=guide, num_samples=4)(2))
            states.append(torch.get_rng_state().tolist())
        assert generator_states() == before
    assert states[1] == states[2] != states[3]
    assert all(torch.equal(value, draws[2][name]) for name, value in draws[1].items())
    assert any(not torch.equal(value, draws[3][name]) for name, value in draws[1].items())


def test_an_empty_site_beside_another():
    def model():
        pyro.sample("none", dist.Normal(torch.zeros(0), 1.0).to_event(1))
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a, 1.0), obs=torch.tensor(1.0))

    guide = AutoConvFlow(model, prototype_args=())
    result = fit(model, guide, num_steps=100)
    report = diagnose(model, guide, num_samples=500)
    evidence = -0.5 * math.log(2 * math.pi * 2) - 0.25  # y ~ N(0, 2)
    assert result.elbo == pytest.approx(evidence, abs=0.02)
    assert report.log_evidence == pytest.approx(evidence, abs=0.02)
    assert set(report.shift) == {"a"}
    assert guide.quantiles([0.5])["none"].shape == (1, 0)
