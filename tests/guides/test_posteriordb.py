"""The guide's defaults against reference draws, and `fit` on small targets whose answer is known."""

import os
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from vi_flows.guides import AutoConvFlow, fit
from vi_flows.objectives.path_gradient import supports_path_gradient

ROOT = Path(os.environ.get("VI_FLOWS_DATA", "shared/data"))
needs_data = pytest.mark.skipif(
    not (ROOT / "posteriordb").is_dir(), reason="no posteriordb/ below VI_FLOWS_DATA: reference draws are not there"
)


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", ["kidscore", "noncentred", "centred"])
def test_means_and_spreads_match_the_reference_draws(name):
    from experiments.gallery import eight_schools, kidscore
    from experiments.gallery.common import errors

    module = kidscore if name == "kidscore" else eight_schools
    model = kidscore.model if name == "kidscore" else getattr(eight_schools, name)
    args, reference = module.load()
    guide = AutoConvFlow(model)
    fit(model, guide, *args)
    found = errors(module.quantities(guide.sample_posterior(40_000)), reference)
    assert found["max_mean_error_sd"] < 0.1, found
    assert found["min_sd_ratio"] > 0.9, found
    assert found["max_sd_ratio"] < 1.1, found


def skewed():
    """A gamma variable and a Gaussian whose scale it sets: both marginals are known."""
    scale = pyro.sample("scale", dist.Gamma(4.0, 2.0))
    pyro.sample("x", dist.Normal(5.0, scale))


def test_fit_recovers_a_small_funnel():
    guide = AutoConvFlow(skewed)
    result = fit(skewed, guide, num_steps=700)
    assert abs(result.elbo) < 0.05  # the evidence is one
    assert len(result.losses) == result.num_steps <= 700
    draws = guide.sample_posterior(20_000)
    assert abs(draws["scale"].mean() - 2) < 0.1
    assert abs(draws["x"].mean() - 5) < 0.25
    assert abs(draws["x"].std() / 5**0.5 - 1) < 0.12


def test_fit_is_reproducible_and_leaves_the_generator_alone():
    first = fit(skewed, AutoConvFlow(skewed, flow_init_scale=0.0, num_blocks=1, mixing=False), num_steps=5)
    assert len(first.losses) == 5
    assert first.skipped_steps == 0
    fit(skewed, guide := AutoConvFlow(skewed, num_blocks=1), num_steps=3)
    twin = AutoConvFlow(skewed, num_blocks=1)
    twin.load_state_dict(guide.state_dict())
    a, b = fit(skewed, guide, num_steps=4), fit(skewed, twin, num_steps=4)
    assert a.losses == b.losses
    before = torch.get_rng_state()
    fit(skewed, guide, num_steps=2)
    assert torch.equal(before, torch.get_rng_state())


def test_fit_takes_any_guide():
    def guide():
        loc = pyro.param("loc", torch.tensor(4.0))
        pyro.sample("x", dist.Normal(loc, 1.0))

    def model():
        pyro.sample("x", dist.Normal(5.0, 1.0))

    pyro.clear_param_store()
    fit(model, guide, num_steps=300, learning_rate=0.05)
    assert abs(pyro.param("loc") - 5) < 0.1


def test_path_gradient_is_refused_for_jumping_log_determinants():
    smooth = AutoConvFlow(skewed, activation="tanh")
    jumping = AutoConvFlow(skewed, activation="leaky_relu")
    assert supports_path_gradient(smooth.transform)
    assert not supports_path_gradient(jumping.transform)


def test_bad_options_and_broken_models_are_named():
    guide = AutoConvFlow(skewed)
    with pytest.raises(ValueError, match="objective"):
        fit(skewed, guide, objective="chi")
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        fit(skewed, guide, num_steps=0)

    def broken():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.validation_enabled(False):
            pyro.factor("f", x * float("nan"))

    with pytest.warns(UserWarning, match="finite"), pytest.raises(RuntimeError, match="hundred steps"):
        fit(broken, AutoConvFlow(broken), num_steps=300)
