"""Paths side by side are the paths one by one, in fewer passes."""

import math

import pytest
import torch

from vi_flows.guides.start.ascent import ascend, where_defined
from vi_flows.guides.start.climbing import climb, climb_all
from vi_flows.guides.start.gaussian_vi import (
    exact_derivatives,
    polish_gaussian,
    refine_gaussian,
    refine_gaussians,
    value_and_grad,
)
from vi_flows.guides.start.modes import _apart
from vi_flows.guides.start.newton import inverse_curvature, inverse_curvatures, newton_path
from vi_flows.guides.start.pathfinder import pathfinder

DOUBLE = torch.float64
STARTS = torch.tensor([[-1.2, 1.0], [3.0, -2.0], [0.1, 5.0], [-4.0, -1.0]], dtype=DOUBLE)


def valley(x):
    """Rosenbrock's, upside down."""
    return -((1 - x[:, 0]).square() + 30 * (x[:, 1] - x[:, 0].square()).square())


class Counted:
    """A density that knows how many points each pass had."""

    def __init__(self, density):
        self.density, self.passes = density, []

    def __call__(self, x):
        self.passes.append(len(x))
        return self.density(x)


def test_paths_side_by_side_are_those_one_by_one():
    together, alone = Counted(valley), Counted(valley)
    paths = climb_all(together, STARTS, 200)
    calls = []
    for start, path in zip(STARTS, paths, strict=True):
        before = len(alone.passes)
        other = climb(alone, start, 200)
        calls.append(len(alone.passes) - before)
        assert len(path) == len(other) > 5
        for (x, grad), (y, slope) in zip(path, other, strict=True):
            assert x.tolist() == pytest.approx(y.tolist(), abs=1e-8)
            assert grad.tolist() == pytest.approx(slope.tolist(), abs=1e-6)
        assert path[-1][0].tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    assert len(together.passes) == max(calls)
    assert sum(together.passes) == sum(calls)


def test_a_bad_start_has_no_path_and_a_wall_turns_the_others_back():
    def walled(x):
        return torch.where(x[:, 0] > -1.5, -x.square().sum(-1), torch.nan)

    good, bad = climb_all(walled, torch.tensor([[3.0, 1.0], [-4.0, 0.0]], dtype=DOUBLE), 50)
    assert bad == []
    assert good[-1][0].tolist() == pytest.approx([0.0, 0.0], abs=1e-5)


@pytest.mark.parametrize("error", [ValueError("the model's own"), KeyboardInterrupt()])
def test_what_the_density_raises_is_raised_and_no_thread_stays(error):
    import threading

    calls = []

    def failing(x):
        calls.append(len(x))
        if len(calls) == 5:
            raise error
        return valley(x)

    before = threading.active_count()
    with pytest.raises(type(error)):
        climb_all(failing, STARTS, 200)
    assert threading.active_count() == before
    assert len(calls) == 5


def test_gaussians_side_by_side_end_where_each_ends_alone():
    covariance = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=DOUBLE)
    target = torch.distributions.MultivariateNormal(torch.tensor([1.0, -2.0], dtype=DOUBLE), covariance)
    begins = [(torch.zeros(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE)), (STARTS[1], 3 * torch.eye(2, dtype=DOUBLE))]

    def walled(x):
        return torch.where(x[:, 0] < 50.0, 1.0, torch.nan) * target.log_prob(x)

    lost = (torch.tensor([60.0, 0.0], dtype=DOUBLE), torch.eye(2, dtype=DOUBLE))
    density = Counted(walled)
    first, none, second = refine_gaussians(density, [begins[0], lost, begins[1]], [1.0, 1.0, 1.0], 12)
    assert none is None
    assert len(density.passes) == 12
    for found in (first, second):
        torch.testing.assert_close(found[0], target.mean, atol=1e-6, rtol=0)
        torch.testing.assert_close(found[1] @ found[1].T, covariance, atol=1e-6, rtol=0)
    half = refine_gaussians(walled, begins, [1.0, 0.25], 1, torch.Generator().manual_seed(0))[1]
    whole = refine_gaussian(walled, *begins[1], 1, 1.0, torch.Generator().manual_seed(0))
    assert float((half[0] - STARTS[1]).norm()) < 0.6 * float((whole[0] - STARTS[1]).norm())


