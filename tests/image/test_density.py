"""Image densities: bits/dim by the literal formula, dequantisation, multi-scale priors, use in Pyro models."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from scipy.stats import norm

from tests.image.small_flows import SMALL, images, small_flow
from tests.transforms.cases import build, randomise
from tests.transforms.image_cases import SmoothConv, coupling
from vi_flows.distributions.dequantization import Dequantized, VariationalDequantizer
from vi_flows.distributions.image import ImageDensity, ImageOverflowError, bits_per_dim
from vi_flows.transforms import ActNorm, AffineMap, Chain, Checkerboard, Coupling, Inverse, SplitPrior

VARIANTS = [
    *((name, {}) for name in SMALL),
    ("real_nvp", {"norm": "batch"}),
    ("maf", {"norm": "none", "scale": "exp"}),
    ("maf", {"recompute": True}),
    ("real_nvp", {"multi_scale": False}),
    ("mconv", {"filter": "cosine", "norm": "act"}),
    ("inv_conv3x3", {"coupling": "quad"}),
    ("inv_conv3x3", {"coupling": "quad_mconv", "masked": True}),
    ("emerging", {"coupling": "quad"}),
    ("periodic", {"kernel_size": 3, "num_levels": 1}),
    ("glow", {"coupling": "mixture", "conditioner": "gated"}),
    ("flow_pp", {"coupling": "quad_spline"}),
    ("glow", {"conditioner": "attention", "num_blocks": 2}),
    ("glow", {"coupling": "additive", "learned_prior": False}),
    ("glow", {"recompute": True, "conditioner_dtype": torch.bfloat16}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_models_by_name_round_trip_and_train(name, options):
    density = ImageDensity(small_flow(name, **options), (1, 8, 8))
    x = images(12, 1, 8, 8)
    randomise(density, 0.05)
    for module in density.modules():
        if isinstance(module, ActNorm):
            module._waiting = True
    density.initialize(x)
    optimizer = torch.optim.Adam(density.parameters(), lr=1e-3)
    before = None
    for _ in range(12):
        torch.manual_seed(1)
        optimizer.zero_grad()
        loss = density(x).mean()
        loss.backward()
        before = loss.item() if before is None else before
        assert all(p.grad is not None for p in density.parameters())
        optimizer.step()
    assert loss.item() < before
    density.eval()
    latents = density.encode(x)
    assert latents.shape == x.shape
    if options.get("conditioner_dtype") is None:
        assert torch.equal(density.decode(latents), x)
    samples = density.sample(5, temperature=0.7)
    assert samples.shape == (5, 1, 8, 8)
    assert samples.dtype == torch.uint8
    line = density.interpolate(x[:2], x[2:4], 3)
    assert line.shape == (3, 2, 1, 8, 8)
    if options.get("conditioner_dtype") is None:
        assert torch.equal(line[0], x[:2])
        assert torch.equal(line[-1], x[2:4])


@pytest.mark.parametrize("name", SMALL)
def test_models_have_the_autograd_determinant_at_random_parameters(name):
    flow = randomise(small_flow(name, (1, 4, 4)).double(), 0.1).eval()
    z = torch.randn(1, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.forward_and_ladj(v)[0], z).reshape(16, 16)
    torch.testing.assert_close(flow.forward_and_ladj(z)[1], torch.linalg.slogdet(jacobian)[1])


@pytest.mark.parametrize("alpha", [1e-6, 0.05])
def test_bits_per_dim_is_the_literal_formula(alpha):
    density = ImageDensity(randomise(small_flow("glow").double(), 0.1), (1, 8, 8), alpha=alpha).double().eval()
    x = images(6, 1, 8, 8)
    torch.manual_seed(7)
    measured = density.bits_per_dim(x)
    torch.manual_seed(7)
    u = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    v = (x + u) / 256
    s = alpha + (1 - alpha) * v
    log_p_y = density.logit_distribution().log_prob(torch.logit(s))
    size = 64
    expected = -log_p_y / (size * math.log(2)) - math.log2(1 - alpha) + 8
    expected = expected + (s.log2() + (1 - s).log2()).flatten(1).sum(1) / size
    torch.testing.assert_close(measured, expected)
    torch.manual_seed(7)
    one, two = density.bits_per_dim(x), density.bits_per_dim(x)
    torch.manual_seed(7)
    torch.testing.assert_close(density.bits_per_dim(x, num_draws=2), (one + two) / 2)


def test_bits_per_dim_of_the_uniform_density_is_the_number_of_bits():
    uniform = Dequantized(dist.Uniform(torch.zeros(3, 2, 2), 1.0).to_event(3), 256)
    x = images(5, 3, 2, 2)
    torch.testing.assert_close(bits_per_dim(uniform.log_prob(x), 12), torch.full((5,), 8.0))
    certain = Dequantized(uniform.base_dist, 256, lambda x: (0.5 * torch.ones_like(x), x.new_full(x.shape[:-3], 3.0)))
    torch.testing.assert_close(certain.log_prob(x), uniform.log_prob(x) - 3.0)


@pytest.mark.parametrize("learned", [False, True])
def test_probabilities_of_all_images_sum_to_one(learned):
    """Two pixels of four grey values: E_u[exp(estimate)] is each image's probability, whatever the noise."""
    torch.manual_seed(0)
    flow = randomise(Chain([coupling(Checkerboard(p), 1, AffineMap("tanh")) for p in (0, 1)]), 0.4)
    dequantizer = randomise(VariationalDequantizer(1, 4, 2, 6), 0.3) if learned else None
    density = ImageDensity(flow, (1, 1, 2), num_levels=4, alpha=0.05, dequantizer=dequantizer).double()
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(4)).reshape(16, 1, 1, 2)
    with torch.no_grad():
        estimates = density.distribution().log_prob(grid.double().expand(4000, 16, 1, 1, 2))
        probabilities = estimates.exp().mean(0)
        samples = density.distribution().sample((20000,))
        frequency = torch.stack([(samples == image).flatten(1).all(1).double().mean() for image in grid])
        below = (
            (density.logit_distribution().sample((20000,)) < math.log(0.05 / 0.95)).flatten(1).any(1).double().mean()
        )
    # The logit map leaves a little mass below zero, which samples clip to the lowest grey value.
    assert probabilities.sum().item() == pytest.approx(1 - below.item(), abs=0.03)
    inner = (grid > 0).flatten(1).all(1)
    torch.testing.assert_close(frequency[inner], probabilities[inner], atol=0.012, rtol=0)
    assert (estimates.mean(0) <= probabilities.log()).all()


