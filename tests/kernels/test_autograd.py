"""Kernels within PyTorch: derivatives of every order, functorch, graphs, threads."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from tests.kernels.stacks import ENGINES, draw, make_spec, needs_c, outputs_and_gradients, use_engine, worst_error
from vi_flows import conv_flow
from vi_flows.kernels import ACTIVATIONS, conv_flow_forward, conv_flow_inverse, ops, reference

PAIRS = {
    "forward": (conv_flow_forward, reference.conv_flow_forward),
    "inverse": (conv_flow_inverse, reference.conv_flow_inverse),
}


def leaves_of(operands):
    return [t.detach().requires_grad_() for t in operands]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direction", PAIRS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "per_row", [(False,) * 3, (True, False, True), (True,) * 3], ids=["shared", "amortised", "all"]
)
@pytest.mark.parametrize("fast_mode", [True, pytest.param(False, marks=pytest.mark.slow)])  # a projection, or all
def test_gradcheck(engine, direction, activation, per_row, fast_mode):
    spec = make_spec(4, 2, (1, 2), blocks=1, activation=activation)
    operands = draw(spec, (2, 3), per_row, wide_bias=True, seed=3)
    with use_engine(engine):
        assert gradcheck(
            lambda *t: PAIRS[direction][0](*t, spec), leaves_of(operands), eps=1e-7, atol=1e-6, fast_mode=fast_mode
        )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direction", PAIRS)
def test_second_derivatives(engine, direction):
    spec = make_spec(3, 2, (1,), blocks=1, activation="tanh")
    operands = draw(spec, (2,), seed=3)
    with use_engine(engine):
        assert gradgradcheck(lambda *t: PAIRS[direction][0](*t, spec), leaves_of(operands), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direction", PAIRS)
def test_second_derivatives_through_what_made_the_parameters(engine, direction):
    """A gradient penalty: the graph of the gradient reaches back through the operands to their own inputs."""
    mine, theirs = PAIRS[direction]
    spec = make_spec(5, 3, (1, 2), activation="tanh")
    operands = draw(spec, (4,))
    results = []
    for function, name in ((mine, engine), (theirs, "reference")):
        with use_engine(name):
            leaves = leaves_of(operands)
            derived = [t.tanh() for t in leaves]
            y, ladj = function(*derived, spec)
            (g,) = torch.autograd.grad(y.square().sum() + ladj.sum(), derived[0], create_graph=True)
            g.square().sum().backward()
            results.append([t.grad for t in leaves])
    assert worst_error(*results) <= 1e-10


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direction", PAIRS)
def test_functorch_and_forward_mode(engine, direction):
    mine, theirs = PAIRS[direction]
    spec = make_spec(4, 2, (1, 2), activation="tanh")
    x, *parameters = draw(spec, (3,))
    tangent = torch.randn_like(x)
    with use_engine(engine):
        assert torch.allclose(torch.vmap(lambda r: mine(r, *parameters, spec)[1])(x), theirs(x, *parameters, spec)[1])
        jacobian = torch.func.jacrev(lambda r: mine(r, *parameters, spec)[0])(x[0])
        logdet = torch.linalg.slogdet(jacobian).logabsdet
        assert torch.allclose(logdet, mine(x[0], *parameters, spec)[1])
        _, dual = torch.func.jvp(lambda t: mine(t, *parameters, spec)[0], (x,), (tangent,))
        assert torch.allclose(dual[0], jacobian @ tangent[0])
        with forward_ad.dual_level():
            out = mine(forward_ad.make_dual(x, tangent), *parameters, spec)[0]
            assert torch.allclose(forward_ad.unpack_dual(out).tangent, dual)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_take_the_reference(engine, dtype):
    spec = make_spec(4, 2, (1, 2))
    operands = draw(spec, (3,), dtype=torch.float32)
    low = [t.to(dtype) for t in operands]
    with use_engine(engine):
        assert torch.equal(conv_flow_forward(*low, spec)[0], reference.conv_flow_forward(*low, spec)[0])
        mixed = conv_flow_forward(operands.x.double(), *operands[1:], spec)[0]
    assert mixed.dtype == torch.float64


def op_options(spec, inverse):
    return spec.dilations, spec.reverts, spec.activation, spec.negative_slope, inverse


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("per_row", [(False,) * 3, (True, False, True)], ids=["shared", "amortised"])
def test_opcheck(inverse, per_row):
    spec = make_spec(4, 2, (1, 2), activation="tanh")
    operands = draw(spec, (2, 3), per_row)
    torch.library.opcheck(ops.conv_flow, (*leaves_of(operands), *op_options(spec, inverse)))
    cotangents = torch.randn_like(operands.x), torch.randn(2, 3, dtype=torch.float64)
    torch.library.opcheck(ops.conv_flow_backward, (*operands, *cotangents, *op_options(spec, inverse)))


@pytest.mark.parametrize("direction", PAIRS)
def test_compiled_and_traced_graphs_hold_one_operator(direction):
    mine, theirs = PAIRS[direction]
    spec = make_spec(4, 2, (1, 2))
    operands = draw(spec, (3,))

    def run(x, theta, weight, bias):
        return mine(x, theta, weight, bias, spec)

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    expected = outputs_and_gradients(theirs, operands, spec)
    found = outputs_and_gradients(lambda *t: compiled(*t[:4]), operands, spec)
    assert worst_error(found, expected) <= 1e-12
    traced = make_fx(run, tracing_mode="symbolic")(*operands)
    calls = [node for node in traced.graph.nodes if node.op == "call_function" and "vi_flows" in str(node.target)]
    assert len(calls) == 1
    bigger = draw(spec, (8,), seed=5)
    assert worst_error(list(traced(*bigger)), list(theirs(*bigger, spec))) <= 1e-12
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mine(*(mode.from_tensor(t) for t in operands), spec)
    assert fake[0].shape == (3, 4)
    assert fake[1].shape == (3,)


@pytest.mark.parametrize("engine", ENGINES)
def test_same_losses_as_the_reference_over_a_training(engine):
    """Same seed, same losses within float32 rounding, for the first hundred steps."""
    curves = []
    for name in (engine, "reference"):
        torch.manual_seed(0)
        flow = conv_flow(6, 2)
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
        losses = []
        with use_engine(name):
            for _ in range(100):
                y, ladj = flow.forward_and_ladj(torch.randn(64, 6))
                loss = ((y - 1).square().sum(-1) - ladj).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        curves.append(torch.stack(losses))
    assert curves[0][-1] < curves[0][0] - 1
    assert (curves[0] - curves[1]).abs().max() <= 1e-4


@needs_c
def test_threads_agree_and_may_call_at_the_same_time():
    spec = make_spec(50, 5, (1, 2, 4, 8, 16, 32), blocks=2)
    operands = draw(spec, (2, 400), (True, False, True), scale=0.2)
    shared = draw(spec, (800,), scale=0.2)
    before = torch.get_num_threads()
    try:
        with use_engine("c"):
            torch.set_num_threads(1)
            expected = [outputs_and_gradients(conv_flow_forward, o, spec) for o in (operands, shared)]
            torch.set_num_threads(3)
            for o, e in zip((operands, shared), expected, strict=True):
                assert worst_error(outputs_and_gradients(conv_flow_forward, o, spec), e) <= 1e-13
            found = {}

            def work(name):
                found[name] = [outputs_and_gradients(conv_flow_forward, o, spec) for o in (operands, shared)]

            threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        torch.set_num_threads(before)
    assert len(found) == 4
    for results in found.values():
        for f, e in zip(results, expected, strict=True):
            assert worst_error(f, e) <= 1e-13


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("in_dims", [(0, None, None, None), (1, 0, None, None), (None, 0, 1, 0), (0, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("per_row", [(False,) * 3, (True, False, True)], ids=["shared", "amortised"])
def test_operator_under_vmap(inverse, in_dims, per_row):
    """Compiled graphs batch the operator itself."""
    spec = make_spec(4, 2, (1, 2))
    one = draw(spec, (2, 3), per_row)
    mapped = [
        t if dim is None else torch.stack([t * (1 + 0.1 * n) for n in range(5)], dim)
        for t, dim in zip(one, in_dims, strict=True)
    ]
    options = op_options(spec, inverse)
    y, ladj = torch.vmap(lambda *t: ops.conv_flow(*t, *options), in_dims)(*mapped)
    for n in range(5):
        single = [t if dim is None else t.select(dim, n) for t, dim in zip(mapped, in_dims, strict=True)]
        expected = PAIRS["inverse" if inverse else "forward"][1](*single, spec)
        assert torch.allclose(y[n], expected[0], atol=1e-12)
        assert torch.allclose(ladj[n], expected[1], atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direction", PAIRS)
def test_second_derivatives_of_a_piecewise_linear_stack_with_frozen_parameters(engine, direction):
    """Its log-determinant is then a constant in the graph of second derivatives."""
    spec = make_spec(5, 2, (1, 2))
    x, *parameters = draw(spec, (3,))
    x.requires_grad_()

    def run(x):
        y, ladj = PAIRS[direction][0](x, *parameters, spec)
        return y.square(), ladj

    with use_engine(engine):
        assert gradgradcheck(run, x, fast_mode=True)
        (gradient,) = torch.autograd.grad(run(x)[1].sum(), x, create_graph=True)
    assert torch.equal(gradient, torch.zeros_like(x))
