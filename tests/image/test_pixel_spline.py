"""One increasing function of all pixels: the same as a spline an entry, and what it makes of a density."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from tests.transforms.cases import randomise
from vi_flows.distributions.image import ImageDensity
from vi_flows.distributions.image_config import build_image_density, image_config
from vi_flows.training import ImageTrainConfig
from vi_flows.training.config import config_to_dict
from vi_flows.transforms import ActNorm, Chain, Inverse, PixelSpline, Scaling
from vi_flows.transforms.rational_quadratic import rational_quadratic


def made(channels: int = 3, num_bins: int = 7, bound: float = 2.0) -> PixelSpline:
    torch.manual_seed(4)
    layer = PixelSpline(channels, num_bins, bound).double()
    randomise(layer, 1.0)
    return layer


@pytest.mark.parametrize("inverse", [False, True])
def test_it_is_the_spline_of_each_channel_at_every_pixel(inverse: bool) -> None:
    """Values, log-determinant and the gradients of everything, against parameters spelled out for each pixel."""
    layer = made()
    x = (2 * torch.randn(2, 5, 3, 4, 2, dtype=torch.float64)).requires_grad_()
    shared = (layer.inverse_and_ladj if inverse else layer.forward_and_ladj)(x)
    free = [p[:, None, None, :, None, None].expand(-1, *x.shape) for p in layer.parameters()]
    y, log_slope = rational_quadratic(x, *free, layer.bound, inverse)
    single = y, log_slope.sum((-3, -2, -1)) * (-1 if inverse else 1)
    weights = [torch.randn_like(each) for each in shared]
    for one, other in zip(shared, single, strict=True):
        torch.testing.assert_close(one, other)
    sources = [x, *layer.parameters()]
    gradients = [
        torch.autograd.grad(sum((w * each).sum() for w, each in zip(weights, pair, strict=True)), sources)
        for pair in (shared, single)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_it_starts_as_the_identity_and_stays_it_outside() -> None:
    x = 4 * torch.randn(2, 3, 4, 4, dtype=torch.float64)
    y, ladj = PixelSpline(3, 7, 2.0).double().forward_and_ladj(x)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(ladj, torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    y, _ = made().forward_and_ladj(x)
    outside = x.abs() >= 2.0
    assert torch.equal(y[outside], x[outside])
    assert not torch.isclose(y[~outside], x[~outside]).any()
    assert bool((y[~outside].abs() <= 2.0).all())


def test_a_density_with_it_integrates_to_one_over_the_pixels_values() -> None:
    flow = Chain([Scaling((1, 1, 1)), Inverse(made(1, 9, 3.0))]).double()
    randomise(flow, 0.5)
    density = ImageDensity(flow, (1, 1, 1), num_levels=4).double()
    grid = torch.linspace(-15, 15, 60001, dtype=torch.float64)
    total = torch.trapezoid(density.logit_distribution().log_prob(grid.reshape(-1, 1, 1, 1)).exp(), grid)
    assert total.item() == pytest.approx(1.0, abs=1e-6)


def test_it_learns_the_noise_of_one_grey_value_and_an_affine_flow_cannot() -> None:
    """All pixels are 0 of 256: 0 bits are enough. A normal density of its logits costs what the best normal does.

    In nats: log 256 of the grey value's own width, its logits ``log v`` with ``v`` uniform on (0, 1/256), have the
    entropy 1 of an exponential distribution; the normal of the same variance 1 costs ½ log(2πe).
    """
    torch.manual_seed(0)
    images = torch.zeros(64, 1, 8, 8, dtype=torch.long)
    found = {}
    for bins in (0, 48):
        parts = [Inverse(ActNorm(1)), *([Inverse(PixelSpline(1, bins))] if bins else [])]
        density = ImageDensity(Chain(parts), (1, 8, 8))
        optimizer = torch.optim.Adam(density.parameters(), 0.03)
        for _ in range(300):
            optimizer.zero_grad()
            density.bits_per_dim(images).mean().backward()
            optimizer.step()
        with torch.no_grad():
            found[bins] = density.bits_per_dim(images).mean().item()
    assert found[0] == pytest.approx((0.5 * math.log(2 * math.pi * math.e) - 1) / math.log(2), abs=0.03)
    assert found[48] < 0.1


def test_it_is_a_setting_that_earlier_keys_do_not_know() -> None:
    config = image_config("glow", num_levels=1, num_steps=1, width=4, pixel_spline=6)
    assert config.name.endswith("-spline6")
    density = build_image_density(config, (3, 4, 4))
    sizes = {name: tuple(p.shape) for name, p in density.flow.parts[1].named_parameters()}
    assert sizes == {"bijection.widths": (6, 3), "bijection.heights": (6, 3), "bijection.slopes": (5, 3)}
    assert density.bits_per_dim(torch.randint(0, 256, (2, 3, 4, 4))).isfinite().all()
    assert "pixel_spline" not in config_to_dict(ImageTrainConfig())["image"]
    assert config_to_dict(ImageTrainConfig(image=config))["image"]["pixel_spline"] == 6


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: PixelSpline(0), "channels must be at least 1"),
        (lambda: PixelSpline(1, 1), "num_bins must be at least 2"),
        (lambda: PixelSpline(1, 4, 0.0), "bound must be positive"),
        (lambda: PixelSpline(2).forward_and_ladj(torch.zeros(1, 3, 4, 4)), "images of 2 channels"),
        (lambda: image_config("glow", pixel_spline=1), "pixel_spline must be 0 .none. or at least 2, got 1"),
        (lambda: image_config("glow", pixel_spline=-1), "pixel_spline"),
    ],
)
def test_bad_arguments_are_named(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_images_with_channels_last_are_searched_without_a_warning() -> None:
    """PyTorch's, of values that don't lie one after the other, once a process; here always."""
    layer, before = PixelSpline(3, 4), torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            y, _ = layer.forward_and_ladj(torch.randn(2, 3, 5, 4).to(memory_format=torch.channels_last))
            layer.inverse_and_ladj(y)
    finally:
        torch.set_warn_always(before)
