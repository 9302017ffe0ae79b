"""The compiled inverse of one-sided convolutions: against substitution pixel by pixel, and when it is used."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.stacks import HAVE_C, needs_c
from tests.transforms.cases import randomise
from vi_flows.kernels import native, use_kernel
from vi_flows.kernels.substitution import serves_substitution, substitute
from vi_flows.transforms import FourCornerConv2d, OneSidedConv2d
from vi_flows.transforms.image.inv_conv import CORNERS
from vi_flows.transforms.image.solvers import CompiledSolver, FollowedSolver, RowSolver, solve_by_pixels

pytestmark = needs_c

INSTRUCTION_SETS = native.ISAS[: native.ISAS.index(native.load().isa) + 1] if HAVE_C else ()
# Images, channels, height, width, k: whole and broken tiles, all numbers of channels that are computed side by side.
SIZES = [
    (3, 1, 6, 5, 3),
    (17, 4, 4, 4, 3),
    (2, 2, 3, 7, 5),
    (5, 3, 4, 4, 1),
    (33, 13, 3, 4, 3),
    (16, 6, 2, 3, 2),
    (1, 24, 2, 3, 4),
    (9, 27, 1, 1, 3),
    (8, 8, 5, 1, 3),
]


def _problem(n, channels, height, width, k, dtype=torch.float64):
    torch.manual_seed(0)
    kernel = 0.3 / channels**0.5 * torch.randn(channels, channels, k, k, dtype=torch.float64)
    kernel[:, :, -1, -1] += torch.eye(channels)
    y = torch.randn(n, channels, height, width, dtype=torch.float64)
    return kernel, CompiledSolver.from_kernel(kernel, width).matrix.to(dtype), y


@pytest.mark.parametrize("isa", range(len(INSTRUCTION_SETS)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_substitution_by_pixels(size, dtype, isa):
    kernel, matrix, y = _problem(*size, dtype)
    for bottom, right in CORNERS.values():
        flips = (-2,) * bottom + (-1,) * right
        expected = solve_by_pixels(kernel, y.flip(flips)).flip(flips).to(dtype)
        for images in (y.to(dtype), y.to(dtype).contiguous(memory_format=torch.channels_last)):
            x = substitute(matrix, images, bottom, right, isa)
            assert x.stride() == torch.empty_like(images).stride()
            torch.testing.assert_close(x, expected)


def test_takes_images_however_they_lie_in_memory():
    kernel, matrix, y = _problem(6, 4, 5, 6, 3)
    expected = solve_by_pixels(kernel, y)
    wide = torch.zeros(12, 9, 7, 13, dtype=torch.float64)
    part = wide[::2, 3:7, 1:6, ::2][..., :6]
    part.copy_(y)
    turned = y.transpose(-1, -2).contiguous().transpose(-1, -2)
    one = y[:1].expand(3, -1, -1, -1)
    for images, wanted in ((part, expected), (turned, expected), (one, expected[:1].expand(3, -1, -1, -1))):
        before = images.clone()
        torch.testing.assert_close(substitute(matrix, images, False, False), wanted)
        assert torch.equal(images, before)


def test_threads_change_no_bit():
    _, matrix, y = _problem(100, 12, 8, 8, 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = substitute(matrix, y, True, False)
        torch.set_num_threads(3)
        assert torch.equal(substitute(matrix, y, True, False), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [(0, 3, 4, 4, 3), (2, 3, 0, 4, 3), (2, 3, 4, 0, 3)], ids=str)
def test_no_images_are_no_images(size):
    _, matrix, y = _problem(*size)
    assert substitute(matrix, y, False, True).shape == y.shape


def test_one_image_that_is_not_a_number_leaves_the_others():
    kernel, matrix, y = _problem(20, 3, 4, 4, 3)
    expected = solve_by_pixels(kernel, y)
    y[7, 1, 2, 2] = torch.nan
    x = substitute(matrix, y, False, False)
    others = torch.arange(20) != 7
    torch.testing.assert_close(x[others], expected[others])
    torch.testing.assert_close(x[7, :, :2], expected[7, :, :2])  # and what doesn't look at it
    assert x[7, :, 2:, 2:].isnan().all()


def test_what_does_not_fit_together_is_refused():
    _, matrix, y = _problem(2, 3, 4, 4, 3)
    with pytest.raises(ValueError, match=r"\(3, 27\) of torch.float32 is none for \(2, 3, 4, 4\) of torch.float64"):
        substitute(matrix.float(), y, False, False)
    for wrong in (matrix[:, :-1], matrix[:, :-3], matrix[:2]):
        with pytest.raises(ValueError, match="is none for"):
            substitute(wrong, y, False, False)
    with pytest.raises(ValueError, match="no such instruction set: 7"):
        substitute(matrix, y, False, False, 7)


def _kind(layer, y):
    return type(layer._solver_for(y))


def test_is_used_where_nobody_asks_for_a_record():
    layer, y = randomise(OneSidedConv2d(2), 0.2), torch.randn(3, 2, 4, 4)
    assert _kind(layer, y) is FollowedSolver  # gradients by the weights
    assert _kind(layer, y.bfloat16()) is RowSolver
    with torch.no_grad():
        assert _kind(layer, y) is CompiledSolver
        assert _kind(layer, y.requires_grad_()) is CompiledSolver
        with use_kernel("torch"):
            assert _kind(layer, y) is RowSolver
        assert not serves_substitution(y.bfloat16())
        assert not serves_substitution(y.to("meta"))
        assert not serves_substitution(torch.view_as_complex(torch.randn(3, 2, 4, 4, 2)).conj().imag)
    layer.requires_grad_(False)
    assert _kind(layer, y) is FollowedSolver  # gradients by the images
    assert _kind(layer, y.detach()) is CompiledSolver
    with use_kernel("torch"):
        assert _kind(layer, y) is RowSolver


@pytest.mark.parametrize("size", [(3, 2, 4, 3, 3), (2, 3, 2, 3, 2), (1, 2, 3, 3, 1), (2, 2, 1, 1, 3)], ids=str)
@pytest.mark.parametrize("corner", CORNERS)
def test_gradients_of_first_and_second_order(corner, size):
    kernel, _, y = _problem(*size)

    def solved(images, kernel):
        return FollowedSolver.from_kernel(kernel, size[3]).solve(images, *CORNERS[corner])

    assert torch.autograd.gradcheck(solved, (y.requires_grad_(), kernel.requires_grad_()))
    assert torch.autograd.gradgradcheck(solved, (y, kernel))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_the_inverse_by_rows(masked, channels_last, dtype):
    torch.manual_seed(0)
    layer = randomise(OneSidedConv2d(5, 3, "top_right", masked), 0.1).to(dtype)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.randn(19, 5, 6, 7, dtype=dtype).contiguous(memory_format=memory).requires_grad_()
    side = torch.randn(19, 5, 6, 7, dtype=dtype)

    def gradients():
        x, ladj = layer.inverse_and_ladj(y)
        return torch.autograd.grad((x * side).sum() + ladj.sum(), [y, *layer.parameters()])

    found = gradients()
    with use_kernel("torch"):
        expected = gradients()
    torch.testing.assert_close(found, expected, rtol=1e-3 if dtype is torch.float32 else 1e-9, atol=1e-4)


def test_no_images_have_gradients_of_zero():
    kernel, _, y = _problem(0, 3, 4, 4, 3)
    FollowedSolver(kernel.requires_grad_()).solve(y.requires_grad_()).sum().backward()
    assert y.grad.shape == y.shape
    assert torch.equal(kernel.grad, torch.zeros_like(kernel))


def test_transformations_and_recorders_get_the_same_numbers():
    layer, y = randomise(OneSidedConv2d(2, corner="bottom_left"), 0.2).double(), torch.randn(3, 2, 4, 4).double()

    def inverse(images):
        with torch.no_grad():
            return layer.inverse_and_ladj(images)[0]

    expected = inverse(y)
    torch.testing.assert_close(torch.func.vmap(inverse)(y[:, None])[:, 0], expected)
    torch.testing.assert_close(torch.compile(inverse, backend="eager")(y), expected)
    layer.requires_grad_(False)
    torch.testing.assert_close(torch.jit.trace(inverse, y)(2 * y), inverse(2 * y))
    _, slope = torch.func.jvp(lambda images: layer.inverse_and_ladj(images)[0], (y,), (y,))
    torch.testing.assert_close(slope, expected)  # it is linear


@pytest.mark.parametrize("make", [lambda corner: OneSidedConv2d(4, 3, corner), lambda _: FourCornerConv2d(8)])
@pytest.mark.parametrize("corner", CORNERS)
def test_layers_solve_alike_with_and_without_it(make, corner):
    torch.manual_seed(0)
    layer = randomise(make(corner), 0.2).double()
    y = torch.randn(2, 3, layer.channels, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        x, ladj = layer.inverse_and_ladj(y)
        torch.testing.assert_close(layer.forward_and_ladj(x)[0], y)
        with use_kernel("torch"):
            by_rows, other = layer.inverse_and_ladj(y)
    torch.testing.assert_close(x, by_rows)
    assert torch.equal(ladj, other)