def test_variational_noise_starts_uniform_and_has_the_density_it_claims():
    torch.manual_seed(0)
    dequantizer = VariationalDequantizer(1, 256, 4, 6).double()
    x = images(1, 1, 1, 2).double()
    with torch.no_grad():
        u, log_q = dequantizer(x.expand(5000, 1, 1, 2))
        torch.testing.assert_close(log_q, torch.zeros_like(log_q), atol=1e-4, rtol=0)
        assert u.mean().item() == pytest.approx(0.5, abs=0.02)
        randomise(dequantizer, 0.3)
        u, log_q = dequantizer(x.expand(5000, 1, 1, 2))
        assert ((u >= 0) & (u <= 1)).all()
        q = dequantizer.distribution(x)
        inside = ((u > 1e-3) & (u < 1 - 1e-3)).flatten(1).all(1)  # where clipping and the logit's own are out of play
        assert inside.double().mean() > 0.9
        torch.testing.assert_close(q.log_prob(u)[inside], log_q[inside], atol=1e-6, rtol=1e-6)
        middle = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
        points = torch.cartesian_prod(middle, middle).reshape(-1, 1, 1, 2)
        assert q.log_prob(points).exp().mean().item() == pytest.approx(1.0, abs=0.01)
        assert q.log_prob(points).std() > 0.05


def test_logistic_noise_is_finite_where_the_uniform_is_zero(monkeypatch):
    """Once in 2²⁴ draws: a few NaN scores in a hundred thousand images of learned noise, or images of NICE."""
    density = ImageDensity(Inverse(Chain([ActNorm(1, data_init=False)], event_dim=3)), (1, 8, 8), base="logistic")
    dequantizer = VariationalDequantizer(1, 256, 4, 6)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self: self.zero_())
    assert density.sample_logits(3).flatten().tolist() == pytest.approx([math.log(2.0**-25)] * 192)
    u, log_q = dequantizer(images(20, 1, 8, 8).float())
    assert torch.isfinite(log_q).all()
    assert (u < 1e-6).all()


def test_split_prior_is_the_conditional_normal():
    torch.manual_seed(0)
    prior = randomise(SplitPrior(4, SmoothConv(2, 4)), 0.5).double()
    z = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    eps, ladj = prior.forward_and_ladj(z)
    assert torch.equal(eps[:, :2], z[:, :2])
    mean, log_sd = prior.conditioners[0](z[:, :2]).chunk(2, 1)
    log_sd = torch.where(log_sd > 0, 2 * torch.tanh(log_sd / 2), 6 * torch.tanh(log_sd / 6))
    expected = norm.logpdf(z[:, 2:].numpy(), mean.detach().numpy(), log_sd.exp().detach().numpy())
    measured = dist.Normal(0.0, 1.0).log_prob(eps[:, 2:]).flatten(1).sum(1) + ladj
    torch.testing.assert_close(measured.detach(), torch.from_numpy(expected).flatten(1).sum(1))


def test_multi_scale_latents_pack_and_unpack():
    flow = build("multi_scale")
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    z = flow(x)
    parts = flow.latents(z)
    assert [tuple(p.shape) for p in parts] == [(3, 2, 2, 2), (3, 8, 1, 1)]
    assert torch.equal(flow.pack(parts), z)


