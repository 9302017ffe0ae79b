"""The Triton kernel against the reference: on the GPU if there is one, otherwise in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from tests.kernels.stacks import draw, make_spec, outputs_and_gradients, worst_error
from vi_flows.kernels import ACTIVATIONS, dispatch, reference
from vi_flows.kernels.native import ACTIVATION_CODES
from vi_flows.kernels.operands import Cotangents, Operands

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when it is imported
HAVE_TRITON = importlib.util.find_spec("triton") is not None
pytestmark = pytest.mark.slow  # the interpreter takes seconds for each case
needs_triton = pytest.mark.skipif(
    not HAVE_TRITON or (DEVICE == "cpu" and not INTERPRETED), reason="needs triton, and a GPU or TRITON_INTERPRET=1"
)
REFERENCE = {False: reference.conv_flow_forward, True: reference.conv_flow_inverse}


@pytest.mark.skipif(not HAVE_TRITON or DEVICE == "cuda" or INTERPRETED, reason="needs triton, and no GPU")
def test_in_the_interpreter():
    """The tests below, in a process of their own."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow and not gpu", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def engine():
    from vi_flows.kernels import triton_kernel

    return triton_kernel


def run(engine, inverse):
    return lambda *t: dispatch.ConvFlowFunction.apply(*t[:4], t[4], inverse, engine)


@needs_triton
def test_the_inverse_of_steep_layers(engine):
    """Newton's steps alone go to and fro between the flat sides of a steep sigmoid for ever."""
    spec = make_spec(1, 1, (1,), 1, "sigmoid")
    grid = torch.linspace(-6, 6, 1001).double()[:, None]
    x = torch.cat([grid[65:73], grid[234:242]])  # one such point for each of the gains
    for theta in (100.0, 1e3):
        numbers = (torch.tensor([[value]], dtype=torch.float64) for value in (theta, 1.0, 0.3))
        operands = Operands(x, *numbers)
        y, _ = reference.conv_flow_forward(*operands, spec)
        back, _ = engine.evaluate(Operands(*(t.to(DEVICE) for t in operands._replace(x=y))), spec, True)
        again, _ = reference.conv_flow_forward(back.cpu(), *operands[1:], spec)
        assert ((again - y).abs() / (1 + y.abs())).max() < 1e-12


@needs_triton
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    ("shape", "per_row", "wide_bias"),
    [
        ((5, 3, (1, 2)), (False, False, False), False),
        ((4, 2, (1, 9)), (True, False, True), True),
        ((3, 4, (2,)), (True, True, True), True),
        ((1, 1, (1,)), (False, True, False), True),
    ],
    ids=str,
)
def test_agreement(engine, inverse, shape, per_row, wide_bias, activation):
    spec = make_spec(*shape, blocks=1, activation=activation)
    operands = draw(spec, (2, 3), per_row, wide_bias)
    operands = operands._replace(theta=3 * operands.theta)
    moved = type(operands)(*(t.to(DEVICE) for t in operands))
    expected = outputs_and_gradients(REFERENCE[inverse], operands, spec)
    found = outputs_and_gradients(run(engine, inverse), moved, spec)
    assert worst_error([f.cpu() for f in found], expected) <= 1e-12
    single = type(moved)(*(t.float() for t in moved))
    y, ladj = engine.evaluate(single, spec, inverse)
    assert y.dtype == ladj.dtype == torch.float32
    assert worst_error([y.cpu(), ladj.cpu()], expected[:2]) <= 1e-5


@needs_triton
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
def test_gradcheck(engine, inverse, activation, per_row):
    spec = make_spec(3, 2, (1,), blocks=1, activation=activation)
    operands = draw(spec, (2,), (per_row,) * 3, seed=3)
    leaves = [t.to(DEVICE).requires_grad_() for t in operands]
    assert torch.autograd.gradcheck(lambda *t: run(engine, inverse)(*t, spec), leaves, eps=1e-7, atol=1e-6)


