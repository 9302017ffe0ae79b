"""G1 and G2 as Pyro programs: stock inference runs on them, and the direct path equals the traced one."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch._subclasses import FakeTensorMode

from tests.transforms.cases import randomise
from vi_flows import conv_flow, flows
from vi_flows.distributions import BernoulliLogits, FlowNormal
from vi_flows.evaluation import estimate_nll
from vi_flows.flows import ConvFlow
from vi_flows.objectives import ELBO, IWAE, elbo_bound, iwae_bound
from vi_flows.vae import (
    VAE,
    AISSettings,
    AmortizedGuide,
    GenerativeModel,
    RefinementSettings,
    VAEConfig,
    annealed_vae,
    build_vae,
    evaluate_vae,
    latent_use,
    refine,
    simulated_bounds,
)

DIM = 12
SMALL = {
    "g1": {"latent_dims": (4,), "hidden_dims": ((8, 8),)},
    "g2": {"architecture": "g2", "latent_dims": (3, 5), "hidden_dims": ((6, 6), (8, 8))},
}
VARIANTS = [(a, f) for a in SMALL for f in ("none", "global", "amortized")]


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


POSTERIORS = {
    "none": {},
    "global": {"flow": ConvFlow(kernel_size=3), "amortized": False},
    "amortized": {"flow": ConvFlow(kernel_size=3)},
}


def small(architecture="g1", flow="none", **options):
    return randomise(build_vae(VAEConfig(**SMALL[architecture], **POSTERIORS[flow], **options), DIM), 0.4)


@pytest.fixture
def rows():
    return torch.bernoulli(torch.rand(7, DIM))


@pytest.mark.parametrize(("architecture", "flow"), VARIANTS)
@pytest.mark.parametrize("particles", [1, 3])
def test_direct_path_equals_the_traced_program(architecture, flow, particles, rows):
    vae = small(architecture, flow)
    for traced, reduce in ((ELBO, elbo_bound), (IWAE, iwae_bound)):
        pyro.set_rng_seed(4)
        bound = traced(particles, vectorize_particles=True, max_plate_nesting=1 if particles == 1 else 2)
        loss = bound.loss(vae.model, vae.guide, rows)
        pyro.set_rng_seed(4)
        direct = -reduce(vae.log_weight_terms(rows, particles)).sum().item()
        assert loss == pytest.approx(direct, rel=1e-5)


@pytest.mark.parametrize(("architecture", "flow"), VARIANTS)
def test_traced_weights_equal_pyros_own_distributions(architecture, flow, rows):
    """The lean distributions against Pyro's composed ones, and the sample's log-density against the exact inverse."""
    vae = small(architecture, flow).double()
    rows = rows.double()
    latents, log_q = vae.guide.sample_and_log_prob(rows, 5)
    terms = 0.0
    below = rows
    for index in reversed(range(len(latents))):
        posterior = vae.guide.posterior(index, below)
        base = dist.Normal(posterior.loc, posterior.log_scale.exp()).to_event(1)
        stock = base if posterior.bijection is None else dist.TransformedDistribution(base, [posterior.bijection])
        below = latents[index]
        terms = terms + stock.log_prob(below)
        assert torch.allclose(posterior.log_prob(below.clone()), stock.log_prob(below), atol=1e-8)
    assert torch.allclose(log_q, terms, atol=1e-8)
    logits = vae.model.likelihood(below if len(latents) == 1 else latents[-1]).logits
    expected = dist.Bernoulli(logits=logits).to_event(1).log_prob(rows.expand(5, -1, -1))
    assert torch.allclose(BernoulliLogits(logits).log_prob(rows), expected, atol=1e-9)


@pytest.mark.parametrize(("architecture", "flow"), VARIANTS)
@pytest.mark.parametrize(
    "loss",
    [
        Trace_ELBO(),
        Trace_ELBO(num_particles=3, vectorize_particles=True),
        TraceMeanField_ELBO(),
        RenyiELBO(alpha=0, num_particles=3),
        RenyiELBO(alpha=0, num_particles=3, vectorize_particles=True),
    ],
    ids=["trace", "trace_vectorised", "mean_field", "renyi", "renyi_vectorised"],
)
def test_stock_inference_trains_it(architecture, flow, loss, rows):
    vae = small(architecture, flow)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 5e-3}), loss)
    before = {n: p.detach().clone() for n, p in vae.named_parameters()}
    first = sum(svi.evaluate_loss(rows) for _ in range(10))
    for size in (7, 3, 7, 1, 5):  # minibatches of any size
        assert math.isfinite(svi.step(rows[:size]))
    for _ in range(25):
        svi.step(rows)
    assert sum(svi.evaluate_loss(rows) for _ in range(10)) < first
    unmoved = [n for n, p in vae.named_parameters() if torch.equal(p, before[n])]
    assert unmoved == []


def test_dataset_size_scales_the_bound(rows):
    vae = small("g1", "amortized")
    losses = []
    for dataset_size in (None, 70):
        pyro.set_rng_seed(1)
        losses.append(Trace_ELBO().loss(vae.model, vae.guide, rows, dataset_size=dataset_size))
    assert losses[1] == pytest.approx(10 * losses[0], rel=1e-5)
    with pytest.raises(ValueError, match="less than the minibatch"):
        vae.model(rows, dataset_size=3)


@pytest.mark.parametrize(("architecture", "flow"), VARIANTS)
def test_predictive(architecture, flow, rows):
    vae = small(architecture, flow)
    posterior = Predictive(vae.model, guide=vae.guide, num_samples=4)(rows)
    assert posterior["z" if architecture == "g1" else "z2"].shape[:2] == (4, 7)
    prior = Predictive(vae.model, num_samples=6)(size=5)
    assert prior["x"].shape == (6, 5, DIM)
    assert set(prior["x"].unique().tolist()) <= {0.0, 1.0}
    assert vae.sample(9).shape == (9, DIM)
    assert vae.reconstruct(rows).shape == rows.shape


def test_any_bijection_on_each_latent(rows):
    model = GenerativeModel(DIM, (4,), ((8,),))
    for flow in (flows.Planar().build(4), flows.IAF(2).build(4), conv_flow(4, 2, activation="tanh")):
        vae = VAE(model, AmortizedGuide(DIM, (4,), ((8,),), [flow]))
        assert vae.log_weight_terms(rows, 3).log_weights().shape == (3, 7)
        assert math.isfinite(Trace_ELBO().loss_and_grads(vae.model, vae.guide, rows))


def test_nll_of_a_tiny_vae_by_quadrature():
    """−log p(x) of a one-latent VAE against numerical integration over z."""
    torch.manual_seed(2)
    vae = build_vae(VAEConfig(latent_dims=(1,), hidden_dims=((4,),), flow=ConvFlow(kernel_size=1)), 6)
    randomise(vae, 0.4).double().eval()
    randomise(vae.guide.flows, 1.5)
    rows = torch.bernoulli(torch.rand(5, 6)).double()
    grid = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
    log_joint = vae.model.likelihood(grid[:, None]).log_prob(rows) + dist.Normal(0.0, 1.0).log_prob(grid)
    exact = -torch.logsumexp(log_joint, 0) - torch.log(grid[1] - grid[0])
    result = estimate_nll(lambda x, p: vae.log_weight_terms(x, p).log_weights(), rows, 20000, samples_per_chunk=5000)
    assert torch.allclose(result.nll, exact, atol=0.03)
    assert (result.elbo < -exact).all()


def test_parameter_shapes_of_the_paper():
    g1 = build_vae(VAEConfig(flow=ConvFlow(8), amortized=False), 784)
    g2 = build_vae(VAEConfig("g2", flow=ConvFlow(), amortized=False), 784)
    assert [type(m).__name__ for m in g1.model.networks[0]] == ["Linear", "Tanh", "Linear", "Tanh"]
    assert g1.model.latent_dims == (50,)
    assert g1.guide.flows["0"].spec.num_layers == 48
    assert g2.model.latent_names == ["z1", "z2"]
    assert g2.model.latent_dims == (50, 100)
    assert [flow.spec.dilations[-1] for flow in g2.guide.flows.values()] == [32, 64]
    assert [m.in_features for m in g2.guide.networks[1] if hasattr(m, "in_features")] == [784, 200]
    assert [m.out_features for m in g2.guide.networks[0] if hasattr(m, "out_features")] == [100, 100]
    plus = build_vae(VAEConfig(num_extra_layers=4), 784)
    widths = [m.out_features for m in plus.guide.networks[0] if hasattr(m, "out_features")]
    assert widths == [200, 200, 50, 50, 50, 50]


def test_output_bias_is_the_logit_of_the_mean(rows):
    vae = small()
    mean = rows.mean(0)
    vae.model.set_output_bias(mean)
    assert torch.allclose(torch.sigmoid(vae.model.logits.bias), mean.clamp(1e-3, 1 - 1e-3), atol=1e-5)


def test_flow_normal_integrates_and_has_a_closed_form_divergence():
    q = FlowNormal(torch.tensor([0.3, -1.0]), torch.tensor([0.2, -0.5]))
    p = FlowNormal(torch.zeros(2), torch.zeros(2))
    stock = torch.distributions.kl_divergence(
        dist.Normal(q.loc, q.log_scale.exp()).to_event(1), dist.Normal(p.loc, 1.0).to_event(1)
    )
    assert torch.allclose(torch.distributions.kl_divergence(q, p), stock)
    flowed = FlowNormal(q.loc, q.log_scale, randomise(conv_flow(2, 2), 0.4))
    grid = torch.linspace(-15, 15, 1501)
    with torch.no_grad():
        total = flowed.log_prob(torch.cartesian_prod(grid, grid)).exp().sum() * (grid[1] - grid[0]) ** 2
    assert total.item() == pytest.approx(1, abs=5e-3)
    sample = flowed.rsample((5,))
    own = flowed.log_prob(sample)
    assert torch.allclose(own, flowed.log_prob(sample.clone()), atol=1e-4)
    with torch.no_grad():
        flowed.bijection.theta.add_(0.2)
    assert not torch.allclose(flowed.log_prob(sample), own)


TYPES = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("architecture", "flow"), [("g1", "amortized"), ("g2", "none")])
def test_rows_of_any_type_are_those_of_the_parameters(dtype, architecture, flow, rows):
    vae = small(architecture, flow)
    others = rows.to(dtype)
    for number in (lambda x: vae.log_weight_terms(x, 3).log_weights(), lambda x: vae.reconstruct(x),
                   lambda x: evaluate_vae(vae.eval(), x, 20).importance.nll, lambda x: vae.model(x),
                   lambda x: vae.guide(x)[vae.model.latent_names[0]],
                   lambda x: vae.model.log_joint(x, torch.ones(7, vae.model.latent_size)),
                   lambda x: vae.guide.log_prob(x, [torch.ones(2, 7, d) for d in vae.model.latent_dims])):  # fmt: skip
        pyro.set_rng_seed(1)
        expected = number(rows)
        pyro.set_rng_seed(1)
        assert torch.equal(number(others), expected)
    assert vae.double().log_weight_terms(others).log_weights().dtype == torch.float64
    logits = torch.randn(7, DIM)
    assert torch.equal(BernoulliLogits(logits).log_prob(others), BernoulliLogits(logits).log_prob(rows))


OUTSIDE = {"grey": lambda x: 200 * x, "negative": lambda x: x - 1.5, "nan": lambda x: torch.where(x == 1, math.nan, x)}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_rows_that_no_data_are_have_no_weights(kind, rows):
    """A pmf has no NLL of −130 nats."""
    vae = small().eval()
    rows[0, 0] = 1
    wrong = OUTSIDE[kind](rows)
    for call in (
        lambda: evaluate_vae(vae, wrong, 20),
        lambda: annealed_vae(vae, wrong, AISSettings()),
        lambda: refine(vae, wrong, RefinementSettings(1), 5),
        lambda: estimate_nll(lambda x, p: vae.log_weight_terms(x, p).log_weights(), wrong, 20),
        lambda: vae.log_weight_terms(wrong),
        lambda: vae.path_log_weight_terms(wrong),
        lambda: vae.reconstruct(wrong),
        lambda: vae.model.log_joint(wrong, torch.zeros(7, 4)),
        lambda: latent_use(vae, wrong, wrong),
        lambda: vae.log_weight_terms((3 * rows).byte()),
    ):
        with pytest.raises(ValueError, match=r"rows must be numbers in \[0, 1\], got some from .* divide grey values"):
            call()
    assert vae.log_weight_terms(rows / 2).log_weights().isfinite().all()


def test_a_recorded_or_transformed_step_does_not_look_at_values(rows):
    vae = small().eval()
    torch.func.vmap(lambda x: vae.log_weight_terms(x).log_weights(), randomness="different")(rows.expand(2, 7, DIM))
    with FakeTensorMode(allow_non_fake_inputs=True):
        vae.log_weight_terms(torch.zeros(7, DIM))


def test_a_larger_batch_of_pixels_looks_at_its_values_as_the_smaller_one_does():
    logits, grey = torch.randn(DIM), torch.full((3, DIM), 200.0)
    with pytest.raises(ValueError, match="support"):
        BernoulliLogits(logits).expand((3,)).log_prob(grey)
    unchecked = BernoulliLogits(logits, validate_args=False).expand((3,))
    assert unchecked.log_prob(grey).shape == (3,)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: small().model(torch.zeros(3, 5)), "12 pixels"),
        (lambda: small().log_weight_terms(torch.zeros(3, 5)), "12 pixels"),
        (lambda: small().model(torch.zeros(0, DIM)), "the number of rows must be at least 1, got 0"),
        (lambda: small().guide(torch.zeros(0, DIM), dataset_size=9), "the number of rows must be at least 1, got 0"),
        (lambda: small().model(size=0), "the number of rows must be at least 1, got 0"),
        (
            lambda: annealed_vae(small().eval(), torch.zeros(0, DIM), AISSettings()),
            "the number of images must be at least 1, got 0",
        ),
        (lambda: simulated_bounds(small().eval(), 0, AISSettings()), "the number of images must be at least 1, got 0"),
        (lambda: small().guide(torch.zeros(5)), "12 pixels"),
        (lambda: small().guide(), "nothing"),
        (lambda: build_vae(VAEConfig("g2", latent_dims=(5,)), 8), "2 latents"),
        (lambda: build_vae(VAEConfig(activation="sin"), 8), "tanh"),
        (lambda: GenerativeModel(4, (2, 3), ((4,),)), "widths"),
        (lambda: VAE(GenerativeModel(4, (2,), ((4,),)), AmortizedGuide(5, (2,), ((4,),))), "differ"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
