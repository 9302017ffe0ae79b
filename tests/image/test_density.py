"""Image densities: bits/dim by the literal formula, dequantisation, multi-scale priors, use in Pyro models."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from scipy.stats import norm

from tests.transforms.cases import build, randomise
from tests.transforms.image_cases import SmoothConv, coupling
from vi_flows.distributions.dequantization import Dequantized, VariationalDequantizer
from vi_flows.distributions.image import ImageDensity, ImageOverflowError, bits_per_dim
from vi_flows.distributions.image_checks import round_trip_error
from vi_flows.flows.image import IMAGE_FLOWS
from vi_flows.transforms import ActNorm, AffineMap, Chain, Checkerboard, Coupling, Inverse, Logit, SplitPrior

SMALL = {
    "nice": {"hidden_dims": (12,), "num_couplings": 2},
    "maf": {"hidden_dims": (20,), "num_layers": 2},
    "real_nvp": {"width": 6, "num_blocks": 1, "num_couplings": 2, "num_final": 2},
    "mconv": {"width": 6, "num_blocks": 1, "num_couplings": 2},
    "glow": {"width": 6, "num_steps": 2},
    "inv_conv3x3": {"width": 6, "num_steps": 2},
    "inverse_flow": {"width": 6, "num_steps": 2},
    "emerging": {"width": 6, "num_steps": 2},
    "periodic": {"width": 6, "num_steps": 2, "kernel_size": 1},
    "finc": {"width": 6, "num_steps": 2},
    "flow_pp": {"width": 6, "num_steps": 2},
}
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


def small_flow(name, shape=(1, 8, 8), seed=0, **options):
    torch.manual_seed(seed)
    build = {key: options.pop(key) for key in ("recompute", "conditioner_dtype") if key in options}
    return IMAGE_FLOWS[name](**{**SMALL[name], **options}).build(shape, **build)


def images(*shape, levels=256):
    torch.manual_seed(3)
    return torch.randint(0, levels, shape, dtype=torch.uint8)


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


def test_a_larger_batch_looks_at_its_values_as_the_smaller_one_does():
    density = ImageDensity(small_flow("nice", (1, 4, 4)), (1, 4, 4))
    grey = torch.rand(3, 1, 4, 4)

    def model():
        with pyro.plate("images", 3):
            pyro.sample("x", density.distribution(), obs=grey)

    with pytest.raises(ValueError, match="images must be whole numbers from 0 to 255"):
        pyro.poutine.trace(model).get_trace().log_prob_sum()
    larger = density.distribution().expand((2, 3))
    with pytest.raises(ValueError, match="images must be whole numbers from 0 to 255"):
        larger.expand((4, 2, 3)).log_prob(grey)
    unchecked = Dequantized(density.distribution().base_dist, 256, validate_args=False)
    assert unchecked.expand((3,)).log_prob(grey).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
def test_images_of_any_type_are_scored_in_the_densitys_own(dtype):
    density = randomise(ImageDensity(small_flow("nice", (1, 4, 4)), (1, 4, 4)), 0.1).double()
    x = images(3, 1, 4, 4)
    torch.manual_seed(2)
    expected = density.log_prob(x)
    torch.manual_seed(2)
    assert torch.equal(density.distribution().log_prob(x.to(dtype)), expected)
    torch.manual_seed(2)
    assert torch.equal(density.distribution().expand((3,)).log_prob(x.to(dtype)), expected)
    assert torch.equal(density.encode(x.to(dtype)), density.encode(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_that_round_the_noise_away_are_refused(dtype):
    """The noise of 128 … 255 in bfloat16 is 0 or 1: 8.82 bits where float32 has 8.95."""
    density = ImageDensity(small_flow("glow"), (1, 8, 8)).to(dtype)
    x, z = images(2, 1, 8, 8), torch.randn(2, 1, 8, 8).to(dtype)
    plain = Dequantized(dist.Uniform(torch.zeros(1, 8, 8), 1.0).to_event(3))
    for call in (
        lambda: density(x), lambda: density.log_prob(x), lambda: density.distribution(), lambda: density.sample(2),
        lambda: density.encode(x), lambda: density.decode(z), lambda: density.interpolate(x, x),
        lambda: density.logit_distribution(), lambda: plain.log_prob(x.to(dtype)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"need float32 or float64, got torch\.b?float16, .*conditioner_dtype"):
            call()


@pytest.mark.parametrize("name", ["glow", "nice", "inv_conv3x3", "maf"])
def test_an_autocast_around_leaves_decoding_exact(name):
    density = randomise(ImageDensity(small_flow(name), (1, 8, 8)), 0.1).eval()
    x = images(6, 1, 8, 8)
    latents, rounding = density.encode(x), round_trip_error(density, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(density.encode(x), latents)
        assert torch.equal(density.decode(latents), x)
        assert torch.equal(density.interpolate(x, x.flip(0), 2)[1], x.flip(0))
        assert round_trip_error(density, x) == rounding


@pytest.mark.parametrize("value", [-1.0, 256.0, 0.5, 5000.0, math.nan])
def test_what_is_no_image_has_no_latents(value):
    density = ImageDensity(small_flow("nice"), (1, 8, 8))
    x = images(2, 1, 8, 8).float()
    x[1, 0, 3, 3] = value
    for call in (density.encode, lambda x: density.interpolate(x, x), lambda x: round_trip_error(density, x)):
        with pytest.raises(
            ValueError, match=f"images must be whole numbers from 0 to 255, and 1 of 128.* as {value:g}:"
        ):
            call(x)
    assert ImageDensity(small_flow("nice"), (1, 8, 8), num_levels=2).encode(x > 100).isfinite().all()


def test_a_drawn_image_that_is_none_is_reported_by_pyro_too():
    density = ImageDensity(Inverse(Chain([ActNorm(1, data_init=False)], event_dim=3)), (1, 8, 8))
    assert density.distribution().sample((3,)).isfinite().all()
    with torch.no_grad():
        next(density.flow.parameters()).fill_(torch.nan)
    with pytest.raises(ImageOverflowError, match="6 of 6 images are NaN"):
        pyro.sample("x", density.distribution().expand((2, 3)))


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


@pytest.mark.parametrize("alpha", [1e-6, 0.05])
def test_logit_round_trip_and_determinant(alpha):
    layer = Logit(alpha)
    v = torch.rand(4, 1, 2, 3, dtype=torch.float64)
    y, ladj = layer.forward_and_ladj(v)
    torch.testing.assert_close(y, torch.logit(alpha + (1 - alpha) * v))
    back, inverse_ladj = layer.inverse_and_ladj(y)
    torch.testing.assert_close(back, v)
    torch.testing.assert_close(inverse_ladj, -ladj)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x), v[0]).reshape(6, 6)
    torch.testing.assert_close(ladj[0], torch.linalg.slogdet(jacobian)[1])


def test_logit_keeps_the_top_grey_value_finite():
    y, ladj = Logit(1e-6).forward_and_ladj(torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1))
    assert y.isfinite().all()
    assert ladj.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("value", [0, 255])
def test_one_constant_image_at_either_end_trains(name, value):
    """The start has one image without any spread to learn from, at the edge of the logit map."""
    # Batch normalisation of one image alone is refused.
    density = ImageDensity(small_flow(name, **({"norm": "none"} if name == "maf" else {})), (1, 8, 8))
    x = torch.full((1, 1, 8, 8), value, dtype=torch.uint8)
    density.initialize(x)
    optimizer = torch.optim.Adam(density.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        loss = density(x).mean()
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in density.parameters())
        optimizer.step()
    density.eval()
    assert torch.equal(density.decode(density.encode(x)), x)


def test_odd_sizes_are_right_or_refused():
    x = images(4, 1, 7, 5)
    for name in ("nice", "maf"):
        density = randomise(ImageDensity(small_flow(name, (1, 7, 5)), (1, 7, 5)), 0.05).eval()
        assert torch.equal(density.decode(density.encode(x)), x)
    for name in set(SMALL) - {"nice", "maf"}:
        with pytest.raises(
            ValueError, match="does not divide 7 × 5; take nice or maf, which do without squeezes, or pad"
        ):
            small_flow(name, (1, 7, 5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: IMAGE_FLOWS["glow"](num_levels=3).build((1, 28, 28)), "8, which does not divide 28"),
        *(
            (partial(small_flow, name, (8, 8)), r"image_shape must be \(C, H, W\), three whole numbers.*got \(8, 8\)")
            for name in SMALL
        ),
        (lambda: small_flow("maf", (1, 0, 8)), r"three whole numbers from 1 upwards, got \(1, 0, 8\)"),
        (lambda: IMAGE_FLOWS["maf"]().build_conditional((1, 8, 8), 0), "context_dim must be at least 1, got 0"),
        (
            lambda: ImageDensity(small_flow("glow"), (8, 8)),
            r"image_shape must be \(C, H, W\), three whole numbers.*got \(8, 8\)",
        ),
        (lambda: ImageDensity(small_flow("glow"), (1, 8, 8), num_levels=1), "num_levels must be at least 2, got 1"),
        (lambda: ImageDensity(small_flow("glow"), (1, 8, 8), num_levels=2.5), "num_levels must be a whole number"),
        (lambda: IMAGE_FLOWS["glow"](num_levels=3).build((1, 28, 28)), "use fewer levels or pad"),
        (lambda: IMAGE_FLOWS["periodic"](num_levels=2).build((1, 8, 12)), "squeezed by 4 are 2 × 3: use fewer levels"),
        (lambda: IMAGE_FLOWS["glow"](coupling="triple"), "quad_mconv"),
        (lambda: IMAGE_FLOWS["real_nvp"](norm="layer"), "batch"),
        (lambda: ImageDensity(small_flow("glow"), (1, 8, 8), base="cauchy"), "logistic"),
        (lambda: ImageDensity(small_flow("glow"), (1, 8, 8), alpha=0.0), "alpha"),
        (lambda: ImageDensity(small_flow("glow"), (1, 8, 8))(images(2, 1, 8, 6)), "expected images"),
        (lambda: ImageDensity(small_flow("glow"), (1, 8, 8)).log_prob(images(2, 1, 8, 8), 0), "num_draws"),
        (lambda: ImageDensity(small_flow("glow"), (1, 8, 8)).sample(2, temperature=0.0), "temperature"),
        (lambda: Dequantized(dist.Normal(torch.zeros(3), 1.0).to_event(1)), "events"),
        (lambda: Dequantized(dist.Normal(torch.zeros(1, 2, 2), 1.0).to_event(3), 1), "num_levels"),
        (
            lambda: Dequantized(dist.Normal(torch.zeros(1, 2, 2), 1.0).to_event(3), 4).log_prob(
                torch.ones(1, 2, 2) * 4
            ),
            "whole numbers from 0 to 3, and 4 of 4",
        ),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def density_of(*shape, **settings):
    return ImageDensity(small_flow("glow", shape), shape, **settings).eval()


GREYS = "images must be whole numbers from 0 to 255, and .* of 128 values are not, such as"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        *[(lambda n=n: density_of(1, 8, 8, num_levels=n), f"num_levels must be .*got {n}") for n in (1, 0, -3, 2.5)],
        (lambda: density_of(1, 8, 8, num_levels=2**20).sample(1), "at most 131072, or float64"),
        (lambda: ImageDensity(small_flow("glow"), (8, 8)), r"image_shape must be \(C, H, W\).*got \(8, 8\)"),
        *[
            (lambda name=name: small_flow(name, (8, 8)), r"image_shape must be \(C, H, W\)")
            for name in ("nice", "maf", "glow", "real_nvp")
        ],
        (lambda: density_of(1, 8, 8).log_prob(images(2, 1, 8, 8).int() + 256), GREYS),
        (lambda: density_of(1, 8, 8).log_prob(images(2, 1, 8, 8) - 0.5), GREYS),
        (lambda: density_of(1, 8, 8).distribution().log_prob(images(2, 1, 8, 8).int() + 256), GREYS),
        (lambda: density_of(1, 8, 8).log_prob(images(2, 1, 8, 8), 1.5), "num_draws must be a whole number"),
        (lambda: density_of(1, 8, 8).sample(-1), "num_samples must be at least 0"),
        (lambda: density_of(1, 8, 8).sample((2,)), "num_samples must be a whole number"),
        *[
            (lambda t=t: density_of(1, 8, 8).sample(1, t), "temperature must be positive and finite")
            for t in (float("inf"), "warm", torch.ones(2))
        ],
        (
            lambda: density_of(1, 8, 8).interpolate(images(2, 1, 8, 8), images(3, 1, 8, 8)),
            "second has a batch of .3,., which doesn't go with .2,.",
        ),
        (lambda: density_of(1, 8, 8).interpolate(*images(2, 1, 1, 8, 8), 2.5), "num_steps must be a whole number"),
        (lambda: density_of(1, 8, 8).distribution(loc=torch.zeros(2, 1, 8, 6)), "loc and log_scale of .2, 1, 8, 6."),
    ],
)
def test_what_has_no_density_is_refused_in_a_sentence(call, words):
    """PyTorch's own words have the whole tensor in them."""
    with pytest.raises(ValueError, match=words) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_greys_beyond_the_range_have_no_density_without_validation_either():
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=GREYS):
        density_of(1, 8, 8, alpha=0.3).log_prob(images(2, 1, 8, 8).int() + 200)


@pytest.mark.parametrize("name", SMALL)
def test_an_empty_batch_has_an_empty_answer(name):
    density = ImageDensity(small_flow(name), (1, 8, 8), dequantizer=VariationalDequantizer(1, width=4)).eval()
    none = images(0, 1, 8, 8)
    assert density.log_prob(none).shape == (0,)
    assert density.decode(density.encode(none)).shape == density.sample(0).shape == (0, 1, 8, 8)


def test_latents_of_another_type_are_decoded_in_the_density_s():
    density, x = density_of(1, 8, 8), images(3, 1, 8, 8)
    assert torch.equal(density.decode(density.encode(x).double()), x)


def test_a_scale_for_each_image_needs_no_mean():
    density, log_scale = density_of(1, 8, 8), torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    assert density.distribution(log_scale=log_scale).batch_shape == (2,)
    scales = density.base_dist(0.5, log_scale=log_scale).base_dist.scale[:, 0, 0, 0]
    torch.testing.assert_close(scales, 0.5 * log_scale.exp().flatten())
