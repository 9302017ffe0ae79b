"""What image densities are given: types, greys, sizes and settings that are right, or refused by name."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from tests.image.small_flows import SMALL, images, small_flow
from tests.transforms.cases import randomise
from vi_flows.distributions.dequantization import Dequantized, VariationalDequantizer
from vi_flows.distributions.image import ImageDensity, ImageOverflowError
from vi_flows.distributions.image_checks import round_trip_error
from vi_flows.flows.image import IMAGE_FLOWS
from vi_flows.transforms import ActNorm, Chain, Inverse, Logit


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


@pytest.mark.parametrize("name", ["glow", "nice", "inv_conv3x3", "inverse_flow", "finc", "maf"])
def test_an_autocast_around_leaves_densities_and_draws_alone(name):
    density = randomise(ImageDensity(small_flow(name), (1, 8, 8)), 0.1).eval()
    x = images(6, 1, 8, 8)

    def seen():
        torch.manual_seed(0)
        return density.log_prob(x), density(x), density.sample_logits(3)

    outside = seen()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(one, other) for one, other in zip(seen(), outside, strict=True))


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