@needs_triton
def test_empty_batch_and_missing_gradients(engine):
    spec = make_spec(3, 2, (1,), blocks=1)
    operands = type(draw(spec, (0,)))(*(t.to(DEVICE) for t in draw(spec, (0,))))
    y, ladj = engine.evaluate(operands, spec, False)
    assert y.shape == (0, 3)
    assert ladj.shape == (0,)
    grads = engine.backward(operands, Cotangents(None, None, (True, False, True, True)), spec, False)
    assert grads[1] is None
    assert all((g == 0).all() for g in grads if g is not None)


@needs_triton
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extreme_parameters(engine, activation, inverse):
    """Large gains, slopes near their limits, inputs far out: what rounds in the reference rounds alike."""
    spec = make_spec(4, 2, (1,), blocks=1, activation=activation)
    operands = draw(spec, (6,), seed=2)
    operands = operands._replace(x=20 * operands.x, theta=40 * operands.theta, weight=8 * operands.weight)
    expected = REFERENCE[inverse](*operands, spec)
    found = engine.evaluate(type(operands)(*(t.to(DEVICE) for t in operands)), spec, inverse)
    assert worst_error([f.cpu() for f in found], list(expected)) <= (1e-8 if activation == "softplus" else 1e-10)


@needs_triton
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_is_not_hidden(engine, activation):
    spec = make_spec(3, 2, (1,), blocks=1, activation=activation)
    operands = draw(spec, (4,))
    operands.x[1, 0] = torch.nan
    operands = type(operands)(*(t.to(DEVICE) for t in operands))
    for inverse in (False, True):
        y = engine.evaluate(operands, spec, inverse)[0]
        assert y[1].isnan().any()
        assert y[[0, 2, 3]].isfinite().all()


@needs_triton
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_checks_itself_once(engine, activation, monkeypatch):
    assert engine.works_on(torch.device(DEVICE), activation)
    engine.works_on.cache_clear()
    monkeypatch.setattr(engine, "evaluate", lambda operands, spec, inverse: (operands.x, operands.x.sum(-1)))
    with pytest.warns(UserWarning, match="is off by"):
        assert not engine.works_on(torch.device(DEVICE), activation)
    engine.works_on.cache_clear()


INTEGERS = (
    "N", "rows", "d", "L", "theta_row", "weight_row", "bias_row", "bias_dims", "end", "to_theta", "to_weight", "to_bias"
)  # fmt: skip


@pytest.mark.skipif(not HAVE_TRITON or INTERPRETED, reason="needs triton as a compiler")
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("kernel", ["_evaluate", "_backward"])
@pytest.mark.parametrize(("dtype", "ones"), [("fp32", ()), ("fp32", ("bias_dims", "end", "L")), ("fp64", ("rows",))])
def test_it_compiles_for_a_gpu_that_is_not_there(engine, kernel, inverse, activation, dtype, ones):
    """Machine code for compute capability 9.0; integers that are 1 become constants, as in a launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(engine, kernel)
    constants = {"INVERSE": inverse, "ACT": ACTIVATION_CODES[activation], "K": 5, "D": 64, "R": engine.ROWS}
    constants |= dict.fromkeys((name for name in ones if name in function.arg_names), 1)
    types = dict.fromkeys(constants, "constexpr") | {"dilations": "*i32", "reverts": "*i32"}
    types = {**dict.fromkeys(INTEGERS, "i32"), **types}
    signature = {name: types.get(name, f"*{dtype}") for name in function.arg_names}
    places = {(function.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=function, signature=signature, constexprs=places)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_cuda_tensors_take_it():
    spec = make_spec(50, 5, (1, 2, 4, 8, 16, 32), blocks=2)
    operands = draw(spec, (200,), scale=0.1)
    moved = type(operands)(*(t.cuda() for t in operands))
    found = outputs_and_gradients(dispatch.conv_flow_forward, moved, spec)
    expected = outputs_and_gradients(reference.conv_flow_forward, operands, spec)
    assert worst_error([f.cpu() for f in found], expected) <= 1e-10