@pytest.mark.parametrize(("bend", "least", "most"), [(0.0, 6, 6), (0.01, 6, 24), (3.0, 24, 24)])
def test_polishing_ends_where_its_noise_does_not_matter(bend, least, most):
    def bent(x):
        return -0.5 * x.square().sum(-1) - bend * x[:, 0].square() * x[:, 1].square()

    density = Counted(bent)
    generator = torch.Generator().manual_seed(0)
    found = polish_gaussian(density, torch.zeros(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE), 24, generator)
    assert found is not None
    assert least <= len(density.passes) <= most


def test_paths_without_a_gradient_take_no_part_in_the_passes():
    def half(x):
        return torch.where(x[:, 0] > 0, -x.square().sum(-1) + 2 * x[:, 0], torch.nan)

    starts = torch.tensor([[2.0, 1.0], [-3.0, 0.5], [4.0, -1.0]], dtype=DOUBLE)
    density = Counted(half)
    ends = ascend(density, starts, 30)
    assert density.passes[0] == 3
    assert set(density.passes[1:]) == {2}
    assert ends[1].tolist() == starts[1].tolist()
    torch.testing.assert_close(ends[[0, 2]], torch.tensor([[1.0, 0.0]] * 2, dtype=DOUBLE), atol=1e-2, rtol=0)


def test_one_point_without_a_model_costs_few_passes():
    def raising(x):
        if bool((x > 5).any()):
            raise torch.linalg.LinAlgError("not positive definite")
        return -x.square().sum(-1)

    density = Counted(raising)
    points = torch.zeros(32, 2, dtype=DOUBLE)
    points[7] = 9.0
    values = where_defined(density)(points)
    assert values.isneginf().nonzero().flatten().tolist() == [7]
    assert len(density.passes) == 11


def test_no_number_and_infinity_are_no_densities():
    values = where_defined(lambda x: x[:, 0])(torch.tensor([[1.5], [torch.inf], [torch.nan], [-torch.inf]]))
    assert values.tolist() == [1.5, -torch.inf, -torch.inf, -torch.inf]


def test_a_polish_is_no_finer_than_what_the_best_gaussian_lacks():
    def bent(x):
        return -0.5 * x.square().sum(-1) - 0.3 * x[:, 0].square() * x[:, 1].square()

    passes = []
    for kl in (0.0, 1.0):
        density, generator = Counted(bent), torch.Generator().manual_seed(0)
        polish_gaussian(density, torch.zeros(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE), 24, generator, kl)
        passes.append(len(density.passes))
    assert passes[0] == 24
    assert passes[1] < 12


def test_a_climb_that_asks_too_often_ends():
    """A kink, where every line search fails many times."""
    density = Counted(lambda x: -((x[:, 0] - x[:, 1].square()).abs() ** 0.5) - 0.001 * x.abs().sum(-1))
    climb(density, STARTS[1], 20)
    assert len(density.passes) < 2 * 20 + 20  # the last line search may take twenty more


@pytest.mark.parametrize("chunk", [1, 64])
def test_derivatives_of_several_points_are_those_of_each(chunk):
    torch.manual_seed(1)
    factor, points = torch.randn(3, 3, dtype=DOUBLE), torch.randn(4, 3, dtype=DOUBLE)

    def density(x):
        return -((x @ factor).square() * (1 + x.sin())).sum(-1)

    value, grad, hessian = exact_derivatives(density, points, chunk)
    torch.testing.assert_close(value, density(points))
    torch.testing.assert_close(grad, value_and_grad(density, points)[1])
    for x, found, inverse in zip(points, hessian, inverse_curvatures(density, points, 1e-6), strict=True):
        torch.testing.assert_close(found, torch.autograd.functional.hessian(lambda x: density(x[None])[0], x))
        torch.testing.assert_close(inverse, inverse_curvature(density, x, 1e-6))


def neck(x):
    """A funnel, whose density rises without bound as ``x₀`` falls, and its volume falls faster."""
    return -0.5 * x[:, 1:].square().sum(-1) * (-2 * x[:, 0]).exp() - 4 * x[:, 0] - x[:, 0].square() / 18


