"""What hurts users of Pyro's flow guides: each pain with what the stock guide does, and what ours does instead."""

import copy
import io

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow, init_to_value
from pyro.optim import Adam
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from tests.guides.models import correlated, gaussian, hierarchical
from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, AutoFlow, SubsampledLatentError


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def stock(model, transform=pyro_transforms.affine_autoregressive):
    return AutoNormalizingFlow(model, transform)


def train(model, guide, *args, steps=20):
    svi = SVI(model, guide, Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(steps):
        svi.step(*args)


def test_1_subsampled_local_latents_are_refused_where_stock_answers_wrongly():
    y = torch.arange(20.0) * 3
    guide = stock(hierarchical)
    guide(y, 5)
    assert guide.latent_dim == 6  # stock: five places of the minibatch stand for twenty latents, without a word
    with pytest.raises(SubsampledLatentError, match=r"'z'.*'rows'.*5 of 20.*AmortizedFlowGuide"):
        AutoConvFlow(hierarchical, prototype_args=(y, 5))
    lazy = AutoConvFlow(hierarchical)
    for _ in range(2):  # and again at the second call
        with pytest.raises(SubsampledLatentError):
            lazy(y, 5)
    assert AutoConvFlow(hierarchical, prototype_args=(y,)).latent_dim == 21
    assert AutoConvFlow(hierarchical, prototype_args=(y, 5, False)).latent_dim == 1  # subsampled data are fine


def test_1_create_plates_is_accepted():
    y = torch.arange(20.0)
    with pytest.raises(TypeError):
        AutoNormalizingFlow(hierarchical, pyro_transforms.planar, create_plates=lambda y: None)
    guide = AutoConvFlow(hierarchical, create_plates=lambda y: pyro.plate("rows", 20), prototype_args=(y,))
    assert guide(y)["z"].shape == (20,)


def test_3_external_points_are_scored():
    guide = stock(correlated, pyro_transforms.planar)
    guide()
    with pytest.raises((KeyError, NotImplementedError)):
        guide.get_posterior().log_prob(torch.zeros(3))
    ours = AutoConvFlow(correlated)
    _randomise(ours)
    values = {"x": torch.randn(4, 5, 3) * 3}
    log_prob = ours.log_prob(values)
    assert log_prob.shape == (4, 5)
    noise, _ = ours.get_transform().inverse_and_ladj(values["x"])
    jacobian = torch.autograd.functional.jacobian(lambda z: ours.get_transform()(z), noise[1, 2])
    expected = ours.get_base_dist().log_prob(noise[1, 2]) - jacobian.det().abs().log()
    torch.testing.assert_close(log_prob[1, 2], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.get_posterior().log_prob(values["x"]), log_prob)


def test_4_no_stale_answer_after_an_optimizer_step():
    def score_twice(guide, x):
        before = guide.get_posterior().log_prob(x)
        with torch.no_grad():
            for p in guide.parameters():
                p.add_(0.1)
        return before, guide.get_posterior().log_prob(x)

    guide = stock(correlated)
    guide()
    x = guide.get_posterior().rsample()
    before, after = score_twice(guide, x)
    fresh = guide.get_posterior().log_prob(x.clone())
    assert not torch.allclose(after, fresh)  # stock: the cached preimage of the old parameters
    ours = AutoConvFlow(correlated)
    x = ours.get_posterior().rsample()
    before, after = score_twice(ours, x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, ours.get_posterior().log_prob(x.clone()))


def test_4_deepcopy_after_use():
    guide = stock(correlated)
    train(correlated, guide)
    guide.get_posterior().rsample()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(guide)
    ours = AutoConvFlow(correlated)
    train(correlated, ours)
    ours.get_posterior().rsample()
    twin = copy.deepcopy(ours)
    assert twin.model is ours.model
    x = torch.randn(3)
    torch.testing.assert_close(twin.get_posterior().log_prob(x), ours.get_posterior().log_prob(x))
    pyro.clear_param_store()  # the store knows both by one name
    train(correlated, twin)
    assert not torch.equal(twin.get_posterior().log_prob(x), ours.get_posterior().log_prob(x))


def test_5_parameters_exist_right_after_construction():
    assert not list(stock(correlated).parameters())
    ours = AutoConvFlow(correlated)
    assert list(ours.parameters())
    with_arguments = AutoConvFlow(hierarchical, prototype_args=(torch.arange(3.0),))
    assert list(with_arguments.parameters())
    lazy = AutoConvFlow(hierarchical)
    assert not list(lazy.parameters())
    with pytest.raises(RuntimeError, match="prototype_args"):
        lazy.get_posterior()
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.01)
    before = ours.get_posterior().log_prob(torch.zeros(3)).item()
    Trace_ELBO(num_particles=4).differentiable_loss(correlated, ours).backward()
    optimizer.step()
    assert ours.get_posterior().log_prob(torch.zeros(3)).item() != before


