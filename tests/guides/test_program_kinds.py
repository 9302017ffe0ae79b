"""More kinds of programs: keywords of fit, Delta sites, branches, bad data before the start, guides of one's own."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from vi_flows.diagnostics import diagnose
from vi_flows.guides import AmortizedFlowGuide, AutoConvFlow, fit

Y = torch.tensor([1.0, 2.0, -0.5])
NAN = float("nan")


def normal(x, sd):
    return -0.5 * (x / sd) ** 2 - math.log(sd) - 0.5 * math.log(2 * math.pi)


def test_keywords_that_fit_and_diagnose_have_too():
    def model(num_steps, seed=0):
        with pyro.plate("t", num_steps):
            pyro.sample("z", dist.Normal(float(seed), 1.0))

    guide = AutoConvFlow(model, num_blocks=1)
    fit(model, guide, num_steps=5, model_kwargs={"num_steps": 3, "seed": 2})
    assert guide.sample_posterior(2)["z"].shape == (2, 3)
    report = diagnose(model, guide, num_steps=3, seed=1, model_kwargs={"seed": 2})
    assert report.log_evidence == pytest.approx(0.0, abs=0.01)
    with pytest.raises(ValueError, match="'z'"):
        diagnose(model, guide, model_kwargs={"num_steps": 4, "seed": 2})


def test_delta_sites_are_left_to_the_model():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Delta(2 * a))
        pyro.sample("y", dist.Normal(b, 1.0), obs=torch.tensor(1.0))

    report = diagnose(model, AutoConvFlow(model, num_blocks=1))
    assert report.log_evidence == pytest.approx(normal(1.0, 5**0.5), abs=0.01)


def test_branches_on_values_are_followed_and_changing_sites_refused():
    def values():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a if a > 0 else -a, 1.0), obs=torch.tensor(1.0))

    def sites():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0)) if a > 0 else 0.0
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=torch.tensor(1.0))

    guide = AutoConvFlow(values, num_blocks=1, init_scale=1.0)
    report = diagnose(values, guide)
    # Twice the positive half of N(1; a, 1) N(a; 0, 1), which is N(1; 0, 2) N(a; 1/2, 1/2).
    assert report.log_evidence == pytest.approx(normal(1.0, 2**0.5) + math.log(1 + math.erf(0.5)), abs=0.03)
    with pytest.raises(ValueError, match=r"'b'.*torch\.where"):
        fit(sites, AutoConvFlow(sites, num_blocks=1, warm_start=False))


def test_a_partial_model_is_fitted():
    def model(y, scale):
        with pyro.plate("d", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, scale))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    given = partial(model, Y, scale=2.0)
    result = fit(given, AutoConvFlow(given, num_blocks=1), num_steps=100)
    assert result.elbo == pytest.approx(sum(normal(y, 5**0.5) for y in Y.tolist()), abs=0.02)


def bad(values):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.LogNormal(a, 1.0).expand([2]).to_event(1), obs=torch.tensor(values))


@pytest.mark.parametrize("values", [(1.0, 0.0), (1.0, NAN), (1.0, math.inf)])
def test_bad_data_are_named_before_the_start(values):
    with pytest.raises(ValueError, match=rf"'y'.*support.*{values[1]}"):
        AutoConvFlow(bad, prototype_args=(values,))


@pytest.mark.parametrize("missing", [NAN, -1.0, math.inf])
def test_what_is_masked_out_within_a_distribution_may_be_anything(missing):
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        rows = dist.LogNormal(a, 1.0).expand([2]).mask(torch.tensor([True, False])).to_event(1)
        pyro.sample("y", rows, obs=torch.tensor([1.0, missing]))

    guide = AutoConvFlow(model, num_blocks=1)
    result = fit(model, guide, num_steps=50)
    assert result.skipped_steps == 0
    assert diagnose(model, guide).log_evidence == pytest.approx(normal(0.0, 2**0.5), abs=0.01)


def rows(y):
    with pyro.plate("d", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def with_mean(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("d", len(y)):
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_guides_of_other_kinds_are_checked_too():
    amortized = AmortizedFlowGuide(1, 1, scalar=True)

    def local(y):
        pyro.module("local", amortized)
        with pyro.plate("d", len(y)):
            pyro.sample("z", amortized(y.nan_to_num(0.0)[:, None]))

    def one_for_all(y):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros(())), 1.0))

    assert math.isfinite(fit(rows, local, Y, num_steps=2).elbo)
    for call in (fit, diagnose):
        with pytest.raises(ValueError, match=r"'a' is not in the guide"):
            call(with_mean, local, Y)
        with pytest.raises(ValueError, match=r"'z' has shape \(3,\) in the model, and \(\)"):
            call(rows, one_for_all, Y)
        with pytest.raises(ValueError, match=r"'y'.*support.*nan"):
            call(rows, local, torch.tensor([1.0, NAN]))
