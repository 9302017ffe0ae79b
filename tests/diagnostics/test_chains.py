"""Short chains of the posterior move draws that are not its own, and leave those that are."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from vi_flows.diagnostics import diagnose
from vi_flows.diagnostics.chains import Moved, _moves, moved_by_chains
from vi_flows.diagnostics.verdict import judge
from vi_flows.evaluation.psis import PSIS
from vi_flows.guides import AutoConvFlow, AutoFlow, fit

DOUBLE = torch.float64


def log_p(x):
    """N((1, −2), [[4, 1.9], [1.9, 1]]), not normalised."""
    tril = torch.linalg.cholesky(torch.tensor([[4.0, 1.9], [1.9, 1.0]], dtype=DOUBLE))
    z = torch.linalg.solve_triangular(tril, (x - torch.tensor([1.0, -2.0], dtype=DOUBLE)).T, upper=False)
    return 7.0 - 0.5 * z.square().sum(0)


def draws(number, factor=1.0, move=0.0):
    torch.manual_seed(0)
    tril = torch.linalg.cholesky(torch.tensor([[4.0, 1.9], [1.9, 1.0]], dtype=DOUBLE))
    center = torch.tensor([1.0 + 2 * move, -2.0 + move], dtype=DOUBLE)
    return center + factor * torch.randn(number, 2, dtype=DOUBLE) @ tril.T


def as_site(x):
    return {"x": x}


@pytest.mark.parametrize(
    ("factor", "move", "least_shift", "least_stretch"),
    [(1.0, 0.0, 0.0, 0.0), (0.6, 0.0, 0.0, 0.35), (1.6, 0.0, 0.0, 0.05), (1.0, 0.5, 0.35, 0.0)],
)
def test_wrong_moments_move_and_right_ones_stay(factor, move, least_shift, least_stretch):
    moved = moved_by_chains(log_p, draws(500, factor, move), as_site)
    assert moved.acceptance > 0.6
    assert least_shift <= moved.shift <= max(move, 0.02)
    assert least_stretch <= moved.stretch <= abs(math.log(factor)) + 0.02


def test_the_moves_by_hand():
    """Draws −1, 1, −1, 1: mean 0, variance 1. Positions after them are all one higher, then back with twice the spread.

    Means over the two transitions are ½ higher by ½ ± their spread; squares (v + 1)² and (2v)² against v².
    """
    first = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=DOUBLE)[:, None]
    positions = [{"x": first + 1.0, "zero": torch.zeros(4, 1)}, {"x": 2.0 * first, "zero": torch.zeros(4, 1)}]
    moved = _moves({"x": first, "zero": torch.zeros(4, 1, dtype=DOUBLE)}, positions, 0.75)
    moves = (0.5 * ((first + 1) + 2 * first) - first).flatten()
    grown = (0.5 * ((first + 1).square() + (2 * first).square()) - first.square()).flatten()
    far, far_se = moves.mean().item(), moves.std().item() / 2
    wide, wide_se = grown.mean().item() - far**2, grown.std().item() / 2
    assert (far, far_se, wide) == (0.5, pytest.approx(1 / math.sqrt(12)), 1.75)
    assert moved.shift == pytest.approx(max(far - 3 * far_se, 0.0))
    assert moved.stretch == pytest.approx(max(0.5 * math.log1p(wide) - 3 * 0.5 * wide_se / (1 + wide), 0.0))
    assert (moved.where, moved.acceptance) == ("x", 0.75)


@pytest.mark.parametrize(("wider", "name"), [(False, "far"), (True, "wide")])
def test_the_moves_of_many_draws(wider, name):
    """Ten thousand draws that go half a sd to the side, or get three times as wide, all alike: no noise to take off."""
    x = torch.tensor([-1.0, 1.0], dtype=DOUBLE).repeat(5000)[:, None]
    other = {"far": x + 0.5, "wide": 3.0 * x}[name]
    still = x + 0.001 * torch.randn(len(x), 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    moved = _moves({"still": x, name: x, "more": x}, [{"still": still, name: other, "more": still}], 1.0)
    assert moved.where == name
    assert moved.shift == pytest.approx(0.0 if wider else 0.5, abs=0.02)
    assert moved.stretch == pytest.approx(math.log(3) if wider else 0.0, abs=0.02)


def test_the_first_leapfrog_by_hand():
    """In whitened coordinates, from the draws: half a kick, a drift, with step 0.9 d^(−1/4) (0.6 + 0.4 U)."""
    x, seen = draws(50), []

    def spied(points):
        seen.append(points.detach().clone())
        return log_p(points)

    moved_by_chains(spied, x, as_site, num_transitions=1, num_leapfrog=1, seed=5)
    center = x.mean(0)
    root = torch.linalg.cholesky((x - center).T @ (x - center) / 50)
    generator = torch.Generator().manual_seed(5)
    momentum = torch.randn(50, 2, dtype=DOUBLE, generator=generator)
    length = 0.9 * 2**-0.25 * (0.6 + 0.4 * float(torch.rand((), generator=generator)))
    at = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(log_p(at).sum(), at)
    kicked = momentum + 0.5 * length * grad @ root
    expected = x + length * kicked @ root.T
    torch.testing.assert_close(seen[0], x)
    assert any(points.shape == expected.shape and torch.allclose(points, expected) for points in seen[1:])


@pytest.mark.parametrize(("finite", "known"), [(19, False), (20, True)])
def test_chains_need_twenty_places_where_the_density_is_finite(finite, known):
    x = draws(40)
    highest = x[:, 0].sort().values[finite]

    def cut(points):
        return torch.where(points[:, 0] < highest, log_p(points), -torch.inf)

    assert (moved_by_chains(cut, x, as_site) is not None) == known


def test_chains_of_draws_without_a_spread_are_none():
    flat = draws(40)
    flat[:, 1] = 0.0
    assert moved_by_chains(log_p, flat, as_site) is None


def test_chains_leave_what_importance_weights_cant_see():
    """A guide cut at ±1 sd: weights within are nearly equal, and all its moments are within what they show."""
    x = draws(3000)
    x = x[((x - torch.tensor([1.0, -2.0])).abs() < torch.tensor([2.0, 1.0])).all(-1)][:500]
    assert moved_by_chains(log_p, x, as_site).stretch > 0.3


def test_a_density_that_ends_is_no_error():
    def half(x):
        return torch.where(x[:, 0] > 0, -x[:, 0] + 0.0 * x.sum(-1), -torch.inf)

    torch.manual_seed(0)
    x = torch.distributions.Exponential(torch.ones((), dtype=DOUBLE)).sample((500, 1))
    moved = moved_by_chains(half, x, as_site)
    assert moved.shift < 0.1
    assert moved.stretch < 0.1
    assert moved_by_chains(half, -x, as_site) is None
    assert moved_by_chains(half, torch.ones(100, 1, dtype=DOUBLE), as_site) is None


def test_long_chains_forget_and_reach_what_short_ones_do_not():
    """A tenth of the mass five times as wide: from the core, few chains find their way out in eight transitions."""

    def wide_and_narrow(x):
        parts = [
            torch.distributions.Normal(torch.zeros((), dtype=DOUBLE), sd).log_prob(x).sum(-1) + math.log(w)
            for sd, w in ((1.0, 0.9), (5.0, 0.1))
        ]
        return torch.logaddexp(*parts)

    torch.manual_seed(0)
    x = torch.randn(500, 3, dtype=DOUBLE)
    short = moved_by_chains(wide_and_narrow, x, as_site)
    long = moved_by_chains(wide_and_narrow, x, as_site, 32, num_discarded=16)
    assert (short.num_transitions, long.num_transitions) == (8, 32)
    assert long.stretch > 0.3 > short.stretch
    assert long.memory < 0.3
    assert moved_by_chains(log_p, draws(500), as_site, 32, num_discarded=16).memory < 0.2
    apart = torch.cat([torch.randn(250, 1, dtype=DOUBLE) - 8, torch.randn(250, 1, dtype=DOUBLE) + 8])
    two = moved_by_chains(lambda x: torch.logaddexp(-0.5 * (x + 8) ** 2, -0.5 * (x - 8) ** 2).sum(-1), apart, as_site)
    assert two.memory > 0.9


STILL, FAR = Moved(0.0, 0.0, "x", 0.9), Moved(0.2, 0.0, "x", 0.9)
LONG_STILL, LONG_FAR = Moved(0.0, 0.0, "x", 0.9, 32, 0.2), Moved(0.2, 0.0, "x", 0.9, 32, 0.2)
STUCK = Moved(0.0, 0.0, "x", 0.9, 32, 0.95)


@pytest.mark.parametrize(("k_hat", "ess", "shift", "chains", "verdict"), [
    (0.9, 3990.0, 0.0, STILL, "ok"), (1.1, 3910.0, 0.0, STILL, "use importance weights"),
    (1.1, 3920.0, 0.0, STILL, "ok"), (4.4, 3990.0, 0.2, STILL, "ok"), (4.4, 3990.0, 0.2, FAR, "don't trust"),
    (1.3, 3500.0, 0.0, STILL, "don't trust"), (0.9, 3000.0, 0.0, STILL, "don't trust"), (0.6, 3400.0, 0.0, STILL, "ok"),
    (0.6, 3400.0, 0.15, STILL, "ok"), (0.3, 3400.0, 0.15, STILL, "use importance weights"),
    (0.3, 2100.0, 0.0, STILL, "ok"), (0.3, 1900.0, 0.0, STILL, "use importance weights"),
    (0.3, 3900.0, 0.0, FAR, "don't trust"), (0.3, 3900.0, 0.2, FAR, "use importance weights"),
    (3.0, 800.0, 0.0, LONG_STILL, "ok"), (3.0, 800.0, 0.0, LONG_FAR, "don't trust"),
    (3.0, 800.0, 0.0, STUCK, "don't trust"), (3.0, 800.0, 0.2, LONG_STILL, "don't trust"),
    (0.9, 3990.0, 0.0, FAR, "don't trust"), (-math.inf, 4000.0, 0.0, STILL, "ok")])  # fmt: skip
def test_what_weights_and_chains_say_together(k_hat, ess, shift, chains, verdict):
    joint = PSIS(torch.zeros(4000), torch.tensor(k_hat), torch.tensor(ess), torch.tensor(0.0))
    assert judge(joint, None, {"x": torch.tensor(shift)}, {"x": torch.tensor(1.0)}, chains, 4000)[0] == verdict


def heavy():
    pyro.sample("x", dist.StudentT(3.0, torch.zeros(2), 1.0).to_event(1))


def bounded(dim):
    parts = [dist.transforms.TanhTransform(), dist.transforms.AffineTransform(0.0, 1.2)]
    return torch.distributions.transforms.IndependentTransform(dist.transforms.ComposeTransform(parts), 1)


def normal():
    pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))


@pytest.mark.slow
def test_a_good_guide_of_heavy_tails_is_not_called_wrong():
    guide = AutoConvFlow(heavy, num_blocks=2)
    fit(heavy, guide, num_steps=400, progress=False)
    report = diagnose(heavy, guide)
    believed = report.k_hat < 1 or report.ess >= 0.98 * 4000  # nearly equal weights
    assert report.verdict == ("ok" if believed else "use importance weights"), str(report)
    assert "probabilities far in the tails" in report.reason or report.k_hat <= 0.7


def test_a_well_fitted_normal_is_ok_and_a_bounded_guide_is_not():
    report = diagnose(normal, AutoConvFlow(normal, num_blocks=1))
    assert report.verdict == "ok", str(report)
    assert "move means by at least 0.00 sd" in str(report)
    guide = AutoFlow(normal, bounded)
    with torch.no_grad():
        guide.location_scale.log_scale -= math.log(1.3)
    report = diagnose(normal, guide)
    assert report.verdict != "ok"
    assert report.chains.stretch > 0.1
    assert diagnose(normal, guide, num_chains=0).chains is None
