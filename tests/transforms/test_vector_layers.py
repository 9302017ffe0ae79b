"""The vector layers against numbers worked out by hand and against dense matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import jacfwd, jacrev, vmap

from vi_flows.transforms import Affine
from vi_flows.transforms.coupling_spline import SplineMap
from vi_flows.transforms.rational_quadratic import rational_quadratic
from vi_flows.transforms.vector.parametric import Parametric, solve_tanh
from vi_flows.transforms.vector.planar import PlanarFamily, above_minus_one
from vi_flows.transforms.vector.radial import RadialFamily
from vi_flows.transforms.vector.spline import SplineFamily
from vi_flows.transforms.vector.sylvester import SylvesterFamily, orthonormal_columns


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def layer(family, values):
    flow = Parametric(family)
    with torch.no_grad():
        flow.params.copy_(torch.tensor(values))
    return flow


def test_planar_by_hand():
    # w = (1, 0), u = (0.5, 2), b = 0.25: wᵀu = 0.5, m(0.5) = 0.999 (log(1 + (e − 1) e^0.5) − 1) = 0.34283…
    flow = layer(PlanarFamily(2, 1), [1.0, 0.0, 0.5, 2.0, 0.25])
    m = 0.999 * (math.log(1 + (math.e - 1) * math.exp(0.5)) - 1)
    assert m == pytest.approx(0.3435, abs=1e-3)
    act = math.tanh(0.75 + 0.25)
    y, ladj = flow.forward_and_ladj(torch.tensor([0.75, -1.0]))
    torch.testing.assert_close(y, torch.tensor([0.75 + m * act, -1.0 + 2.0 * act]))
    assert float(ladj) == pytest.approx(math.log(1 + m * (1 - act**2)))
    assert flow.min_slope() == 1.0
    steep = layer(PlanarFamily(2, 1), [1.0, 0.0, -50.0, 2.0, 0.25])
    assert steep.min_slope() == pytest.approx(1e-3)
    assert float(above_minus_one(torch.tensor(0.0))) == pytest.approx(0.0, abs=1e-15)


def test_radial_by_hand():
    # c = (1, 0), α = softplus(log(e² − 1)) = 2, β = α m(0) = 0 and then 2 m(log 3).
    free_alpha = math.log(math.e**2 - 1)
    assert layer(RadialFamily(2, 1), [1.0, 0.0, free_alpha, 0.0]).forward_and_ladj(torch.ones(2))[1] == 0
    flow = layer(RadialFamily(2, 1), [1.0, 0.0, free_alpha, math.log(3.0)])
    beta = 2 * 0.999 * (math.log(1 + 3 * (math.e - 1)) - 1)
    y, ladj = flow.forward_and_ladj(torch.tensor([1.0, 2.0]))  # r = 2
    torch.testing.assert_close(y, torch.tensor([1.0, 2.0 + 2.0 * beta / 4.0]))
    assert float(ladj) == pytest.approx(math.log(1 + beta / 4) + math.log(1 + 2 * beta / 16))


def test_elementwise_spline_by_hand():
    """Two bins of ±1; free parameters in the order t, a, widths, heights, slope, each for both entries."""
    # Entry 0: equal widths, heights with shares 0.05 + 0.9 (3/4, 1/4), so the knot is at y = 2·0.725 − 1 = 0.45.
    # Slopes there s₀ = 1.45, s₁ = 0.55; the inner slope is e⁰ = 1. Entry 1: t = 0.5, a = 2 tanh(0.25), else 0.
    zero, log3 = [0.0, 0.0], [math.log(3.0), 0.0]
    flow = layer(SplineFamily(2, 2, 1.0), [0.0, 0.5, 0.0, 0.5, *zero, *zero, *log3, *zero, *zero])
    y, ladj = flow.forward_and_ladj(torch.tensor([-0.5, 3.0]))  # ξ = 1/2; outside of the bound
    # y₀ = −1 + 1.45 (1.45/4 + 1/4) / (1.45 + (2 − 2.9)/4); its slope is 1.45² (1/4 + 1.45/2 + 1/4) / 1.225².
    a = 2 * math.tanh(0.25)
    torch.testing.assert_close(y, torch.tensor([-1 + 1.45 * 0.6125 / 1.225, 3.5 * math.exp(a)]))
    assert ladj.item() == pytest.approx(math.log(1.45**2 * 1.225 / 1.225**2) + a)
    # Bounds: 1.45² · 1 / 1.45² = 1 and 0.55² · 0.55 / max(0.55, 0.775)² for entry 0, e^a for entry 1.
    assert flow.min_slope() == pytest.approx(0.55**3 / 0.775**2)
    back, inverse_ladj = flow.inverse_and_ladj(y)
    torch.testing.assert_close(back, torch.tensor([-0.5, 3.0]))
    torch.testing.assert_close(inverse_ladj, -ladj)


@pytest.mark.parametrize(("scale", "loose"), [(0.5, 3), (2.0, 30)])
def test_no_slope_of_an_elementwise_spline_is_below_its_bound(scale, loose):
    x = torch.linspace(-6, 6, 20_001)[:, None].expand(-1, 4).clone().requires_grad_()
    flow = layer(SplineFamily(4, 5, 3.0), (scale * torch.randn(4 * 16)).tolist())
    y = flow.forward_and_ladj(x)[0]
    slope = torch.autograd.grad(y.sum(), x)[0].min()
    assert 0 < flow.min_slope() <= float(slope) < loose * flow.min_slope()


def test_columns_are_those_of_the_product_of_reflections():
    vectors = torch.randn(3, 4, 5)
    expected = torch.eye(5).expand(3, 5, 5)
    for v in vectors.unbind(-2):
        v = v / v.norm(dim=-1, keepdim=True)
        expected = expected @ (torch.eye(5) - 2 * v[..., :, None] * v[..., None, :])
    for rank in (1, 3, 5):
        columns = orthonormal_columns(7.0 * vectors, rank)
        torch.testing.assert_close(columns, expected[..., :rank])
        torch.testing.assert_close(columns.mT @ columns, torch.eye(rank).expand(3, rank, rank))


def test_sylvester_is_the_papers_equation_with_dense_matrices():
    family = SylvesterFamily(5, 1, 3, 4)
    flow = Parametric(family)
    with torch.no_grad():
        flow.params.copy_(torch.randn_like(flow.params))
    parts = flow.params.detach().split(family.sizes)
    q = orthonormal_columns(parts[0].reshape(4, 5), 3)
    matrices = []
    for above, diagonal in ((parts[1], parts[3]), (parts[2], parts[4])):
        matrix = torch.diag(math.sqrt(0.999) * torch.tanh(diagonal))
        matrix[0, 1], matrix[0, 2], matrix[1, 2] = above
        matrices.append(matrix)
    r, other = matrices
    x = torch.randn(5)
    expected = x + q @ r @ torch.tanh(other @ q.T @ x + parts[5])
    slope = 1 - torch.tanh(other @ q.T @ x + parts[5]).square()
    jacobian = torch.eye(5) + q @ r @ torch.diag(slope) @ other @ q.T
    y, ladj = flow.forward_and_ladj(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian)[1])


def test_the_solver_solves_where_slopes_are_small_and_steps_are_large():
    r = torch.tensor([-0.999, -0.999, 500.0, 0.0, 3.0])
    scale = torch.tensor([1.0, 1.0, 2.0, 1.0, -0.3])
    shift = torch.tensor([0.0, 2.0, -1.0, 0.3, 0.1])
    for target in (-30.0, -0.01, 0.0, 0.4, 1000.0):
        s = solve_tanh(r, scale, shift, torch.full((5,), target))
        assert (s + r * torch.tanh(scale * s + shift) - target).abs().max() < 1e-12 * (1 + abs(target))
    arguments = [value.requires_grad_() for value in (torch.tensor([0.7, -0.6]), torch.tensor([0.9, 1.1]))]
    arguments += [torch.randn(2, requires_grad=True), torch.randn(2, requires_grad=True)]
    assert torch.autograd.gradcheck(solve_tanh, arguments)
    assert torch.autograd.gradgradcheck(solve_tanh, arguments)
    # s + r tanh s at s = 0 and r = 1: ds/dt = 1/2, and the third derivative is −f‴/f′⁴ = 2/16.
    one, zero = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    third = torch.func.grad(torch.func.grad(torch.func.grad(lambda target: solve_tanh(one, 1.0, zero, target))))
    assert third(zero).item() == pytest.approx(1 / 8)


def test_spline_goes_through_its_knots_with_its_slopes():
    free = [torch.randn(4, 1), torch.randn(4, 1), torch.randn(3, 1)]

    def spline(x, inverse=False):
        return rational_quadratic(x, *(f.expand(-1, len(x)) for f in free), 3.0, inverse)

    shares = [0.025 + 0.9 * torch.softmax(f[:, 0], 0) for f in free[:2]]
    knots, values = (-3.0 + 6.0 * torch.cat([torch.zeros(1), share.cumsum(0)]) for share in shares)
    y, log_slope = spline(knots)
    torch.testing.assert_close(y, values)
    torch.testing.assert_close(log_slope[1:-1], 3 * torch.tanh(free[2][:, 0] / 3))
    torch.testing.assert_close(log_slope[[0, -1]], torch.zeros(2))
    x = torch.linspace(-4, 4, 2001)
    y, log_slope = spline(x)
    assert (y.diff() > 0).all()
    assert torch.equal(y[x.abs() > 3], x[x.abs() > 3])
    back, inverse = spline(y, inverse=True)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse, log_slope)


@pytest.mark.parametrize(
    ("kind", "home", "solver"), [("full", torch.linalg, "solve_triangular"), ("low_rank", torch, "cholesky_solve")]
)
def test_an_affine_layer_inverts_a_batch_in_one_solve(kind, home, solver, monkeypatch):
    layer = Affine(torch.randn(6, dtype=torch.float64), 0.7, kind, 2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    real, shapes = getattr(home, solver), []

    def watched(one, other, **options):
        shapes.append({tuple(one.shape), tuple(other.shape)})
        return real(one, other, **options)

    monkeypatch.setattr(home, solver, watched)
    y = torch.randn(3, 5, 6, dtype=torch.float64)
    x, _ = layer.inverse_and_ladj(y)
    size = 6 if kind == "full" else 2
    assert shapes == [{(size, size), (size, 15)}]
    torch.testing.assert_close(layer.loc + x @ layer.matrix().T, y)


@pytest.mark.parametrize("kind", ["full", "low_rank", "diagonal"])
def test_a_diagonal_gaussian_is_exact_for_every_kind(kind):
    layer = Affine(torch.zeros(3), kind=kind, rank=None if kind != "low_rank" else 2)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    layer.set_gaussian(torch.ones(3), torch.tensor([1.0, 4.0, 9.0]))
    matrix = layer.matrix()
    torch.testing.assert_close((matrix @ matrix.mT).detach(), torch.diag(torch.tensor([1.0, 4.0, 9.0])))
    if kind == "low_rank":  # and it can leave it again
        (gradient,) = torch.autograd.grad(layer.matrix().square().sum(), layer.factor)
        assert (gradient.abs().sum(0) > 0).all()


@pytest.mark.parametrize("kind", ["full", "low_rank", "diagonal"])
@pytest.mark.parametrize(
    ("loc", "covariance", "error"),
    [
        (torch.zeros(1), torch.ones(1), ValueError),  # which would broadcast
        (torch.zeros(3), torch.eye(2), ValueError),
        (torch.zeros(3), torch.tensor(1.0), ValueError),
        (torch.zeros(3), torch.tensor([1.0, -1.0, 1.0]), torch.linalg.LinAlgError),
        (torch.zeros(3), torch.diag(torch.tensor([1.0, -1.0, 1.0])), torch.linalg.LinAlgError),
        (torch.zeros(3), torch.full((3, 3), math.nan), torch.linalg.LinAlgError),
    ],
)
def test_what_is_no_gaussian_leaves_an_affine_layer_as_it_was(kind, loc, covariance, error):
    layer = Affine(torch.ones(3), kind=kind)
    before = [p.clone() for p in layer.parameters()]
    with pytest.raises(error, match=r"covariance must be|loc and covariance must be of shape"):
        layer.set_gaussian(loc, covariance)
    assert all(torch.equal(p, q) for p, q in zip(layer.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0, 1.0],), "loc must be of type Tensor, got list"),
        ((torch.tensor(1.0),), r"loc must be a vector of floating-point numbers, got a torch.float32 tensor of \(\)"),
        ((torch.zeros(2, 3),), "loc must be a vector"),
        ((torch.zeros(0),), "loc must be a vector"),
        ((torch.zeros(3, dtype=torch.long),), "loc must be a vector of floating-point numbers, got a torch.int64"),
        ((torch.zeros(3), math.inf), "init_scale must be positive and finite"),
        ((torch.zeros(3), 0.1, "full", None, math.inf), "gain must be positive and finite"),
    ],
)
def test_an_affine_layer_names_what_it_can_not_be_made_of(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Affine(*arguments)


@pytest.mark.parametrize("kind", ["full", "diagonal", "low_rank"])
def test_an_affine_layer_inverts_under_vmap_and_without_rows(kind):
    """Forward-mode derivatives of many rows at once are those of reverse mode, and no row at all is no error."""
    torch.manual_seed(0)
    layer = Affine(torch.zeros(4, dtype=torch.float64), kind=kind)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    rows = torch.randn(3, 4, dtype=torch.float64)

    def inverse(y):
        return layer.inverse_and_ladj(y)[0]

    torch.testing.assert_close(vmap(jacfwd(inverse))(rows), vmap(jacrev(inverse))(rows))
    x, ladj = layer.inverse_and_ladj(rows[:0])
    assert (x.shape, ladj.shape) == ((0, 4), (0,))


@pytest.mark.parametrize("settings", [(8, math.inf), (8, math.nan), (8, 0.0), (8.5, 3.0), (1, 3.0)])
def test_a_spline_that_can_not_be_is_named(settings):
    name = "num_bins must be" if settings[1] == 3 else "bound must be positive and finite"
    with pytest.raises(ValueError, match=name):
        SplineMap(*settings)
    with pytest.raises(ValueError, match=name):
        SplineFamily(2, *settings)