def test_newton_does_not_run_down_a_funnel_and_does_run_up_a_hill():
    x = torch.tensor([0.5, 0.3, -0.2, 0.4, 0.1, 0.2], dtype=DOUBLE)
    density = Counted(neck)
    visited, _ = newton_path(density, x, 12)
    assert 3 < len(density.passes) < 30
    assert float(visited[-1][0][0]) > -10
    torch.manual_seed(2)
    design, answer = 30 * torch.randn(40, 3, dtype=DOUBLE), torch.randn(40, dtype=DOUBLE).sign()

    def hill(x):
        return torch.nn.functional.logsigmoid(answer * (x @ design.T)).sum(-1) - 0.5 * x.square().sum(-1)

    visited, top = newton_path(hill, torch.full((3,), 2.0, dtype=DOUBLE), 12)
    assert float(value_and_grad(hill, visited[-1][0][None])[1].abs().max()) < 1e-3
    assert top == pytest.approx(float(hill(visited[-1][0][None])))


def test_paths_that_ended_on_one_hill_need_one_newton_run(monkeypatch):
    from vi_flows.guides.start import pathfinder as module

    runs = []
    monkeypatch.setattr(module, "newton_path", lambda *a: runs.append(a[1]) or newton_path(*a))
    monkeypatch.setattr(module._Nearness, "__call__", lambda *_: False)
    scale = 10.0 ** torch.arange(-2, 4, dtype=DOUBLE)

    def hill(x):
        return -(1 + (x * scale).square().sum(-1)).log()

    starts = torch.linspace(1, 3, 4, dtype=DOUBLE)[:, None] * torch.tensor([1, -1, 1, 1, -1, 1], dtype=DOUBLE)
    pathfinder(hill, starts, max_iterations=5, max_rounds=1, generator=torch.Generator().manual_seed(0))
    assert len(runs) == 1
    runs.clear()

    def two(x):
        return torch.logaddexp(-0.5 * (x - 9).square().sum(-1), -1 - 0.5 * (x + 9).square().sum(-1))

    starts = torch.tensor([[8.0, 8.5], [-8.0, -9.0], [9.0, 8.0]], dtype=DOUBLE)
    pathfinder(two, starts, max_iterations=2, max_rounds=1, generator=torch.Generator().manual_seed(0))
    assert len(runs) == 2


def test_paths_that_have_arrived_take_part_in_no_more_passes():
    starts = torch.tensor([[30.0, 1.0], [-5.0, 40.0], [0.5, 0.2], [9.0, -9.0]], dtype=DOUBLE)
    density = Counted(lambda x: -0.5 * ((x - 1).square() * torch.tensor([1.0, 0.02])).sum(-1))
    ends = ascend(density, starts, 40, longest=math.inf, arrived=lambda u, value: u.norm(dim=-1) < 4)
    assert density.passes[:2] == [4, 3]
    assert density.passes[-1] < 3
    assert ends[2].tolist() == starts[2].tolist()
    assert float(ends.norm(dim=-1).max()) < 4
    everywhere = ascend(density, starts, 40, longest=math.inf)
    torch.testing.assert_close(everywhere, torch.ones(4, 2, dtype=DOUBLE), atol=0.6, rtol=0)


def test_many_modes_are_climbed_to_side_by_side():
    angle = torch.arange(24, dtype=DOUBLE) * (2 * torch.pi / 24)
    centers = 40 * torch.stack([angle.cos(), angle.sin()], -1)

    density = Counted(lambda x: torch.logsumexp(-0.5 * (x[:, None] - centers).square().sum(-1), -1))
    torch.manual_seed(0)
    places = torch.cat([centers + 0.5 * torch.randn(24, 2, dtype=DOUBLE) for _ in range(2)])
    tops = torch.stack(_apart(density, [centers[0]], places))
    assert sorted(torch.cdist(centers, tops).argmin(1).tolist()) == list(range(24))
    assert len(tops) == 24
    assert float(torch.cdist(centers, tops).amin(1).max()) < 1e-3
    assert len(density.passes) < 60  # 24 climbs one by one, and three passes for each, are more than 120