def test_checkpointing_changes_neither_loss_nor_gradients():
    x = images(4, 1, 8, 8)
    results = []
    for checkpoint in (False, True):
        density = ImageDensity(small_flow("glow", recompute=checkpoint), (1, 8, 8))
        torch.manual_seed(5)
        loss = density(x).mean()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in density.parameters())])
    for plain, saved in zip(*results, strict=True):
        torch.testing.assert_close(plain, saved)


def test_initialization_normalises_every_act_norm():
    density = ImageDensity(small_flow("glow"), (1, 8, 8)).eval()
    x = images(64, 1, 8, 8)
    density.initialize(x)
    assert not density.training
    norms = [m for m in density.modules() if isinstance(m, ActNorm)]
    assert norms
    assert all(m.initialized for m in norms)
    assert all((m.log_scale != 0).any() for m in norms)
    state = density.state_dict()
    fresh = ImageDensity(small_flow("glow", seed=1), (1, 8, 8))
    fresh.load_state_dict(state)
    fresh.train()
    torch.manual_seed(2)
    mine = fresh(x)
    torch.manual_seed(2)
    torch.testing.assert_close(mine, density(x))


def test_pyro_likelihood_and_prior():
    """An image flow as a likelihood under a plate, and as a prior of another variable, with vectorised particles."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    density = ImageDensity(small_flow("inv_conv3x3", (1, 4, 4)), (1, 4, 4))
    x = images(6, 1, 4, 4).float()

    def model():
        pyro.module("density", density)
        with pyro.plate("images", 6):
            pyro.sample("x", density.distribution(), obs=x)
            z = pyro.sample("z", density.logit_distribution())
            pyro.sample("y", dist.Normal(z, 1.0).to_event(3), obs=torch.zeros(6, 1, 4, 4))

    def guide():
        loc = pyro.param("loc", torch.zeros(6, 1, 4, 4))
        with pyro.plate("images", 6):
            pyro.sample("z", dist.Normal(loc, 0.1).to_event(3))

    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
    losses = [svi.step() for _ in range(30)]
    assert losses[-1] < losses[0]
    drawn = pyro.sample("free", density.distribution(0.5).expand((2, 3)))
    assert drawn.shape == (2, 3, 1, 4, 4)
    assert density.distribution().expand((2, 3)).log_prob(drawn).shape == (2, 3)


def test_temperature_scales_the_latents():
    density = ImageDensity(Inverse(Chain([ActNorm(1, data_init=False)], event_dim=3)), (1, 8, 8))
    torch.manual_seed(0)
    spread = [density.logit_distribution(t).sample((200,)).std().item() for t in (1.0, 0.5)]
    assert spread[1] / spread[0] == pytest.approx(0.5, rel=0.05)


def test_samples_that_overflow_are_reported():
    density = ImageDensity(Inverse(Chain([ActNorm(1, data_init=False)], event_dim=3)), (1, 8, 8))
    latents = torch.randn(3, 1, 8, 8)
    latents[1, 0, 2, 3] = torch.nan
    with pytest.raises(ImageOverflowError, match="1 of 3 images"):
        density.decode(latents)
    latents[1, 0, 2, 3] = torch.inf
    with pytest.raises(ImageOverflowError, match="1 of 3 images"):
        density.decode(latents)
    assert density.decode(latents[::2]).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("base", ["normal", "logistic"])
def test_densities_that_overflow_are_refused_by_number_and_seen_by_training(base, value):
    flow = Inverse(Chain([ActNorm(1, data_init=False)], event_dim=3))
    density = ImageDensity(flow, (1, 8, 8), base=base)
    batch = images(3, 1, 8, 8)
    for score in (density.log_prob, density.bits_per_dim, density):
        assert torch.isfinite(score(batch)).all()
    with torch.no_grad():
        next(flow.parameters()).fill_(value)
    for score in (density.log_prob, density.bits_per_dim):
        with pytest.raises(ImageOverflowError, match=r"^the density of 3 of 3 images is NaN or zero: .*scale='tanh'"):
            score(batch)
    assert not torch.isfinite(density(batch)).any()


@pytest.mark.parametrize("coupling", ["affine", "quad"])
@pytest.mark.parametrize("name", ["glow", "emerging", "inv_conv3x3", "real_nvp", "mconv"])
def test_samples_stay_finite_however_large_the_networks_outputs(name, coupling):
    """With networks whose outputs are enormous every bound of the scales is reached: 8 steps must not overflow."""
    options = {"coupling": coupling, "num_steps": 4} if name in ("glow", "emerging", "inv_conv3x3") else {}
    flow = small_flow(name, num_levels=2, **options)
    with torch.no_grad():
        for layer in flow.modules():
            if isinstance(layer, Coupling):
                for parameter in layer.conditioners.parameters():
                    parameter.copy_(3 * torch.randn_like(parameter))
    density = ImageDensity(flow, (1, 8, 8)).eval()
    assert density.sample_logits(200).isfinite().all()
