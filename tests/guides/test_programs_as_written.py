"""Programs as people write them: loops over plates, densities without draws, PyTorch's own distributions."""

from __future__ import annotations

import pickle
import re
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from vi_flows import AutoConvFlow, diagnose, fit
from vi_flows.guides.pairs import pair_of
from vi_flows.guides.resampling import resampled_indices

Y = torch.tensor([1.0, 2.0])


def a_loop(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for i in pyro.plate("rows", 2):
        z = pyro.sample(f"z_{i}", dist.Normal(mu, 1.0))
        pyro.sample(f"y_{i}", dist.Normal(z, 1.0), obs=y[i])


def a_loop_within_a_plate(y):
    with pyro.plate("columns", 3):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("rows", 2):
            pyro.sample(f"y_{i}", dist.Normal(mu, 1.0), obs=y[i].expand(3))


def a_part_of_a_loop(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for i in pyro.plate("rows", 2, subsample_size=1):
        z = pyro.sample(f"z_{i}", dist.Normal(mu, 1.0))
        pyro.sample(f"y_{i}", dist.Normal(z, 1.0), obs=y[i])


@pytest.mark.parametrize(("model", "dims"), [(a_loop, ()), (a_loop_within_a_plate, ("columns",))])
def test_loops_over_plates_have_a_datatree(model, dims):
    tree = fit(model, AutoConvFlow(model), Y, num_steps=3, progress=False).to_datatree(num_draws=10)
    for group in ("log_likelihood", "posterior_predictive"):
        assert {name: tree[group][name].dims[2:] for name in tree[group].data_vars} == {"y_0": dims, "y_1": dims}


def test_latents_in_a_part_of_a_loop_are_named():
    with pytest.raises(ValueError, match=r"latent site 'z_[01]' lives in the subsampled plate 'rows' \(1 of 2\)"):
        fit(a_part_of_a_loop, AutoConvFlow(a_part_of_a_loop), Y, progress=False)


def test_densities_without_draws_leave_the_predictive_alone():
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample(
            "k", dist.LogNormalNegativeBinomial(torch.tensor(5.0), mu, torch.tensor(1.0)), obs=torch.tensor(3.0)
        )
        pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.tensor(0.5))

    result = fit(model, AutoConvFlow(model), num_steps=3, progress=False)
    with pytest.warns(UserWarning, match=r"the distributions of \['k'\] have no draws in Pyro"):
        tree = result.to_datatree(num_draws=10)
    assert set(tree["posterior_predictive"].data_vars) == {"y"}
    assert set(tree["log_likelihood"].data_vars) == {"k", "y"}


def test_a_good_guide_is_resampled_without_a_warning_where_its_weights_are_nearly_equal():
    weights = torch.zeros(2000)
    weights[:40] = torch.linspace(0.01, 0.3, 40).flip(0) ** 3  # a heavy tail of next to nothing
    weights[0] = 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resampled_indices(weights, 100)
    with pytest.warns(UserWarning, match="the guide misses mass"):
        resampled_indices(20 * weights, 100)


def test_a_prior_that_nothing_bounds_is_not_called_an_observation():
    def model():
        s = pyro.sample("s", dist.ImproperUniform(dist.constraints.positive, (), (2,)))
        pyro.sample("y", dist.Normal(s[..., 0], 1.0), obs=torch.tensor(0.3))

    with pytest.raises(RuntimeError, match=r"Draws of 's' are infinite: the posterior has no finite mass there"):
        fit(model, AutoConvFlow(model), progress=False)


def beyond_float32():
    s = pyro.sample("s", dist.Gamma(0.02, 1.0))  # 17 % of its draws are below 1e-38
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x + s, 1.0), obs=torch.tensor(0.3))


def test_draws_that_float32_can_not_hold_are_why_steps_are_not_finite():
    guide = AutoConvFlow(beyond_float32)
    pair = pair_of(beyond_float32, guide, (), {})
    fit(beyond_float32, guide, num_steps=1, progress=False)
    moments = torch.tensor([-60.0, 0.0]).double(), torch.tensor([[2500.0, 0.0], [0.0, 0.5]]).double()
    guide.location_scale.set_gaussian(*moments)  # log s has a standard deviation of 50
    assert re.search(r"Draws of 's' \(\d+%\) are so near a bound that torch.float32", pair.without_density())


@pytest.mark.parametrize("seed", [0, 4])
def test_a_posterior_that_float32_can_not_hold_is_not_given_as_good(seed):
    """Whether a fit meets a hundred such steps in a row is up to chance; one that doesn't has a verdict."""
    guide = AutoConvFlow(beyond_float32)
    try:
        fit(beyond_float32, guide, num_steps=300, seed=seed, progress=False)
        report = diagnose(beyond_float32, guide, num_samples=1000)
        assert report.verdict == "don't trust"
        said = report.reason
    except RuntimeError as error:
        said = str(error)
    assert re.search(r"raws of 's' .*are so near a bound that (torch\.)?float32", said)


@pytest.mark.parametrize("site", ["x", "y"])
def test_distributions_of_pytorchs_own_are_refused_by_name(site):
    kinds = {name: torch.distributions.Normal if name == site else dist.Normal for name in ("x", "y")}

    def model():
        x = pyro.sample("x", kinds["x"](0.0, 1.0))
        pyro.sample("y", kinds["y"](x, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match=rf"site '{site}' is a torch.distributions.Normal: use Pyro's"):
        fit(model, AutoConvFlow(model), num_steps=1, progress=False)


def test_a_latent_without_a_declared_support_has_a_reason():
    def model():
        x = pyro.sample("x", dist.GaussianScaleMixture(torch.ones(2), torch.zeros(2), torch.ones(2)))
        pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match=r"leads to \(it declares none\): sample what it is made of"):
        fit(model, AutoConvFlow(model), num_steps=1, progress=False)


def test_a_guide_from_a_file_says_what_to_do():
    guide = AutoConvFlow(a_loop, prototype_args=(Y,))
    loaded = pickle.loads(pickle.dumps(guide))
    with pytest.raises(RuntimeError, match="holds no model; construct one with the model and load_state_dict"):
        loaded.resample(10, Y)
    assert diagnose(a_loop, loaded, Y).num_samples > 0
