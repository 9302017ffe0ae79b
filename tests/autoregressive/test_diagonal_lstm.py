"""The diagonal recurrence: its written backward pass against autograd, and what it leaves to the plain operations."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from vi_flows.autoregressive import Bernoulli, DiagonalPixelRNN
from vi_flows.nn.diagonal_lstm import diagonal_lstm, diagonals, plain_diagonal_lstm

SIZES = [(4, 4), (3, 6), (6, 3), (1, 4), (4, 1), (1, 1)]


def operands(size, rows=2, channels=3, hidden=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (2, size[0] * size[1], rows, channels),
        (2, channels, 4 * hidden),
        (2, rows, 4 * hidden),
        (2, 2, hidden, 4 * hidden),
    )
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("size", SIZES)
def test_states_and_gradients_are_autograds(size):
    inputs = operands(size)
    out, expected = diagonal_lstm(*inputs, size), plain_diagonal_lstm(*inputs, size)
    assert out.grad_fn.name() == "_DiagonalLSTMBackward"
    assert torch.allclose(out, expected, atol=1e-13)
    cotangent = torch.randn_like(out)
    found = torch.autograd.grad(out, inputs, cotangent, retain_graph=True)
    again = torch.autograd.grad(out, inputs, cotangent)
    for one, other, wanted in zip(found, again, torch.autograd.grad(expected, inputs, cotangent), strict=True):
        assert torch.allclose(one, wanted, atol=1e-12)
        assert torch.equal(one, other)  # nothing that was kept has been written to


@pytest.mark.parametrize("size", [(2, 3), (3, 2), (1, 1)])
def test_both_derivatives_by_finite_differences(size):
    inputs = operands(size, rows=1, channels=2, hidden=1)

    def run(*tensors):
        return diagonal_lstm(*tensors, size)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_gradients_of_many_outputs_at_once():
    size, inputs = (3, 2), operands((3, 2))
    out = diagonal_lstm(*inputs, size)
    sides = torch.randn(4, *out.shape, dtype=out.dtype)
    one_by_one = [torch.autograd.grad(out, inputs, side, retain_graph=True) for side in sides]
    at_once = torch.autograd.grad(out, inputs, sides, is_grads_batched=True)
    for expected, found in zip(zip(*one_by_one, strict=True), at_once, strict=True):
        torch.testing.assert_close(found, torch.stack(expected))


def test_second_derivatives_by_some_of_the_inputs():
    size, inputs = (2, 3), operands((2, 3))
    x, weight = inputs[0], inputs[1]
    for tensor in (inputs[2], inputs[3]):
        tensor.requires_grad_(False)
    (first,) = torch.autograd.grad(diagonal_lstm(*inputs, size).pow(2).sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(plain_diagonal_lstm(*inputs, size).pow(2).sum(), x, create_graph=True)
    found = torch.autograd.grad(first.pow(2).sum(), weight)[0]
    assert torch.allclose(found, torch.autograd.grad(expected.pow(2).sum(), weight)[0], atol=1e-10)


def test_gradients_of_expanded_and_strided_inputs():
    size = (3, 2)
    x, weight, bias, state_weight = operands(size)
    strided = [
        x[:, :, :1].detach().expand(-1, -1, 2, -1).requires_grad_(),
        weight.detach().mT.contiguous().mT.requires_grad_(),
        bias[:, :1].detach().expand(-1, 2, -1).requires_grad_(),
        state_weight.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(),
    ]
    found = torch.autograd.grad(diagonal_lstm(*strided, size).cos().sum(), strided)
    expected = torch.autograd.grad(plain_diagonal_lstm(*strided, size).cos().sum(), strided)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected, strict=True))


def test_vmap_and_forward_mode_have_the_same_numbers():
    size, inputs = (3, 3), [t.detach() for t in operands((3, 3))]
    several = torch.stack([inputs[0], 2 * inputs[0]])
    mapped = torch.func.vmap(lambda x: diagonal_lstm(x, *inputs[1:], size))(several)
    for one, x in zip(mapped, several, strict=True):
        assert torch.allclose(one, diagonal_lstm(x, *inputs[1:], size), atol=1e-13)
    tangent = torch.randn_like(inputs[0])
    _, slope = torch.func.jvp(lambda x: diagonal_lstm(x, *inputs[1:], size), (inputs[0],), (tangent,))
    step = 1e-6
    ahead, behind = (diagonal_lstm(inputs[0] + s * step * tangent, *inputs[1:], size) for s in (1, -1))
    assert torch.allclose(slope, (ahead - behind) / (2 * step), atol=1e-7)


def test_autocast_computes_and_differentiates_in_its_type():
    size, inputs = (4, 3), operands((4, 3), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = diagonal_lstm(*inputs, size)
        inner = torch.autograd.grad(out.float().sum(), inputs, retain_graph=True)
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), diagonal_lstm(*inputs, size), atol=0.05)
    outer = torch.autograd.grad(out.float().sum(), inputs)
    exact = torch.autograd.grad(diagonal_lstm(*inputs, size).sum(), inputs)
    for one, other, wanted in zip(inner, outer, exact, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
        assert (one - wanted).norm() < 0.05 * wanted.norm()


def test_no_rows_and_no_gradients():
    inputs = operands((2, 2), rows=0)
    out = diagonal_lstm(*inputs, (2, 2))
    assert out.shape == (2, 4, 0, 2)
    assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), inputs))
    with torch.no_grad():
        assert not diagonal_lstm(*operands((2, 2)), (2, 2)).requires_grad


@pytest.mark.parametrize(("around", "size"), [(torch.inference_mode, (5, 7)), (FakeTensorMode, (7, 5))])
def test_training_goes_on_after_the_first_pass_was_in_another_mode(around, size):
    """Places in an image are kept by its size: what is made within a mode must not stay."""
    torch.manual_seed(0)
    model = DiagonalPixelRNN((1, *size), Bernoulli(), width=4, num_layers=1, first_kernel=3)
    x = torch.bernoulli(torch.rand(2, 1, *size))
    with around():
        diagonals(size[0], size[1] + 1, torch.device("cpu"))  # the model adds a column
        diagonals(*size, torch.device("cpu"))
    if around is torch.inference_mode:
        with around():
            model.log_prob(x)
    model.log_prob(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_mirrored_places():
    found = diagonals(2, 3, torch.device("cpu"))
    assert found.order.tolist() == [0, 1, 3, 2, 4, 5]
    # Of pixels 0, 1, 3, 2, 4, 5 the mirror images are 2, 1, 5, 0, 4, 3; they stand at these places of the order.
    assert found.order[found.mirrored].tolist() == [2, 1, 5, 0, 4, 3]
    assert found.above_mirrored.tolist() == [0, 0, 4, 0, 2, 1]
