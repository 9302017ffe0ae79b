"""Every kernel computes what the plain reference computes: values, inverses and all gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.stacks import (
    ALL_ENGINES,
    ENGINES,
    distance_to_kink,
    draw,
    make_spec,
    needs_c,
    outputs_and_gradients,
    to,
    use_engine,
    worst_error,
)
from vi_flows.kernels import ACTIVATIONS, conv_flow_forward, conv_flow_inverse, native, reference
from vi_flows.kernels.operands import Cotangents, Operands

PAIRS = {
    "forward": (conv_flow_forward, reference.conv_flow_forward),
    "inverse": (conv_flow_inverse, reference.conv_flow_inverse),
}
# d, kernel size, dilations of a block, blocks, N
SHAPES = [
    (1, 5, (1,), 2, 7),
    (2, 2, (1, 2), 4, 100),
    (3, 1, (1, 7), 1, 1),
    (3, 3, (1, 2), 3, 5000),
    (50, 5, (1, 2, 4, 8, 16, 32), 1, 100),
    (64, 7, (1, 5, 64), 1, 7),
    (100, 5, (1, 16, 64), 1, 33),
    (513, 4, (2, 100), 1, 3),
]


def off_the_kinks(operands: Operands, spec, limit: float) -> Operands:
    """Only the rows whose activations don't change their slope by a rounding error."""
    return operands._replace(x=operands.x[distance_to_kink(operands, spec) > limit])


@pytest.mark.parametrize("engine", ALL_ENGINES)
@pytest.mark.parametrize("direction", PAIRS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agreement_over_shapes(engine, direction, shape):
    d, k, dilations, blocks, rows = shape
    mine, theirs = PAIRS[direction]
    spec = make_spec(d, k, dilations, blocks)
    operands = draw(spec, (rows,), scale=0.3)
    if direction == "forward":
        operands = off_the_kinks(operands, spec, 1e-4)
        assert operands.x.shape[0] >= 0.5 * rows
    expected = outputs_and_gradients(theirs, operands, spec)
    with use_engine(engine):
        assert worst_error(outputs_and_gradients(mine, operands, spec), expected) <= 1e-12
        if direction == "forward":
            rounded = to(operands, torch.float32)
            expected = outputs_and_gradients(theirs, to(rounded, torch.float64), spec)
            assert worst_error(outputs_and_gradients(mine, rounded, spec), expected) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("engine", ALL_ENGINES)
@pytest.mark.parametrize("direction", PAIRS)
@pytest.mark.parametrize("batch", [(1,), (7,), (4, 25), (5000,)], ids=str)
@pytest.mark.parametrize("d", [1, 2, 3, 50, 64, 100, 513])
@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "amortised"])
def test_agreement_over_all_sizes(engine, direction, d, batch, per_row):
    """Every width with every number of rows, particles in front, data that are not contiguous."""
    if per_row and d * math.prod(batch) > 100_000:
        pytest.skip("gigabytes of parameters")
    mine, theirs = PAIRS[direction]
    spec = make_spec(d, 5, (1, 6, 64), blocks=2)
    operands = draw(spec, batch, (per_row, False, per_row), wide_bias=per_row, own_rows=1, scale=0.15)
    operands = operands._replace(x=operands.x.movedim(-1, 0).contiguous().movedim(0, -1))
    if direction == "forward" and not per_row and len(batch) == 1:
        operands = off_the_kinks(operands, spec, 1e-4)
    expected = outputs_and_gradients(theirs, operands, spec)
    with use_engine(engine):
        assert worst_error(outputs_and_gradients(mine, operands, spec), expected) <= 1e-12
        if direction == "forward" and not per_row and len(batch) == 1:
            rounded = to(operands, torch.float32)
            expected = outputs_and_gradients(theirs, to(rounded, torch.float64), spec)
            assert worst_error(outputs_and_gradients(mine, rounded, spec), expected) <= 1e-5


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direction", PAIRS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("batch", "per_row", "own_rows"),
    [
        ((19,), (False, False, False), 1),
        ((2, 3, 5), (False, False, False), 1),
        ((), (False, False, False), 0),
        ((19,), (True, False, True), 1),
        ((3, 17), (True, False, True), 1),
        ((3, 17), (True, True, True), 1),
        ((3, 17), (False, True, False), 1),
        ((4, 2, 3), (True, False, True), 2),
        ((2, 1), (True, False, False), 1),
    ],
    ids=str,
)
def test_agreement_over_activations_and_leading_dimensions(engine, direction, activation, batch, per_row, own_rows):
    mine, theirs = PAIRS[direction]
    spec = make_spec(9, 3, (1, 2, 4), activation=activation)
    operands = draw(spec, batch, per_row, wide_bias=sum(per_row) != 1, own_rows=own_rows, scale=0.4)
    expected = outputs_and_gradients(theirs, operands, spec)
    with use_engine(engine):
        assert worst_error(outputs_and_gradients(mine, operands, spec), expected) <= 1e-12


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_both_fallbacks_agree(activation):
    """Shared parameters of small problems and of large ones."""
    spec = make_spec(9, 3, (1, 2, 4), activation=activation)
    operands = draw(spec, (2, 7), wide_bias=True, scale=0.4)
    results = []
    for engine in ("torch", "taps"):
        with use_engine(engine):
            results.append(outputs_and_gradients(conv_flow_forward, operands, spec))
    assert worst_error(*results) <= 1e-12


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direction", PAIRS)
def test_parameters_broadcast_against_the_input(engine, direction):
    """Ones anywhere, parameters with more rows than the input, and parameters of different row counts."""
    mine, theirs = PAIRS[direction]
    spec = make_spec(5, 3, (1, 2))
    for leads in [
        ((), (4,), (4,), (4,)),
        ((3, 1), (4,), (), (1, 1)),
        ((3, 4), (3, 1), (), (4,)),
        ((2,), (1,), (), (1,)),
        ((2,), (1, 1, 2), (1, 2), (2,)),
    ]:
        x, theta, weight, bias = draw(spec, ())
        sets = [
            torch.randn(*lead, *t.shape, dtype=t.dtype) * 0.4
            for lead, t in zip(leads, (x, theta, weight, bias), strict=True)
        ]
        expected = outputs_and_gradients(theirs, Operands(*sets), spec)
        with use_engine(engine):
            found = outputs_and_gradients(mine, Operands(*sets), spec)
        assert [f.shape for f in found] == [e.shape for e in expected]
        assert worst_error(found, expected) <= 1e-12


