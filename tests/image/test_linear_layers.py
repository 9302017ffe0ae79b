"""The Jacobian of each linear layer is the matrix that its formula states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch

from tests.transforms.cases import randomise
from vi_flows.transforms import (
    ActNorm,
    ChannelPermutation,
    CircularConv,
    Conv1x1,
    EmergingConv2d,
    OneSidedConv2d,
    Squeeze,
)
from vi_flows.transforms.image.circular_conv import dct, half_spectrum_weights, idct, make_filter
from vi_flows.transforms.image.conv1x1 import LUMatrix


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def dense(bijection, shape):
    jacobian = torch.autograd.functional.jacobian(lambda v: bijection.forward_and_ladj(v)[0], torch.randn(shape))
    size = math.prod(shape)
    return jacobian.reshape(size, size)


@pytest.mark.parametrize("size", [1, 2, 5, 6])
@pytest.mark.parametrize("filter", ["cepstrum", "kernel"])
def test_circular_conv_1d_is_the_circulant_matrix_of_its_kernel(size, filter):
    layer = randomise(CircularConv((2, size), filter), 0.3)
    kernel = layer.filter.kernel(layer.v).detach()
    expected = scipy.linalg.block_diag(*(scipy.linalg.circulant(k) for k in kernel))
    np.testing.assert_allclose(dense(layer, (2, size)), expected, atol=1e-12)
    if filter == "kernel":
        torch.testing.assert_close(kernel, layer.v.detach() + torch.eye(size)[0])


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 4, 3), (1, 5, 5), (1, 1, 4), (1, 4, 1), (3, 2, 2)])
def test_circular_conv_2d_is_the_sum_over_shifted_pixels(shape):
    channels, height, width = shape
    layer = randomise(CircularConv(shape), 0.7)
    kernel = layer.filter.kernel(layer.v).detach()
    expected = torch.zeros(channels, height, width, channels, height, width)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                for m in range(height):
                    for n in range(width):
                        expected[c, i, j, c, m, n] = kernel[c, (i - m) % height, (j - n) % width]
    size = math.prod(shape)
    torch.testing.assert_close(dense(layer, shape), expected.reshape(size, size))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_half_spectrum_weights_count_every_bin_once(size):
    signal = torch.randn(5, size)
    full = torch.fft.fft(signal).abs().log().sum(-1)
    half = (torch.fft.rfft(signal).abs().log() * half_spectrum_weights(size, signal)).sum(-1)
    torch.testing.assert_close(half, full)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (4, 3), (5, 2)])
def test_bounded_spectrum_is_hermitian_and_within_its_bounds(shape):
    """Also at the self-mirrored columns of the half spectrum, where a spectrum predicted directly would break."""
    filter_ = make_filter("cepstrum", 2, bound=0.7)
    v = 30 * torch.randn(1, *shape)
    kernel = filter_.kernel(v)
    spectrum = torch.fft.fft2(kernel)
    mirrored = spectrum.flip(-1, -2).roll((1, 1), (-1, -2)).conj()
    torch.testing.assert_close(spectrum, mirrored)
    magnitude = spectrum.abs().log()
    assert magnitude.abs().max() <= 0.7 + 1e-9
    assert magnitude.abs().max() > 0.65
    expected = 0.7 * torch.tanh(torch.fft.fft2(v, norm="ortho").real / 0.7)
    torch.testing.assert_close(magnitude, expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8])
def test_dct_agrees_with_scipy(size):
    x = torch.randn(3, size)
    np.testing.assert_allclose(dct(x), scipy.fft.dct(x.numpy(), norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(idct(x), scipy.fft.idct(x.numpy(), norm="ortho"), atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 4, 3), (2, 3, 2), (1, 5)])
def test_symmetric_conv_is_diagonal_in_the_cosine_basis(shape):
    layer = randomise(CircularConv(shape, "cosine"), 0.7)
    basis = np.eye(1)
    for size in shape[1:]:
        basis = np.kron(basis, scipy.fft.dct(np.eye(size), axis=0, norm="ortho"))
    axes = tuple(range(1, len(shape)))
    rho = 2.0 * np.tanh(scipy.fft.dctn(layer.v.detach().numpy(), axes=axes, norm="ortho") / 2.0)
    blocks = [basis.T @ np.diag(np.exp(r.ravel())) @ basis for r in rho]
    jacobian = dense(layer, shape)
    np.testing.assert_allclose(jacobian, scipy.linalg.block_diag(*blocks), atol=1e-12)
    assert (torch.linalg.eigvalsh(jacobian) > 0).all()


def one_sided_matrix(kernel, corner, height, width):
    """By definition: output (i, j) sees the pixels towards the corner, the last tap the pixel itself."""
    channels, _, k, _ = kernel.shape
    down, right = (1 if side in corner else -1 for side in ("bottom", "right"))
    matrix = torch.zeros(channels, height, width, channels, height, width)
    for i in range(height):
        for j in range(width):
            for a in range(k):
                for b in range(k):
                    m, n = i + down * (k - 1 - a), j + right * (k - 1 - b)
                    if 0 <= m < height and 0 <= n < width:
                        matrix[:, i, j, :, m, n] = kernel[:, :, a, b]
    size = channels * height * width
    return matrix.reshape(size, size)


@pytest.mark.parametrize("corner", ["top_left", "top_right", "bottom_left", "bottom_right"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("channels", "k", "height", "width"), [(1, 3, 4, 5), (2, 3, 3, 3), (3, 2, 2, 4), (2, 4, 3, 2)])
def test_one_sided_conv(corner, masked, channels, k, height, width):
    layer = randomise(OneSidedConv2d(channels, k, corner, masked), 0.4)
    kernel = layer.kernel().detach()
    matrix = one_sided_matrix(kernel, corner, height, width)
    torch.testing.assert_close(dense(layer, (channels, height, width)), matrix)
    ladj = layer.forward_and_ladj(torch.randn(channels, height, width))[1]
    torch.testing.assert_close(ladj, height * width * torch.linalg.slogdet(kernel[:, :, -1, -1])[1])
    # Channels innermost, pixels in raster order (towards the corner): (block) lower triangular.
    order = torch.arange(channels * height * width).reshape(channels, height, width).permute(1, 2, 0)
    order = order.flip([0] * ("bottom" in corner) + [1] * ("right" in corner)).flatten()
    upper = matrix[order][:, order].triu(1)
    if masked:
        assert torch.equal(upper, torch.zeros_like(upper))
    else:
        blocks = torch.kron(torch.eye(height * width), torch.ones(channels, channels))
        assert torch.equal(upper * (1 - blocks), torch.zeros_like(upper))
        assert channels == 1 or upper.abs().sum() > 0
    expected = float(torch.linalg.cond(matrix))
    assert layer.condition_number(height, width) == pytest.approx(expected, rel=1e-6)


def test_emerging_conv_is_the_product_of_its_halves():
    layer = randomise(EmergingConv2d(2), 0.3)
    first, second = (one_sided_matrix(p.kernel().detach(), p.corner, 3, 4) for p in layer.parts)
    assert {p.corner for p in layer.parts} == {"top_left", "bottom_right"}
    jacobian = dense(layer, (2, 3, 4))
    torch.testing.assert_close(jacobian, second @ first)
    assert jacobian.tril(-1).abs().sum() > 0
    assert jacobian.triu(1).abs().sum() > 0


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_conv1x1_starts_as_a_rotation_and_is_its_matrix_at_each_pixel(channels):
    layer = Conv1x1(channels)
    matrix = layer.weight.matrix()
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(channels))
    torch.testing.assert_close(Conv1x1(channels, rotation=False).weight.matrix(), torch.eye(channels))
    randomise(layer, 0.5)
    matrix = layer.weight.matrix().detach()
    torch.testing.assert_close(dense(layer, (channels, 2, 2)), torch.kron(matrix, torch.eye(4)))
    torch.testing.assert_close(layer.weight.inverse() @ matrix, torch.eye(channels))


def test_lu_matrix_is_never_singular():
    matrix = LUMatrix(4)
    randomise(matrix, 5.0)
    torch.testing.assert_close(torch.linalg.slogdet(matrix.matrix())[1], matrix.log_abs_det())


def test_one_by_one_full_kernel_is_glows():
    conv, glow = OneSidedConv2d(3, 1), Conv1x1(3)
    conv.tap.load_state_dict(glow.weight.state_dict())
    x = torch.randn(2, 3, 4, 5)
    for mine, theirs in zip(conv.forward_and_ladj(x), glow.forward_and_ladj(x), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(conv.inverse_and_ladj(x)[0], glow.inverse_and_ladj(x)[0])


def test_squeeze_and_permutation_move_pixels_where_they_say():
    x = torch.arange(2 * 4 * 6.0).reshape(2, 4, 6)
    y = Squeeze()(x)
    for c in range(2):
        for a in range(2):
            for b in range(2):
                assert torch.equal(y[4 * c + 2 * a + b], x[c, a::2, b::2])
    assert torch.equal(ChannelPermutation([1, 0])(x), x.flip(0))


def test_act_norm_initializes_once_from_data():
    layer = ActNorm(3)
    x = 3 + 2 * torch.randn(4, 16, 3, 5, 5)
    layer.eval()
    torch.testing.assert_close(layer.forward_and_ladj(x)[0], x)
    layer.train()
    assert layer.forward_and_ladj(x[:0])[0].shape == x[:0].shape
    y, _ = layer.forward_and_ladj(x)
    torch.testing.assert_close(y.mean((0, 1, 3, 4)), torch.zeros(3), atol=1e-9, rtol=0)
    torch.testing.assert_close(y.var((0, 1, 3, 4), unbiased=False), torch.ones(3))
    again, _ = layer.forward_and_ladj(x + 1)
    torch.testing.assert_close(again, y + layer.log_scale.exp()[:, None, None])
    fresh = ActNorm(3)
    fresh.load_state_dict(layer.state_dict())
    torch.testing.assert_close(fresh.forward_and_ladj(x + 1)[0], again)
    constant = ActNorm(1)
    assert constant.forward_and_ladj(torch.ones(8, 1, 2, 2))[1].isfinite().all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: OneSidedConv2d(0), "channels"),
        (lambda: OneSidedConv2d(2, 0), "kernel_size"),
        (lambda: OneSidedConv2d(2, 3, "left"), "top_left"),
        (lambda: OneSidedConv2d(2)(torch.zeros(3, 4, 4)), "2 channels"),
        (lambda: Conv1x1(2)(torch.zeros(4, 4)), "images"),
        (lambda: CircularConv((2, 3, 4))(torch.zeros(2, 4, 3)), "expected events"),
        (lambda: CircularConv((2, 3, 4), "wavelet"), "cepstrum"),
        (lambda: CircularConv((2, 3, 4), bound=0.0), "bound"),
        (lambda: CircularConv((3,)), "num_dims"),
        (lambda: Squeeze(0), "factor"),
        (lambda: Squeeze()(torch.zeros(1, 3, 4)), "divisible by 2"),
        (lambda: Squeeze().inverse_and_ladj(torch.zeros(3, 4, 4)), "multiple of 4"),
        (lambda: ChannelPermutation([0, 2]), "permutation"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