def test_5_state_loads_into_a_fresh_guide():
    guide = stock(correlated)
    train(correlated, guide)
    pyro.clear_param_store()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        stock(correlated).load_state_dict(guide.state_dict())
    ours = AutoConvFlow(correlated)
    train(correlated, ours)
    fresh = AutoConvFlow(correlated)
    fresh.load_state_dict(ours.state_dict())
    x = torch.randn(3)
    torch.testing.assert_close(fresh.get_posterior().log_prob(x), ours.get_posterior().log_prob(x))


def test_6_saving_leaves_the_live_guide_alone():
    guide = stock(gaussian, pyro_transforms.planar)
    guide()
    torch.save(guide, io.BytesIO())
    assert guide._model is None  # stock
    ours = AutoConvFlow(gaussian)
    train(gaussian, ours)
    file = io.BytesIO()
    torch.save(ours, file)
    assert ours.model is not None
    before = diagnose(gaussian, ours, num_samples=200).log_weights
    train(gaussian, ours, steps=1)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded()["x"].shape == ()
    assert loaded.median()["x"].isfinite()
    with pytest.raises(RuntimeError, match="holds no model"):
        loaded.model
    assert torch.equal(diagnose(gaussian, loaded, num_samples=200).log_weights, before)


def test_6_safetensors_take_the_state():
    guide = stock(correlated)
    guide()
    with pytest.raises(RuntimeError, match="share memory"):
        save_safetensors(guide.state_dict())
    ours = AutoConvFlow(correlated)
    fresh = AutoConvFlow(correlated, init_scale=1.0)
    fresh.load_state_dict(load_safetensors(save_safetensors(ours.state_dict())))
    torch.testing.assert_close(fresh.quantiles([0.3])["x"], ours.quantiles([0.3])["x"])


def test_7_median_and_quantiles():
    guide = stock(gaussian, pyro_transforms.planar)
    guide()
    with pytest.raises(NotImplementedError):
        guide.median()
    with pytest.raises(NotImplementedError):
        guide.quantiles([0.5])
    ours = AutoConvFlow(gaussian)  # it starts near the posterior N(1050, 1250), with a hundredth of a quadratic tail
    low, middle, high = ours.quantiles([0.05, 0.5, 0.95])["x"]
    exact = torch.distributions.Normal(1050.0, 1250**0.5).icdf(torch.tensor([0.05, 0.5, 0.95]))
    torch.testing.assert_close(torch.stack([low, middle, high]), exact, atol=1.5, rtol=0)
    assert torch.equal(ours.median()["x"], middle)
    state = torch.get_rng_state()
    ours.median()
    assert torch.equal(torch.get_rng_state(), state)


def test_8_the_start_is_near_the_models_init():
    guide = AutoNormalizingFlow(gaussian, pyro_transforms.planar)
    guide()
    assert guide.get_posterior().sample((100,)).abs().max() < 100  # stock: N(0, 1), where the model says 1000
    start = init_to_value(values={"x": torch.tensor(700.0)})
    ours = AutoConvFlow(gaussian, init_loc_fn=start, init_scale=0.5)
    draws = ours.sample_posterior(4000)["x"]
    assert abs(draws.mean() - 700) < 0.1
    assert abs(draws.std() - 0.5) < 0.05
    assert abs(AutoConvFlow(gaussian, init_loc_fn=start).sample_posterior(4000)["x"].std() - 0.1) < 0.01
    assert abs(AutoConvFlow(gaussian).median()["x"] - 1050) < 1


def test_8_badly_scaled_and_correlated_posteriors_start_at_their_gaussian():
    guide = AutoConvFlow(correlated)
    draws = guide.sample_posterior(20000)["x"]
    tril = torch.tensor([[2.0, 0.0, 0.0], [1.5, 0.3, 0.0], [0.1, -0.2, 0.05]])
    torch.testing.assert_close(torch.cov(draws.T), tril @ tril.T, atol=0.1, rtol=0.05)
    pyro.clear_param_store()
    with_stock = stock(correlated)
    with_stock()
    assert torch.cov(with_stock.get_posterior().sample((2000,)).T)[0, 1].abs() < 1


def test_9_type_follows_the_module():
    guide = AutoConvFlow(correlated).double()
    assert guide.get_posterior().sample((2,)).dtype == torch.float64
    assert guide.median()["x"].dtype == torch.float64
    bounded = AutoConvFlow(_bounded).double()
    bounds = bounded.prototype_trace.nodes["u"]["fn"].support
    assert bounds.base_constraint.lower_bound.dtype == torch.float64
    assert bounded()["u"].dtype == torch.float64
    float32 = stock(_bounded)
    float32()
    assert float32.double().prototype_trace.nodes["u"]["fn"].support.base_constraint.lower_bound.dtype == torch.float32


def _bounded():
    pyro.sample("u", dist.Uniform(torch.zeros(2), torch.tensor([1.0, 3.0])).to_event(1))


def test_the_general_guide_takes_pyros_factories():
    guide = AutoFlow(correlated, pyro_transforms.spline_autoregressive)
    train(correlated, guide)
    assert guide.log_prob({"x": torch.zeros(3)}).isfinite()
    assert Predictive(correlated, guide=guide, num_samples=7)()["x"].shape == (7, 3)


def _randomise(guide, scale=0.2):
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(scale * torch.randn_like(p))
