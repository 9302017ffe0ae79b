"""Every bijection of the registry keeps the contract."""

from __future__ import annotations

import copy
import io
import pickle

import pyro.distributions as dist
import pytest
import torch
from torch.func import functional_call

from tests.transforms.cases import CASES, build, inputs

INVERTIBLE = [name for name, case in CASES.items() if case.invertible]


def dense_slogdet(bijection, x):
    size = x.numel()
    jacobian = torch.autograd.functional.jacobian(lambda v: bijection.forward_and_ladj(v)[0], x)
    return torch.linalg.slogdet(jacobian.reshape(size, size))


@pytest.mark.parametrize("name", INVERTIBLE)
def test_round_trip_float64(name):
    bijection, x = build(name), inputs(name, 64)
    y, ladj = bijection.forward_and_ladj(x)
    back, inverse_ladj = bijection.inverse_and_ladj(y)
    assert (back - x).abs().max() <= CASES[name].round_trip
    assert torch.allclose(inverse_ladj, -ladj, atol=1e-7, rtol=1e-7)
    assert ladj.shape == (64,)
    y = x.reshape(bijection.forward_shape(x.shape))
    forth = bijection.forward_and_ladj(bijection.inverse_and_ladj(y)[0])[0]
    assert (forth - y).abs().max() <= CASES[name].round_trip


@pytest.mark.parametrize("name", INVERTIBLE)
def test_round_trip_float32(name):
    bijection, x = build(name, dtype=torch.float32), inputs(name, 64, dtype=torch.float32)
    y, ladj = bijection.forward_and_ladj(x)
    assert y.dtype == ladj.dtype == torch.float32
    assert (bijection.inverse_and_ladj(y)[0] - x).abs().max() <= CASES[name].round_trip32


@pytest.mark.parametrize("name", CASES)
def test_ladj_equals_autograd(name):
    bijection = build(name)
    for x in inputs(name, 3):
        sign, expected = dense_slogdet(bijection, x)
        assert sign != 0
        assert torch.allclose(bijection.forward_and_ladj(x)[1], expected, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_leading_dimensions(name):
    bijection, x = build(name), inputs(name, 3, 4, 5)
    y, ladj = bijection.forward_and_ladj(x)
    assert ladj.shape == (3, 4, 5)
    for batch_shape in [(), (5,), (4, 5)]:
        part = x[(0,) * (3 - len(batch_shape))]
        y_part, ladj_part = bijection.forward_and_ladj(part)
        assert y_part.shape == bijection.forward_shape(part.shape)
        assert ladj_part.shape == batch_shape
        assert torch.allclose(y_part, y[(0,) * (3 - len(batch_shape))], atol=1e-12)
        assert torch.allclose(ladj_part, ladj[(0,) * (3 - len(batch_shape))], atol=1e-12)
    empty, none = bijection.forward_and_ladj(x[:0])
    assert empty.shape == bijection.forward_shape(x[:0].shape)
    assert none.shape == (0, 4, 5)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.smooth])
@pytest.mark.parametrize("direction", ["forward_and_ladj", "inverse_and_ladj"])
@pytest.mark.parametrize("fast_mode", [True, pytest.param(False, marks=pytest.mark.slow)])  # a projection, or all
def test_gradcheck(name, direction, fast_mode):
    if direction == "inverse_and_ladj" and not CASES[name].invertible:
        pytest.skip("the wrapped transform has no inverse")
    bijection = build(name)
    x = inputs(name, 2)
    if direction == "inverse_and_ladj":
        x = x.reshape(bijection.forward_shape(x.shape))
    x.requires_grad_()
    names, values = zip(*bijection.named_parameters(), strict=True) if [*bijection.parameters()] else ((), ())

    def run(x, *parameters):
        class Both(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = bijection

            def forward(self, x):
                return getattr(self.inner, direction)(x)

        return functional_call(Both(), {f"inner.{n}": p for n, p in zip(names, parameters, strict=True)}, (x,))

    parameters = tuple(value.detach().clone().requires_grad_() for value in values)
    assert torch.autograd.gradcheck(run, (x, *parameters), eps=1e-7, atol=1e-5, rtol=1e-4, fast_mode=fast_mode)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.smooth])
@pytest.mark.parametrize("direction", ["forward_and_ladj", "inverse_and_ladj"])
def test_second_derivatives(name, direction):
    if direction == "inverse_and_ladj" and not CASES[name].invertible:
        pytest.skip("the wrapped transform has no inverse")
    bijection, x = build(name), inputs(name, 2)
    if direction == "inverse_and_ladj":
        x = x.reshape(bijection.forward_shape(x.shape))

    def run(x):
        y, ladj = getattr(bijection, direction)(x)
        return y.square().flatten(1).sum(1) + ladj

    assert torch.autograd.gradgradcheck(run, x.requires_grad_(), eps=1e-6, atol=1e-4, rtol=1e-3, fast_mode=True)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("direction", ["forward_and_ladj", "inverse_and_ladj"])