@pytest.mark.parametrize("engine", ALL_ENGINES)
@pytest.mark.parametrize("direction", PAIRS)
def test_layout_does_not_matter(engine, direction):
    mine, theirs = PAIRS[direction]
    spec = make_spec(6, 3, (1, 2))
    plain = draw(spec, (4, 5))
    scattered = Operands(
        plain.x.transpose(0, 1).contiguous().transpose(0, 1),
        plain.theta.t().contiguous().t(),
        plain.weight.flip(1).clone().flip(1),
        torch.stack([plain.bias, plain.bias], -1)[..., 0],
    )
    expanded = plain._replace(x=plain.x[:1, :1].expand(4, 5, 6))
    for operands in (scattered, expanded):
        expected = outputs_and_gradients(theirs, operands, spec)
        with use_engine(engine):
            assert worst_error(outputs_and_gradients(mine, operands, spec), expected) <= 1e-12
            # cotangents that are not contiguous either
            x = operands.x.detach().requires_grad_()
            y, ladj = mine(x, *operands[1:], spec)
            (y.sum() + 2 * ladj.sum()).backward()
        x2 = operands.x.detach().requires_grad_()
        y, ladj = theirs(x2, *operands[1:], spec)
        (y.sum() + 2 * ladj.sum()).backward()
        assert torch.allclose(x.grad, x2.grad, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direction", PAIRS)
@pytest.mark.parametrize("per_row", [(False, False, False), (True, True, True)])
def test_empty_batch(engine, direction, per_row):
    spec = make_spec(4, 2, (1, 2))
    operands = draw(spec, (3, 0), per_row)
    with use_engine(engine):
        y, ladj, *grads = outputs_and_gradients(PAIRS[direction][0], operands, spec)
    assert y.shape == (3, 0, 4)
    assert ladj.shape == (3, 0)
    assert [g.shape for g in grads] == [t.shape for t in operands]
    assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direction", PAIRS)
def test_only_the_wanted_gradients(engine, direction):
    """Any subset of inputs and of outputs."""
    mine, theirs = PAIRS[direction]
    spec = make_spec(5, 3, (1, 2), activation="tanh")
    operands = draw(spec, (6,))
    for subset in range(1, 16):
        wanted = [bool(subset >> n & 1) for n in range(4)]
        for output in (0, 1):
            results = []
            for function in (mine, theirs):
                leaves = [t.detach().requires_grad_(w) for t, w in zip(operands, wanted, strict=True)]
                with use_engine(engine):
                    function(*leaves, spec)[output].square().sum().backward()
                assert [t.grad is not None for t in leaves] == wanted
                results.append([t.grad for t in leaves if t.grad is not None])
            assert worst_error(*results) <= 1e-12


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    theta=st.floats(-6, 4),
    weight=st.floats(-6, 2),
    d=st.integers(1, 40),
    k=st.integers(1, 7),
    activation=st.sampled_from(list(ACTIVATIONS)),
    per_row=st.booleans(),
)
def test_extreme_parameters(engine, seed, theta, weight, d, k, activation, per_row):
    """Magnitudes 10^−6 … 10^4: one layer agrees with the reference to rounding, relative to what passes through it."""
    spec = make_spec(d, k, (1 + seed % 5,), blocks=1, activation=activation)
    operands = draw(spec, (5,), (per_row,) * 3, seed=seed, scale=1.0)
    operands = operands._replace(theta=operands.theta * 10**theta, weight=operands.weight * 10**weight)
    expected = outputs_and_gradients(reference.conv_flow_forward, operands, spec)
    with use_engine(engine):
        found = outputs_and_gradients(conv_flow_forward, operands, spec)
        # PyTorch cuts softplus at 20, a jump of 2e-9 that either side of the cut may take
        sizes = [max(1.0, e.abs().max().item()) for e in expected]
        errors = [((f - e).abs().max() / size).item() for f, e, size in zip(found, expected, sizes, strict=True)]
        assert max(errors) <= (1e-8 if activation == "softplus" else 1e-12)
        single = outputs_and_gradients(conv_flow_forward, to(operands, torch.float32), spec)
        assert all(t.isfinite().all() for t in single)
        back, ladj = conv_flow_inverse(found[0], *operands[1:], spec)
        forth = conv_flow_forward(back, *operands[1:], spec)[0]
    assert ladj.isfinite().all()
    gain = 1 + 10**theta * 10**weight
    assert ((forth - found[0]).abs().amax() / (1 + found[0].abs().amax() + back.abs().amax())) <= 1e-12 * gain


