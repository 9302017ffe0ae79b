"""The exact inverse of one-sided convolutions: against substitution pixel by pixel, its memory, its accuracy."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.transforms.cases import randomise
from vi_flows.transforms import Chain, EmergingConv2d, OneSidedConv2d
from vi_flows.transforms.image.solvers import RowSolver, solve_by_pixels


@pytest.mark.parametrize(("channels", "k", "height", "width"), [(1, 3, 6, 5), (4, 3, 4, 4), (2, 5, 3, 7), (3, 1, 4, 4)])
def test_agrees_with_substitution_by_pixels(channels, k, height, width):
    torch.manual_seed(0)
    layer = randomise(OneSidedConv2d(channels, k), 0.2).double()
    y = torch.randn(3, channels, height, width, dtype=torch.float64)
    with torch.no_grad():
        expected = solve_by_pixels(layer.kernel(), y)
        torch.testing.assert_close(layer.inverse_and_ladj(y)[0], expected)
    torch.testing.assert_close(layer.inverse_and_ladj(y)[0], expected)


def test_operators_follow_the_weights():
    torch.manual_seed(0)
    layer = randomise(OneSidedConv2d(2), 0.2)
    y = torch.randn(3, 2, 4, 4)

    def solved_freshly():
        with torch.enable_grad():
            return layer.inverse_and_ladj(y)[0].detach()

    with torch.no_grad():
        layer.inverse_and_ladj(y)
        kept = layer._solver
        layer.inverse_and_ladj(y)
        assert layer._solver is kept
        layer.taps.add_(0.1)
        torch.testing.assert_close(layer.inverse_and_ladj(y)[0], solved_freshly())
        assert layer._solver is not kept
        layer.load_state_dict(randomise(OneSidedConv2d(2), 0.2).state_dict())
        torch.testing.assert_close(layer.inverse_and_ladj(y)[0], solved_freshly())
        wide = torch.randn(3, 2, 4, 6)
        x = layer.inverse_and_ladj(wide)[0]
        torch.testing.assert_close(layer.forward_and_ladj(x)[0], wide, atol=1e-4, rtol=1e-4)
        layer.double()
        back = layer.inverse_and_ladj(wide.double())[0]
        torch.testing.assert_close(layer.forward_and_ladj(back)[0], wide.double())
        other = copy.deepcopy(layer)
        assert other._solver is None
    with torch.inference_mode():
        inside = layer.inverse_and_ladj(wide.double())[0]
    torch.testing.assert_close(inside.clone(), back)
    frozen = layer.requires_grad_(False)
    points = wide.double().requires_grad_()
    frozen.inverse_and_ladj(points)[0].sum().backward()
    assert points.grad.isfinite().all()


def _scale(layer):
    for parameter in layer.parameters():
        parameter.data.mul_(1.5)


def _put(layer):
    values = torch.nn.utils.parameters_to_vector(layer.parameters())
    torch.nn.utils.vector_to_parameters(1.5 * values, layer.parameters())


def _swap(layer):
    for parameter in layer.parameters():
        parameter.data.copy_(parameter.data.flip(0))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("change", [_scale, _put, _swap, lambda layer: layer.double(), lambda layer: layer.bfloat16()])
def test_operators_follow_changes_of_the_weights_that_pytorch_does_not_count(change, masked):
    torch.manual_seed(0)
    layer = randomise(OneSidedConv2d(2, masked=masked), 0.3).double()
    y = torch.randn(1, 2, 4, 4)
    with torch.no_grad():
        layer.float().inverse_and_ladj(y)
        change(layer)
        if layer.taps.dtype is torch.bfloat16:
            assert layer._solver_for(y.bfloat16()).inverse.dtype is torch.bfloat16
            return
        y = y.to(layer.taps.dtype)
        back = layer.inverse_and_ladj(y)[0]
        torch.testing.assert_close(layer.forward_and_ladj(back)[0], y, atol=1e-4, rtol=1e-4)


def test_what_is_kept_is_forgotten_on_demand_and_outlives_inference_mode():
    layer = randomise(OneSidedConv2d(2), 0.2).requires_grad_(False)
    flow = Chain([layer])
    y = torch.randn(1, 2, 4, 4)
    with torch.inference_mode():
        flow.inverse_and_ladj(y)
    points = y.clone().requires_grad_()
    flow.inverse_and_ladj(points)[0].square().sum().backward()
    assert points.grad.isfinite().all()
    assert layer._solver is not None
    flow.clear_cache()
    assert layer._solver is None


@pytest.mark.parametrize("make", [lambda: OneSidedConv2d(12), lambda: EmergingConv2d(12)])
def test_accuracy_at_the_size_of_a_level(make):
    """Float32 residuals at 16 × 16 × 12 with taps as large as trained ones stay near rounding."""
    torch.manual_seed(0)
    layer = make()
    for part in layer.modules():
        if isinstance(part, OneSidedConv2d):
            torch.nn.init.normal_(part.taps, std=0.02)
    x = torch.randn(8, 12, 16, 16)
    with torch.no_grad():
        y, _ = layer.forward_and_ladj(x)
        back, _ = layer.inverse_and_ladj(y)
    assert (back - x).abs().max() < 1e-4


def test_row_operators_are_the_convolution():
    torch.manual_seed(0)
    kernel = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    layer = RowSolver.from_kernel(kernel, 5)
    assert layer.inverse.shape == (10, 10)
    assert layer.carry.shape == (10, 20)
