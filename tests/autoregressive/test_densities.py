"""Densities sum to one, samples follow them, and they work in Pyro programs."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from tests.autoregressive.cases import BINARY_MODELS, MODELS, all_binary, build
from vi_flows.autoregressive import (
    MADE,
    Bernoulli,
    Categorical,
    Gaussian,
    WaveNet,
    mu_law_decode,
    mu_law_encode,
)


@pytest.mark.parametrize("name", BINARY_MODELS)
def test_all_binary_events_sum_to_one(name):
    model = build(name, scale=1.0)
    log_prob = model.log_prob(all_binary(model.event_shape))
    assert log_prob.shape == (512,)
    assert log_prob.std() > 0.3
    assert abs(log_prob.logsumexp(0).item()) < 1e-10


@pytest.mark.parametrize("name", ["made", "pixel_cnn", "gated", "diagonal", "row", "wavenet"])
def test_sums_to_one_under_every_context_and_the_context_reaches_every_entry(name):
    model = build(name, context_dim=3, scale=1.0)
    events = all_binary(model.event_shape)
    p = model.condition(torch.eye(3, dtype=torch.float64)[:, None])
    log_prob = p.log_prob(events)
    assert log_prob.shape == (3, 512)
    assert log_prob.logsumexp(1).abs().max() < 1e-10
    # Over all events, since every ReLU before an output can be closed at one of them.
    logits = p.conditional_logits(events).flatten(2)
    assert ((logits[0] - logits[1]).abs().amax(0) > 1e-6).all()


@pytest.mark.parametrize("name", ["made-order-3", "made-deep-direct", "pixel_cnn", "gated", "diagonal", "wavenet"])
def test_samples_follow_the_density(name):
    model = build(name, scale=1.0)
    events = all_binary(model.event_shape)
    probs = model.log_prob(events).exp().detach()
    torch.manual_seed(0)
    n = 8000
    x = model.sample((n,))
    assert x.shape == (n, *model.event_shape)
    index = (x.flatten(1) @ (2.0 ** torch.arange(8, -1, -1, dtype=torch.float64))).long()
    counts = torch.bincount(index, minlength=512).double()
    common = probs * n > 5
    expected = torch.cat([probs[common], probs[~common].sum()[None]]) * n
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    chi2, freedom = ((observed - expected) ** 2 / expected.clamp(min=1e-9)).sum(), len(expected) - 1
    # Chi-squared has mean `freedom` and variance `2 freedom`: five standard deviations.
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom)


def test_gaussian_made_is_a_product_of_normals_and_integrates_to_one():
    torch.manual_seed(0)
    model = MADE((2,), Gaussian(), (16,), "tanh").double()
    model.resample_masks(1)
    grid = torch.linspace(-12, 12, 401, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    assert abs(model.log_prob(points).exp().sum().item() * (24 / 400) ** 2 - 1) < 1e-6
    x = points[::5000]
    loc, log_scale = model.conditional_logits(x).unbind(-1)
    assert torch.allclose(model.log_prob(x), dist.Normal(loc, log_scale.exp()).log_prob(x).sum(-1), atol=1e-10)
    draws = model.sample((20000,))
    loc, log_scale = model.conditional_logits(draws).unbind(-1)
    noise = (draws - loc) / log_scale.exp()
    assert noise.mean(0).abs().max() < 0.04
    assert (torch.cov(noise.T) - torch.eye(2)).abs().max() < 0.05


def test_the_ensemble_is_the_equal_mixture_and_leaves_the_masks():
    model = build("made-deep-direct", scale=1.0)
    events = all_binary(model.event_shape)
    before = model.log_prob(events)
    ensemble = model.ensemble_log_prob(events, range(4))
    assert torch.equal(model.log_prob(events), before)
    members = []
    for seed in range(4):
        model.resample_masks(seed)
        members.append(model.log_prob(events).exp())
    assert torch.allclose(ensemble.exp(), torch.stack(members).mean(0), atol=1e-12)
    assert abs(ensemble.logsumexp(0).item()) < 1e-10
    with pytest.raises(ValueError, match="seed"):
        model.ensemble_log_prob(events, [])


def test_masks_travel_with_the_weights():
    model, other = build("made-order-3"), build("made-order-3", seed=1)
    other.resample_masks(9)
    other.load_state_dict(model.state_dict())
    events = all_binary(model.event_shape)
    assert torch.equal(model.log_prob(events), other.log_prob(events))
    assert torch.equal(model.order, other.order)


@pytest.mark.parametrize("name", [n for n in MODELS if "256" in n])
def test_256_way_conditionals(name):
    model = build(name)
    torch.manual_seed(0)
    x = model.sample((2,))
    logits = model.conditional_logits(x)
    assert logits.shape == (2, *model.event_shape, 256)
    expected = dist.Categorical(logits=logits).log_prob(x).flatten(1).sum(1)
    assert torch.allclose(model.log_prob(x), expected, atol=1e-10)
    with pytest.raises(ValueError, match="support"):
        model.log_prob(x + 256)


def test_mu_law_literally():
    audio = torch.tensor([-1.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    assert mu_law_encode(audio).tolist() == [0.0, 128.0, 239.0, 255.0]
    levels = torch.arange(256, dtype=torch.float64)
    assert torch.equal(mu_law_encode(mu_law_decode(levels)), levels)
    with pytest.raises(ValueError, match="full scale"):
        mu_law_encode(torch.tensor([1.5]))
    with pytest.raises(ValueError, match="full scale"):
        mu_law_encode(torch.tensor([float("nan")]))


@pytest.mark.parametrize("name", ["made", "pixel_cnn", "gated", "diagonal", "row", "wavenet"])
def test_likelihood_in_pyro(name):
    """A decoder: the latent is the context, and every parameter gets a gradient."""
    pyro.clear_param_store()
    model = build(name, context_dim=2).float()
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((16, *model.event_shape), 0.8))

    def program():
        pyro.module("decoder", model)
        with pyro.plate("data", 16):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", model.condition(z), obs=x)

    def guide():
        loc = pyro.param("loc", torch.zeros(16, 2))
        with pyro.plate("data", 16):
            pyro.sample("z", dist.Normal(loc, 0.1).to_event(1))

    svi = SVI(program, guide, Adam({"lr": 0.02}), Trace_ELBO(num_particles=3, vectorize_particles=True))
    losses = [svi.step() for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])
    pyro.clear_param_store()
    trace = pyro.poutine.trace(program).get_trace()
    trace.compute_log_prob()
    trace.log_prob_sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_prior_in_pyro():
    """A Gaussian MADE as a prior, expanded by a plate, particles vectorised."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    prior = MADE((2,), Gaussian(), (8,), "tanh")
    data = 3.0 + torch.randn(20, 2)

    def program():
        pyro.module("prior", prior)
        with pyro.plate("data", 20):
            z = pyro.sample("z", prior.distribution())
            pyro.sample("y", dist.Normal(z, 0.1).to_event(1), obs=data)

    def guide():
        loc = pyro.param("loc", data.clone())
        with pyro.plate("data", 20):
            pyro.sample("z", dist.Normal(loc, 0.1).to_event(1))

    svi = SVI(program, guide, Adam({"lr": 0.05}), Trace_ELBO(num_particles=2, vectorize_particles=True))
    losses = [svi.step() for _ in range(60)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert pyro.poutine.trace(program).get_trace().nodes["z"]["value"].shape == (20, 2)


def test_shapes_and_refusals():
    model = MADE(IMAGE_SHAPE := (1, 3, 3), Bernoulli(), (9,), context_dim=2)
    p = model.condition(torch.randn(5, 2))
    assert (p.batch_shape, p.event_shape) == ((5,), IMAGE_SHAPE)
    assert p.sample((4,)).shape == (4, 5, *IMAGE_SHAPE)
    assert p.expand((4, 5)).log_prob(torch.ones(IMAGE_SHAPE)).shape == (4, 5)
    assert p.conditional_logits(torch.zeros(7, 1, *IMAGE_SHAPE)).shape == (7, 5, *IMAGE_SHAPE)
    assert torch.equal(p.log_prob(torch.ones(IMAGE_SHAPE, dtype=torch.long)), p.log_prob(torch.ones(IMAGE_SHAPE)))
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.full(IMAGE_SHAPE, 0.5))
    with pytest.raises(ValueError, match=r"context of size 2; call condition"):
        model.log_prob(torch.ones(IMAGE_SHAPE))
    with pytest.raises(ValueError, match=r"one-hot"):
        model.condition(torch.tensor([3]))
    with pytest.raises(ValueError, match="x must have shape"):
        p.conditional_logits(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"x has a batch of \(3,\), which doesn't go with \(5,\)"):
        p.conditional_logits(torch.zeros(3, *IMAGE_SHAPE))
    with pytest.raises(ValueError, match="context_dim"):
        WaveNet(4, Bernoulli(), context_dim=-1)