def test_gradients_of_many_outputs_at_once(name, direction):
    """As ``jacobian(…, vectorize=True)`` asks for them, whose tensors have no memory that a kernel could read."""
    if direction == "inverse_and_ladj" and not CASES[name].invertible:
        pytest.skip("the wrapped transform has no inverse")
    bijection, x = build(name), inputs(name, 2)
    if direction == "inverse_and_ladj":
        x = bijection.forward_and_ladj(x)[0].detach()
    points = [x.requires_grad_(), *(p for p in bijection.parameters() if p.requires_grad)]
    y, ladj = getattr(bijection, direction)(x)
    outputs = [value for value in (y, ladj) if value.requires_grad]
    sides = [torch.randn(3, *value.shape, dtype=value.dtype) for value in outputs]

    def gradients(side, **options):
        return torch.autograd.grad(
            outputs, points, side, retain_graph=True, allow_unused=True, materialize_grads=True, **options
        )

    one_by_one = [gradients(side) for side in zip(*sides, strict=True)]
    at_once = gradients(sides, is_grads_batched=True)
    for expected, found in zip(zip(*one_by_one, strict=True), at_once, strict=True):
        assert not found.requires_grad
        torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.extreme])
@pytest.mark.parametrize("scale", [10.0, 1e3])
def test_extreme_parameters(name, scale):
    """Bijective for every parameter value: finite, positive slopes, and an inverse with a small backward error."""
    for dtype in (torch.float64, torch.float32):
        bijection, x = build(name, scale, dtype), inputs(name, 50, dtype=dtype)
        x.requires_grad_()
        y, ladj = bijection.forward_and_ladj(x)
        (y.sum() + ladj.sum()).backward()
        assert y.isfinite().all()
        assert ladj.isfinite().all()
        assert x.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in bijection.parameters())
    bijection, x = build(name, scale), inputs(name, 20)
    for row in x[:3]:
        jacobian = torch.autograd.functional.jacobian(lambda v: bijection.forward_and_ladj(v)[0], row)
        assert torch.equal(jacobian.tril(-1), torch.zeros_like(jacobian))
        assert (jacobian.diagonal() > 0).all()
    # The map's condition number grows like scale², so the honest check is the residual f(f⁻¹(y)) − y.
    y = scale * x
    back, _ = bijection.inverse_and_ladj(y)
    assert back.isfinite().all()
    forth = bijection.forward_and_ladj(back)[0]
    growth = 1 + scale**2
    assert ((forth - y).abs() <= 1e-12 * growth * (1 + y.abs() + back.abs().amax(-1, keepdim=True))).all()


WITH_PARAMETERS = [name for name in CASES if any(p.requires_grad for p in build(name).parameters())]


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_gradient_reaches_every_parameter(name):
    bijection, x = build(name), inputs(name, 64)
    y, ladj = bijection.forward_and_ladj(x)
    (y.square().sum() + ladj.sum()).backward()
    for parameter_name, parameter in bijection.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", CASES)
def test_copies_after_use(name):
    """`deepcopy`, `pickle`, `torch.save` and `state_dict` all work after the memo was filled by a non-leaf tensor."""
    bijection, x = build(name), inputs(name, 8)
    base = dist.Normal(torch.zeros_like(x[0]), 1.0).to_event(x.dim() - 1)
    distribution = dist.TransformedDistribution(base, [bijection])
    distribution.log_prob(distribution.rsample((3,)))
    expected, expected_ladj = bijection.forward_and_ladj(x)
    copies = [copy.deepcopy(bijection), pickle.loads(pickle.dumps(bijection))]
    fresh = build(name, scale=0.2)
    fresh.load_state_dict(bijection.state_dict())
    copies.append(fresh)
    buffer = io.BytesIO()
    torch.save(bijection, buffer)
    buffer.seek(0)
    copies.append(torch.load(buffer, weights_only=False))
    for other in copies:
        y, ladj = other.forward_and_ladj(x)
        assert torch.equal(y, expected)
        assert torch.equal(ladj, expected_ladj)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.moves])
def test_moves_to_another_dtype(name):
    bijection, x = build(name).to(torch.float32), inputs(name, 3)
    y, ladj = bijection.forward_and_ladj(x.float())
    assert y.dtype == ladj.dtype == torch.float32
    assert torch.allclose(ladj.double(), build(name).forward_and_ladj(x)[1], atol=1e-2, rtol=1e-3)


# Of vectors, whose log-determinants and entries have no dimension; of images, too, in the longer run.
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if len(case.event_shape) == 1 else pytest.mark.slow) for name, case in CASES.items()
])  # fmt: skip
@pytest.mark.parametrize("direction", ["forward_and_ladj", "inverse_and_ladj"])
def test_forward_mode_of_a_single_event(name, direction):
    """In float32, where the tangent of a number of no dimension may come out in float64, and meet float32 again."""
    if direction == "inverse_and_ladj" and not CASES[name].invertible:
        pytest.skip("the wrapped transform has no inverse")
    bijection, x = build(name, dtype=torch.float32), inputs(name, 1, dtype=torch.float32)
    if direction == "inverse_and_ladj":
        x = x.reshape(bijection.forward_shape(x.shape))
    change, tangent = getattr(bijection, direction), 0.1 * x[0].cos()
    _, of_rows = torch.func.jvp(change, (x,), (tangent[None],))
    _, of_one = torch.func.jvp(change, (x[0],), (tangent,))
    for rows, one in zip(of_rows, of_one, strict=True):
        assert rows.dtype == one.dtype == torch.float32
        torch.testing.assert_close(one, rows[0])
