"""The scale's inverse beyond one block of dimensions, by sweeps and one dimension after the other."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from vi_flows.transforms import TriangularScale
from vi_flows.transforms.vector import triangular_scale as module

WAYS = {"sweeps": 100, "one by one": 0}


def layer(dim: int, size: float, seed: int = 0) -> TriangularScale:
    found = TriangularScale(dim).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        found.weight.copy_(size * torch.randn(found.weight.shape, generator=generator, dtype=torch.float64))
    return found


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    monkeypatch.setattr(module, "SWEEPS", WAYS[request.param])
    monkeypatch.setattr(module, "BLOCK", 4)
    return request.param


def rows(count: int, dim: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("dim", "size"), [(1, 1.0), (4, 1.0), (9, 0.0), (9, 1.0), (9, 30.0), (70, 0.3)])
def test_the_inverse_undoes_the_map(way, dim, size):
    flow, z = layer(dim, size), rows(5, dim)
    y, ladj = flow.forward_and_ladj(z)
    found, back = flow.inverse_and_ladj(y)
    assert torch.allclose(found, z, atol=1e-9)
    assert torch.allclose(back, -ladj, atol=1e-9)
    assert flow.inverse_and_ladj(y[0])[0].shape == (dim,)
    assert flow.inverse_and_ladj(y[:0])[0].shape == (0, dim)


@pytest.mark.parametrize(("dim", "size"), [(9, 0.5), (9, 3.0), (33, 0.2)])
def test_its_derivatives_are_those_of_the_dimensions_one_after_the_other(way, dim, size):
    flow, y = layer(dim, size), rows(4, dim).requires_grad_()
    cotangents = rows(4, dim), rows(4, 1)[:, 0]
    found = torch.autograd.grad(flow.inverse_and_ladj(y), [y, flow.weight], cotangents)
    # Autograd through the definition, dimension by dimension.
    matrix, columns, logs = flow._matrix(), [], []
    for i in range(dim):
        sum_before = sum((matrix[i, j] * columns[j] for j in range(i)), torch.zeros(4, dtype=torch.float64))
        logs.append(3.0 * torch.tanh(sum_before / 3.0))
        columns.append(y[:, i] * (-logs[-1]).exp())
    outputs = torch.stack(columns, -1), -torch.stack(logs, -1).sum(-1)
    expected = torch.autograd.grad(outputs, [y, flow.weight], cotangents)
    for one, wanted in zip(found, expected, strict=True):
        assert torch.allclose(one, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))


def test_second_derivatives_and_vmap(way):
    flow, y = layer(6, 0.7), rows(3, 6).requires_grad_()
    matrix = flow._matrix().detach().requires_grad_()

    def inverse(y, matrix):
        return module._Substitution.apply(y, matrix.tril(-1), 3.0)

    assert torch.autograd.gradgradcheck(inverse, (y, matrix))
    mapped = torch.func.vmap(flow.inverse_and_ladj)(y)
    for one, other in zip(mapped, flow.inverse_and_ladj(y), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_sweeps_that_do_not_settle_give_way():
    flow, z = layer(60, 3.0), rows(2, 60)
    asked = []

    def sweep(value):
        asked.append(1)
        return value + 1

    with torch.no_grad():
        assert module._settled(sweep, z) is None
    assert len(asked) == module.SWEEPS == 32
    y, _ = flow.forward_and_ladj(z)
    assert torch.allclose(flow.forward_and_ladj(flow.inverse_and_ladj(y)[0])[0], y, rtol=1e-9)


def test_a_row_that_is_nan_leaves_the_others_alone(way):
    flow, y = layer(9, 0.5), rows(3, 9)
    y[1, 4] = torch.nan
    found, ladj = flow.inverse_and_ladj(y)
    assert torch.equal(found.isfinite().all(1), torch.tensor([True, False, True]))
    assert torch.allclose(flow.forward_and_ladj(found[::2])[0], y[::2], atol=1e-12)
    assert not ladj[1].isfinite()


@pytest.mark.filterwarnings("ignore")
def test_a_recorded_inverse_holds_for_other_inputs():
    """The number of sweeps that one input takes must not become part of a program."""
    flow = layer(9, 1.0).requires_grad_(False)
    y, _ = flow.forward_and_ladj(rows(5, 9))
    recorded = torch.jit.trace(lambda v: flow.inverse_and_ladj(v)[0], torch.zeros(5, 9, dtype=torch.float64))
    assert torch.allclose(recorded(y), flow.inverse_and_ladj(y)[0], atol=1e-9)
    graph = make_fx(lambda v: flow.inverse_and_ladj(v)[0])(torch.zeros(5, 9, dtype=torch.float64))
    assert torch.allclose(graph(y), flow.inverse_and_ladj(y)[0], atol=1e-9)