def test_the_network_sees_levels_from_minus_one_to_one():
    levels = torch.tensor([0.0, 51.0, 255.0], dtype=torch.float64)
    assert torch.allclose(Categorical(256).encode(levels), torch.tensor([-1.0, -0.6, 1.0], dtype=torch.float64))
    assert torch.equal(Bernoulli().encode(levels), levels)


@pytest.mark.parametrize("name", MODELS)
def test_no_events_have_no_densities(name):
    model = build(name, context_dim=3)
    p = model.condition(torch.eye(3, dtype=torch.float64)[:, None])
    assert p.log_prob(torch.zeros(0, *model.event_shape)).shape == (3, 0)
    assert model.condition(torch.zeros(0, 3)).log_prob(torch.zeros(0, *model.event_shape)).shape == (0,)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_contexts_and_events_that_are_no_numbers_are_refused(bad):
    model = MADE((4,), Gaussian(), (8,), context_dim=3)
    with pytest.raises(ValueError, match="the context has NaN or infinite entries in 1 of its 2 rows"):
        model.condition(torch.tensor([[0.0, 1.0, 0.0], [0.0, bad, 0.0]]))
    with pytest.raises(
        ValueError, match=r"1 of 8 entries are not within the support, Real\(\): the first is (nan|inf)"
    ):
        model.condition(torch.zeros(3)).log_prob(torch.tensor([[0.0] * 4, [0.0, bad, 0.0, 0.0]]))