@needs_c
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("per_row", [False, True])
def test_instruction_sets_agree(dtype, activation, per_row):
    loaded = native.load()
    spec = make_spec(21, 5, (1, 2, 4, 8, 16), activation=activation)
    operands = draw(spec, (2, 19), (per_row,) * 3, dtype=dtype, scale=0.3)
    cotangents = Cotangents(torch.randn(2, 19, 21, dtype=dtype), torch.randn(2, 19, dtype=dtype))
    results = []
    for isa in range(native.ISAS.index(loaded.isa) + 1):
        y, ladj = native.evaluate(operands, spec, False, isa)
        forward = native.backward(operands, cotangents, spec, False, isa)
        x, inverse_ladj = native.evaluate(operands, spec, True, isa)
        inverse = native.backward(operands._replace(x=x), cotangents, spec, True, isa)
        results.append([y, ladj, *forward, x, inverse_ladj, *inverse])
    for other in results[1:]:
        assert worst_error(other, results[0]) <= (2e-5 if dtype == torch.float32 else 1e-13)
    with pytest.raises(ValueError, match="instruction set"):
        native.evaluate(operands, spec, False, 17)


@pytest.mark.parametrize("engine", ENGINES)
def test_inverse_is_exact_in_single_precision(engine):
    """A trained flow's magnitudes: y → z → y within 1e-5."""
    spec = make_spec(50, 5, (1, 2, 4, 8, 16, 32), blocks=8)
    operands = draw(spec, (200,), dtype=torch.float32, scale=0.1)
    with use_engine(engine):
        y, ladj = conv_flow_forward(*operands, spec)
        x, inverse_ladj = conv_flow_inverse(y, *operands[1:], spec)
    assert (x - operands.x).abs().max() <= 1e-5 * operands.x.abs().max()
    assert (ladj + inverse_ladj).abs().max() <= 1e-5 * (1 + ladj.abs().max())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_is_not_hidden(engine, activation):
    spec = make_spec(6, 2, (1, 2), activation=activation)
    operands = draw(spec, (20,))
    operands.x[3, 2] = torch.nan
    with use_engine(engine):
        for function in (conv_flow_forward, conv_flow_inverse):
            y, _ = function(*operands, spec)
            assert y[3].isnan().any()
            assert y[:3].isfinite().all()
            assert y[4:].isfinite().all()
