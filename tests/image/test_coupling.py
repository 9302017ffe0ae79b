"""Coupling layers: the papers' equations, what each group may depend on, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.transforms.cases import randomise
from tests.transforms.image_cases import SmoothConv, coupling
from vi_flows.nn import ConvConditioner, MLPConditioner, ResNetConditioner
from vi_flows.transforms import (
    AdditiveMap,
    AffineMap,
    ChannelGroups,
    Checkerboard,
    ConditionalCoupling,
    ConvMap,
    Coupling,
    FourCornerConv2d,
    MConvMap,
    MixtureMap,
    PeriodicConv2d,
    SplineMap,
)
from vi_flows.transforms.coupling_maps import GaussianMap
from vi_flows.transforms.image.circular_conv import make_filter


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_quad_coupling_is_the_papers_and_sees_inputs():
    layer = coupling(ChannelGroups(8, 4), 8, AffineMap("exp"))
    x = torch.randn(2, 8, 3, 3)
    groups = x.chunk(4, 1)
    expected, ladj = [groups[0]], 0
    for m, network in enumerate(layer.conditioners, 1):
        f, g = network(torch.cat(groups[:m], 1)).chunk(2, 1)
        expected.append((groups[m] + f) * g.exp())
        ladj = ladj + g.flatten(1).sum(1)
    y, total = layer.forward_and_ladj(x)
    torch.testing.assert_close(y, torch.cat(expected, 1))
    torch.testing.assert_close(total, ladj)
    torch.testing.assert_close(layer.inverse_and_ladj(y)[0], x)


@pytest.mark.parametrize("swap", [False, True])
def test_groups_depend_on_earlier_groups_only(swap):
    layer = coupling(ChannelGroups(4, 4, swap), 4, AffineMap())
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v), torch.randn(4, 1, 1)).squeeze()
    if swap:
        jacobian = jacobian.flip(0, 1)
    assert torch.equal(jacobian.triu(1), torch.zeros(4, 4))
    assert (jacobian[torch.tril_indices(4, 4, -1).unbind()] != 0).all()
    assert jacobian[0, 0] == 1


@pytest.mark.parametrize("shape", [(3, 4), (3, 3), (4, 4), (1, 1), (1, 5)])
@pytest.mark.parametrize("parity", [0, 1])
def test_checkerboard_keeps_and_changes_the_right_pixels(shape, parity):
    height, width = shape
    layer = coupling(Checkerboard(parity), 2, AffineMap())
    x = torch.randn(5, 2, height, width)
    y, _ = layer.forward_and_ladj(x)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    changed = (rows + columns) % 2 == parity
    assert torch.equal(y[..., ~changed], x[..., ~changed])
    assert (y[..., changed] != x[..., changed]).all()
    other = x + changed * torch.randn_like(x)
    maps = [layer._maps(layer.partition.split(v)[:1], 1, v)[0] for v in (x, other)]
    assert torch.equal(*maps)
    groups = layer.partition.split(x)
    assert torch.equal(layer.partition.merge(groups, x.shape), x)
    if width % 2 == 0:
        assert groups[0].shape == groups[1].shape == (5, 2, height, width // 2)
        expected = torch.stack([row[mask] for row, mask in zip(x[0, 0], changed, strict=True)])
        assert torch.equal(groups[1][0, 0], expected)


@pytest.mark.parametrize("scale", ["exp", "sigmoid", "tanh"])
def test_mconv_is_scale_of_convolution_plus_shifts(scale):
    change = MConvMap(scale, "kernel")
    x = torch.randn(2, 3, 4, 5)
    v, b, g, t = (0.2 * torch.randn(2, 3, 4, 5) for _ in range(4))
    y, ladj = change(x, [v, b, g, t])
    w = v.clone()
    w[..., 0, 0] += 1
    convolved = torch.fft.ifft2(torch.fft.fft2(w) * torch.fft.fft2(x)).real
    s = {"exp": g.exp(), "sigmoid": 0.05 + 0.95 * torch.sigmoid(g + 2), "tanh": (2 * torch.tanh(g / 2)).exp()}[scale]
    torch.testing.assert_close(y, s * (convolved + b) + t)
    expected = torch.fft.fft2(w).abs().log().sum((1, 2, 3)) + s.log().sum((1, 2, 3))
    torch.testing.assert_close(ladj, expected)
    torch.testing.assert_close(change(y, [v, b, g, t], inverse=True)[0], x)


@pytest.mark.parametrize("filter", ["cepstrum", "cosine"])
@pytest.mark.parametrize("magnitude", [10.0, 1e3])
def test_bounded_maps_stay_bijective_at_extreme_parameters(filter, magnitude):
    change = MConvMap("tanh", filter, bound=1.0)
    x = torch.randn(3, 2, 4, 5)
    maps = [magnitude * torch.randn(3, 2, 4, 5) for _ in range(4)]
    y, ladj = change(x, maps)
    back, inverse_ladj = change(y, maps, inverse=True)
    assert (back - x).abs().max() < 1e-11 * magnitude
    torch.testing.assert_close(inverse_ladj, -ladj)
    filtered, _ = make_filter(filter, 2, 1.0)(x, maps[0])
    ratio = filtered.flatten(2).norm(dim=-1) / x.flatten(2).norm(dim=-1)
    assert (ratio <= torch.e * 1.000001).all()
    assert (ratio >= 1 / 2.7182819).all()


@pytest.mark.parametrize("change", [AdditiveMap(), AffineMap("exp"), AffineMap("tanh"), ConvMap(), MConvMap("tanh")])
@pytest.mark.parametrize("network", [ConvConditioner, ResNetConditioner])
def test_starts_at_the_identity(change, network):
    partition = ChannelGroups(4)
    layer = Coupling(partition, [network(2, 2 * change.num_maps, 8)], change)
    x = torch.randn(2, 4, 3, 4)
    y, ladj = layer.forward_and_ladj(x)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(ladj, torch.zeros(2))


def test_context_broadcasts_against_the_image():
    family = ConditionalCoupling(Checkerboard(), [SmoothConv(3 + 2, 4)], AffineMap(), context_channels=3)
    randomise(family, 0.5)
    context, x = torch.randn(5, 1, 3, 4, 4), torch.randn(6, 2, 4, 4)
    y, ladj = family.condition(context).forward_and_ladj(x)
    assert y.shape == (5, 6, 2, 4, 4)
    assert ladj.shape == (5, 6)
    one, one_ladj = family.condition(context[3, 0]).forward_and_ladj(x[2])
    torch.testing.assert_close(one, y[3, 2])
    torch.testing.assert_close(one_ladj, ladj[3, 2])
    torch.testing.assert_close(family.condition(context).inverse_and_ladj(y)[0], x.expand_as(y))
    context.requires_grad_()
    family.condition(context).forward_and_ladj(x)[1].sum().backward()
    assert context.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="context has 2 channels a row, expected 3"):
        family.condition(torch.zeros(2, 4, 4))


def test_networks_in_bfloat16_leave_the_bijection_exact():
    torch.set_default_dtype(torch.float32)
    layer = Coupling(ChannelGroups(4), [ConvConditioner(2, 4, 16)], AffineMap(), conditioner_dtype=torch.bfloat16)
    randomise(layer, 0.3)
    x = torch.randn(3, 4, 6, 6)
    y, ladj = layer.forward_and_ladj(x)
    assert y.dtype == ladj.dtype == torch.float32
    layer.conditioner_dtype = None
    exact = layer.forward_and_ladj(x)[0]
    assert 0 < (y - exact).abs().max() < 0.5
    layer.conditioner_dtype = torch.bfloat16
    torch.testing.assert_close(layer.inverse_and_ladj(y)[0], x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ChannelGroups(6, 4), "quad-coupling needs a number of channels divisible by 4, got 6"),
        (lambda: ChannelGroups(1), "squeeze"),
        (lambda: ChannelGroups(4, 1), "2 groups"),
        (lambda: Checkerboard(2), "parity"),
        (lambda: AffineMap("softmax"), "sigmoid"),
        (lambda: MConvMap(filter="wavelet"), "cepstrum"),
        (lambda: Coupling(ChannelGroups(4, 4), [nn.Identity()], AffineMap()), "3 conditioners"),
        (lambda: Coupling(ChannelGroups(4), [nn.Identity()], AffineMap())(torch.zeros(4, 2, 2)), "expected"),
        (lambda: coupling(Checkerboard(), 1, MConvMap())(torch.zeros(1, 3, 3)), "rectangular"),
        (lambda: coupling(ChannelGroups(4), 4, AffineMap())(torch.zeros(4, 2)), "images"),
        (lambda: ConvConditioner(0, 2), "at least 1"),
        (lambda: ResNetConditioner(2, 2, norm="layer"), "group"),
        (lambda: MLPConditioner((1, 2, 2), 1, (3,), "sine"), "activation"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_bounded_scale_of_a_split_has_slope_one_at_zero_and_on_both_sides():
    """Every split prior starts at zero exactly."""
    g = torch.tensor([-1e-4, 0.0, 1e-4, -60.0, 60.0], dtype=torch.float64).requires_grad_()
    x = torch.full_like(g, 0.7)
    _, log_slope = GaussianMap().elementwise(x, [torch.zeros_like(g), g], inverse=False)
    torch.testing.assert_close(
        log_slope, -torch.stack([g[0], g[1], g[2], *g.new_tensor([-6.0, 2.0])]), atol=1e-7, rtol=0
    )
    (gradient,) = torch.autograd.grad(log_slope.sum(), g)
    torch.testing.assert_close(gradient, g.new_tensor([-1.0, -1.0, -1.0, 0.0, 0.0]), atol=1e-6, rtol=0)


def test_mixture_is_the_logit_of_the_mixtures_cdf_with_a_leak():
    change = MixtureMap(3)
    x = torch.randn(2, 1, 2, 2)
    maps = [torch.randn(2, 1, 2, 2) for _ in range(change.num_maps)]
    y, ladj = change(x, maps)
    shift, log_scale = maps[0], 2 * torch.tanh(maps[1] / 2)
    weights = torch.stack(maps[2:5]).softmax(0)
    means = torch.stack([maps[5] - 0.5, maps[6], maps[7] + 0.5])  # 3 of 5 equal steps from −1 to 1
    widths = (4 * torch.tanh(torch.stack(maps[8:]) / 4)).exp()
    cdf = (weights * torch.sigmoid((x - means) / widths)).sum(0)
    z = (x - means) / widths
    pdf = (weights * torch.sigmoid(z) * torch.sigmoid(-z) / widths).sum(0)
    bent = 0.95 * torch.logit(cdf) + 0.05 * x
    torch.testing.assert_close(y, (bent + shift) * log_scale.exp())
    slope = 0.95 * pdf / (cdf * (1 - cdf)) + 0.05
    torch.testing.assert_close(ladj, (slope.log() + log_scale).sum((1, 2, 3)))


def test_the_gradients_of_the_mixtures_inverse_are_those_of_its_slope_in_both_precisions():
    change = MixtureMap(4)
    y = 2 * torch.randn(200, 1, 1, 1, dtype=torch.float64)
    maps = [torch.randn(200, 1, 1, 1, dtype=torch.float64) for _ in range(change.num_maps)]
    gradients = {}
    for dtype in (torch.float64, torch.float32):
        leaves = [value.to(dtype).requires_grad_() for value in (y, *maps)]
        x, log_slope = change.elementwise(leaves[0], leaves[1:], inverse=True)
        gradients[dtype] = torch.autograd.grad(x.sum(), leaves)
        torch.testing.assert_close(gradients[dtype][0], log_slope.exp(), rtol=1e-4, atol=0.0)
    for found, right in zip(gradients[torch.float32], gradients[torch.float64], strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-3, atol=1e-4)
    # The implicit derivatives against those of the forward map: ∂x/∂θ = −(∂y/∂θ)/(∂y/∂x).
    x = x.detach().double().requires_grad_()
    leaves = [value.requires_grad_() for value in maps]
    by_x, *by_maps = torch.autograd.grad(change.elementwise(x, leaves, inverse=False)[0].sum(), [x, *leaves])
    for found, forward in zip(gradients[torch.float64][1:], by_maps, strict=True):
        torch.testing.assert_close(found, -forward / by_x, rtol=1e-3, atol=1e-4)


def test_one_component_is_affine():
    change = MixtureMap(1)
    x = torch.linspace(-30, 30, 7).reshape(7, 1, 1, 1)
    maps = [torch.zeros(7, 1, 1, 1) for _ in range(5)]
    maps[3] += 2.0  # μ
    maps[4] += 4 * math.atanh(math.log(2) / 4)  # s = log 2
    torch.testing.assert_close(change(x, maps)[0], 0.95 * (x - 2) / 2 + 0.05 * x)


def test_spline_by_hand_and_by_its_knots():
    change = SplineMap(2, bound=2.0)
    x = torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 5.0]).reshape(7, 1, 1, 1)
    maps = [torch.zeros(7, 1, 1, 1) for _ in range(change.num_maps)]
    torch.testing.assert_close(change(x, maps)[0], x)  # zero maps: the identity
    # Heights shared 3 : 1 before the floor of 0.05: 0.05 + 0.9 · 3/4 = 0.725 of 4, so the middle knot is (0, 0.9).
    maps[4] += math.log(3.0)
    y, ladj = change(x, maps)
    torch.testing.assert_close(y.flatten()[[0, 1, 3, 5, 6]], torch.tensor([-3.0, -2.0, 0.9, 2.0, 5.0]))
    # Bin −2 … 0: w = 2, h = 2.9, s = 1.45, slopes 1 at both ends; at ξ = ½:
    # −2 + 2.9 (1.45/4 + 1/4) / (1.45 + (2 − 2.9)/4) = −2 + 2.9 · 0.6125/1.225 = −0.55,
    # slope 1.45² (1/4 + 1.45/2 + 1/4) / 1.225² = 1.7165.
    assert y[2].item() == pytest.approx(-0.55)
    assert ladj[2].item() == pytest.approx(math.log(1.45**2 * 1.225 / 1.225**2))


@pytest.mark.parametrize("change", [MixtureMap(4), SplineMap(8)])
@pytest.mark.parametrize("magnitude", [10.0, 1e3])
def test_bent_maps_invert_at_extreme_parameters(change, magnitude):
    x = 3 * torch.randn(50, 2, 3, 3)
    maps = [magnitude * torch.randn(50, 2, 3, 3) for _ in range(change.num_maps)]
    maps[0] /= magnitude
    y, ladj = change(x, maps)
    back, inverse_ladj = change(y, maps, inverse=True)
    assert y.isfinite().all()
    assert (back - x).abs().max() < 1e-6
    torch.testing.assert_close(inverse_ladj, -ladj, atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: MixtureMap(0), "num_components"), (lambda: SplineMap(1), "num_bins"), (lambda: SplineMap(4, 0.0), "bound"),
    (lambda: PeriodicConv2d(2, 2), "odd"), (lambda: PeriodicConv2d(2, bound=1.0), "bound"),
    (lambda: PeriodicConv2d(2)(torch.zeros(2, 2, 5)), "at least that size"),
    (lambda: FourCornerConv2d(6), "divisible by 4"),
])  # fmt: skip
def test_what_new_layers_refuse(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_periodic_convolution_wraps_around_and_is_never_singular():
    layer = PeriodicConv2d(2, 3)
    with torch.no_grad():
        layer.taps.copy_(1e3 * torch.randn_like(layer.taps))
    x = torch.randn(1, 2, 4, 5)
    rolled = layer(x.roll((1, 2), (-2, -1)))
    torch.testing.assert_close(rolled, layer(x).roll((1, 2), (-2, -1)))
    singular = torch.linalg.svdvals(layer.spectrum(4, 5))
    assert 0.1 <= singular.min() < singular.max() <= 1.9
    torch.testing.assert_close(layer.inverse_and_ladj(layer(x))[0], x)


def test_four_corners_look_four_ways():
    layer = FourCornerConv2d(4, 2)
    with torch.no_grad():
        for part in layer.parts:
            part.taps.fill_(1.0)
    x = torch.zeros(1, 4, 3, 3)
    x[..., 1, 1] = 1.0
    seen = layer(x)[0] != 0
    corners = [seen[i].nonzero().tolist() for i in range(4)]
    assert corners == [
        [[1, 1], [1, 2], [2, 1], [2, 2]], [[1, 0], [1, 1], [2, 0], [2, 1]],
        [[0, 1], [0, 2], [1, 1], [1, 2]], [[0, 0], [0, 1], [1, 0], [1, 1]],
    ]  # fmt: skip
