"""Mass that no draw of a guide reached is found, its share is right, and nothing is found where there is nothing."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide.initialization import init_to_value

from vi_flows.diagnostics import diagnose, elsewhere
from vi_flows.diagnostics.elsewhere import MISSED_RATIO, missed_mass
from vi_flows.diagnostics.verdict import judge
from vi_flows.evaluation.psis import PSIS
from vi_flows.guides import AutoConvFlow, fit
from vi_flows.guides.start.climbing import climb


def normal(loc, scale, dim):
    return torch.distributions.Independent(torch.distributions.Normal(torch.full((dim,), loc).double(), scale), 1)


@pytest.mark.parametrize(
    ("dim", "weight", "distance", "scale"),
    [(1, 0.3, 12.0, 1.0), (1, 0.05, 12.0, 0.3), (5, 0.3, 5.0, 2.0), (20, 0.5, 6.0, 1.0)],
)
def test_the_share_of_a_mode_is_found(dim, weight, distance, scale):
    here, there = normal(1.0, 0.5, dim), normal(1.0 + distance, scale, dim)
    log_z = 3.0  # the density is not normalised

    def log_p(x):
        parts = here.log_prob(x) + math.log(1 - weight), there.log_prob(x) + math.log(weight)
        return torch.logaddexp(*parts) + log_z

    draws = here.sample((1000,))
    missed = missed_mass(log_p, here.log_prob, draws, log_z + math.log(1 - weight))
    assert missed.share == pytest.approx(weight, abs=0.03)
    torch.testing.assert_close(missed.latent, there.mean, atol=0.1, rtol=0)
    assert missed.distance == pytest.approx(distance / 0.5 * dim**0.5, rel=0.15)
    # Nothing is missed by a guide that holds both, or when there is no other mode.
    assert missed_mass(log_p, lambda x: log_p(x) - log_z, draws, log_z) is None
    assert missed_mass(here.log_prob, here.log_prob, draws, 0.0) is None


def test_only_the_part_of_a_mode_that_the_guide_does_not_hold_counts():
    """By sums over a grid: the places where the posterior has ten times the density of the guide, or more."""
    here, there = normal(0.0, 0.5, 1), normal(2.5, 1.0, 1)

    def log_p(x):
        return torch.logaddexp(here.log_prob(x) + math.log(0.6), there.log_prob(x) + math.log(0.4))

    evidence = math.log(0.6)  # as draws of the guide that weigh it with its own mode say
    grid = torch.linspace(-8, 12, 200_001).double()[:, None]
    excess = log_p(grid) - evidence - here.log_prob(grid)
    mass = float((log_p(grid) - evidence).exp()[excess > math.log(MISSED_RATIO)].sum() * 1e-4)
    torch.manual_seed(0)
    missed = missed_mass(log_p, here.log_prob, here.sample((1000,)), evidence, num_draws=40_000)
    assert missed.share == pytest.approx(mass / (1 + mass), abs=0.004)
    assert 0.05 < mass < 0.4 / 0.6 - 0.03  # a good part of the mode is the guide's


@pytest.mark.parametrize("seed", range(3))
def test_a_narrow_mode_is_not_jumped_over(seed):
    """A tenth of the mass at 12 sd, half as wide: straight steps from far outside pass it in most directions."""
    here, there = normal(0.0, 1.0, 3), normal(7.0, 0.5, 3)

    def log_p(x):
        return torch.logaddexp(here.log_prob(x) + math.log(0.9), there.log_prob(x) + math.log(0.1))

    missed = missed_mass(log_p, here.log_prob, here.sample((1000,)), math.log(0.9), seed=seed)
    assert missed.share == pytest.approx(0.1, abs=0.02)


def test_a_mode_is_looked_at_once_however_many_paths_end_there(monkeypatch):
    """Ends less than half a standard deviation apart are one, on whichever side of the guide; two modes are two."""
    looked = []
    monkeypatch.setattr(
        elsewhere, "climb", lambda density, end, *steps: looked.append(end) or climb(density, end, *steps)
    )
    here = normal(0.0, 1.0, 1)
    parts = [(-9.0, 0.2), (9.0, 0.3)]

    def log_p(x):
        away = [normal(place, 1.0, 1).log_prob(x) + math.log(weight) for place, weight in parts]
        return torch.stack([here.log_prob(x) + math.log(0.5), *away]).logsumexp(0)

    torch.manual_seed(0)
    missed = missed_mass(log_p, here.log_prob, here.sample((1000,)), math.log(0.5))
    assert len(looked) == 2
    assert sorted(float(end) for end in looked) == pytest.approx([-9.0, 9.0], abs=0.5)
    assert missed.share == pytest.approx(0.3, abs=0.03)  # of the larger one
    assert missed.number == 2
    assert missed.together == pytest.approx(0.5, abs=0.03)


def bumps(places):
    """Of a hundred-thousandth each."""
    return lambda x: torch.distributions.Normal(places, 1.0).log_prob(x[..., None, :]).sum(-1) + math.log(1e-5)


def peaks(places):
    """Nine times as high as the mode, but of no width; far from all else the density is theirs."""
    return lambda x: -3.5 - 5 * ((x[..., None, :] - places) / 0.05).square().sum(-1).log1p()


@pytest.mark.parametrize(("light", "spread"), [(bumps, 12.0), (peaks, 4.0)])
def test_what_has_no_mass_hides_no_mode(light, spread):
    """A mode of 30 % of the mass, and paths that end at some of a hundred others first."""
    generator = torch.Generator().manual_seed(4)
    there = torch.randn(5, generator=generator).double()
    there *= 8 / there.norm()
    places = spread * torch.randn(100, 5, generator=generator).double()
    others = light(places[places.norm(dim=-1) > 6])
    here, mode = normal(0.0, 1.0, 5), torch.distributions.Independent(torch.distributions.Normal(there, 1.0), 1)

    def log_p(x):
        parts = torch.stack([here.log_prob(x) + math.log(0.7), mode.log_prob(x) + math.log(0.3)], -1)
        return torch.logsumexp(torch.cat([parts, others(x)], -1), -1)

    torch.manual_seed(4)
    missed = missed_mass(log_p, here.log_prob, torch.randn(1000, 5).double(), math.log(0.7), num_paths=200)
    assert missed.share == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(missed.latent, there, atol=0.1, rtol=0)


@pytest.mark.parametrize(("dim", "within"), [(3, 1e-5), (40, 2.0)])
def test_masses_at_ends_of_paths_are_laplaces(dim, within):
    """Two Gaussians' log weights, exactly up to one constant; in 40 dimensions by 16 directions, roughly."""
    generator = torch.Generator().manual_seed(0)
    widths = 0.2 + torch.rand(2, dim, generator=generator).double()
    places = 3.0 * torch.tensor([1.0, -1.0]).double()[:, None].expand(2, dim)
    log_weights = torch.tensor([0.0, -5.0]).double()

    def log_p(x):
        parts = torch.distributions.Normal(places, widths).log_prob(x[..., None, :]).sum(-1)
        return torch.logsumexp(parts + log_weights, -1)

    first, second = elsewhere._log_masses(log_p, places)
    assert float(first - second) == pytest.approx(5.0, abs=within)


@pytest.mark.parametrize("seed", range(3))
def test_a_mode_among_those_of_a_guide_of_several_is_found(seed):
    """Half as wide as the eight others, which lie on the axes: from far outside it is seen once in six times."""
    axes = 12 * torch.eye(4).double()
    places, there = torch.cat([axes, -axes]), torch.full((4,), 6.0).double()

    def log_q(x):
        parts = torch.distributions.Normal(places, 1.0).log_prob(x[..., None, :]).sum(-1)
        return torch.logsumexp(parts, -1) - math.log(8)

    def log_p(x):
        other = torch.distributions.Normal(there, 0.5).log_prob(x).sum(-1)
        return torch.logaddexp(log_q(x) + math.log(0.7), other + math.log(0.3))

    torch.manual_seed(seed)
    draws = places[torch.randint(8, (1000,))] + torch.randn(1000, 4).double()
    missed = missed_mass(log_p, log_q, draws, math.log(0.7), seed=seed)
    assert missed.share == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(missed.latent, there, atol=0.05, rtol=0)


def test_densities_of_several_t_are_pyros():
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(3, 2, 2, generator=generator).double()
    scales = torch.linalg.cholesky(factors @ factors.mT + 0.1 * torch.eye(2).double())
    centers, u = torch.randn(3, 2, generator=generator).double(), torch.randn(7, 2, generator=generator).double()
    exact = dist.MultivariateStudentT(torch.tensor(5.0).double(), centers, scales).log_prob(u[:, None])
    torch.testing.assert_close(elsewhere._log_t(u, centers, scales), exact)


def test_many_light_modes_count_together():
    """Eight of 0.6 % each, at distances of their own: none of them is worth a word, what they have together is."""
    directions = torch.eye(4).double()
    places = torch.cat([9 * directions, -12 * directions])

    def log_p(x):
        away = torch.distributions.Normal(places, 1.0).log_prob(x[..., None, :]).sum(-1) + math.log(0.006)
        return torch.logsumexp(torch.cat([away, (here.log_prob(x) + math.log(0.952))[..., None]], -1), -1)

    torch.manual_seed(0)
    here = normal(0.0, 1.0, 4)
    missed = missed_mass(log_p, here.log_prob, here.sample((1000,)), math.log(0.952))
    assert missed.number >= 6
    assert missed.share == pytest.approx(0.006, abs=0.001)
    assert missed.together == pytest.approx(0.006 * missed.number, abs=0.003)


def test_a_place_that_two_modes_draws_reach_counts_once():
    """Two peaks 2.5 spreads apart: the t of either reaches the other."""
    here, near, far = normal(0.0, 1.0, 2), normal(8.0, 1.0, 2), normal(9.8, 1.0, 2)

    def log_p(x):
        parts = here.log_prob(x) + math.log(0.6), near.log_prob(x) + math.log(0.2), far.log_prob(x) + math.log(0.2)
        return torch.stack(parts).logsumexp(0)

    torch.manual_seed(0)
    missed = missed_mass(log_p, here.log_prob, here.sample((1000,)), math.log(0.6), num_draws=4000)
    assert missed.number == 2
    assert missed.together == pytest.approx(0.4, abs=0.02)


def two_modes():
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 10.0).to_event(1).mask(False))
    left = dist.Normal(-6.0, 1.0).log_prob(x).sum(-1) + math.log(0.7)
    right = dist.Normal(6.0, 1.0).log_prob(x).sum(-1) + math.log(0.3)
    pyro.factor("target", torch.logaddexp(left, right))


def test_two_modes_of_which_one_is_missed_are_not_ok():
    place = {"x": torch.full((3,), -6.0)}
    guide = AutoConvFlow(two_modes, num_blocks=1, init_loc_fn=init_to_value(values=place), init_scale=1.0)
    report = diagnose(two_modes, guide)
    assert report.verdict == "don't trust"
    assert "about 30% of the mass (x = [6" in report.reason
    blind = diagnose(two_modes, guide, num_paths=0)  # what importance weights alone can say
    assert blind.verdict == "ok"
    assert "can't be seen" in str(blind)
    assert diagnose(two_modes, AutoConvFlow(two_modes)).verdict == "ok"  # by default both are found


def skewed():
    a = pyro.sample("a", dist.Gamma(3.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, a.sqrt()))
    pyro.sample("y", dist.Normal(b, 1.0), obs=torch.tensor(0.5))


def line():
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.sample("y", dist.Normal(x, 1e3), obs=torch.tensor(1e4))


@pytest.mark.parametrize("model", [skewed, line])
def test_one_mode_stays_ok(model):
    guide = AutoConvFlow(model)
    fit(model, guide, num_steps=400)
    report = diagnose(model, guide)
    assert report.verdict == "ok"
    assert "found no other mode" in str(report)


@pytest.mark.parametrize(("k_hat", "ess", "shift", "ratio", "verdict"), [
    (0.6, 3990.0, 0.01, 1.01, "ok"), (0.6, 3200.0, 0.01, 1.01, "use importance weights"),
    (0.6, 3990.0, 0.2, 1.01, "use importance weights"), (0.6, 3990.0, 0.01, 1.2, "use importance weights"),
    (0.3, 2400.0, 0.05, 1.05, "ok"), (0.75, 3900.0, 0.01, 1.01, "use importance weights"),
    (0.75, 3920.0, 0.01, 1.01, "ok"), (3.0, 3990.0, 0.01, 1.01, "ok"), (3.0, 3990.0, 0.2, 1.01, "don't trust"),
    (3.0, 3990.0, 0.01, 1.2, "don't trust"), (0.75, 3000.0, 0.01, 1.01, "don't trust")])  # fmt: skip
def test_nearly_equal_weights_are_ok_up_to_where_smoothing_works(k_hat, ess, shift, ratio, verdict):
    joint = PSIS(torch.zeros(4000), torch.tensor(k_hat), torch.tensor(ess), torch.tensor(0.0))
    assert judge(joint, None, {"x": torch.tensor(shift)}, {"x": torch.tensor(ratio)}, None, 4000)[0] == verdict


def test_a_model_that_fails_far_out_is_looked_at_where_it_is_defined():
    """As a Gaussian process whose covariance has no Cholesky factor at extreme scales; the mode is still found."""

    def log_p(x):
        if (x.abs() > 60).any():
            raise torch.linalg.LinAlgError("the leading minor is not positive definite")
        return torch.logaddexp(normal(0.0, 1.0, 1).log_prob(x), normal(12.0, 1.0, 1).log_prob(x)) - math.log(2)

    guide = normal(0.0, 1.0, 1)
    draws = guide.sample((1000,))
    missed = missed_mass(log_p, guide.log_prob, draws, math.log(0.5))
    assert missed.share == pytest.approx(0.5, abs=0.03)


def rounded(x):
    """A standard normal whose density, far out, is now and then a rounding error of any size."""
    density = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1)
    error = (x[..., 0] * 1e4).frac().abs() < 0.05
    return density + 1e6 * (error & (x.abs().amax(-1) > 15))


def test_rounding_errors_far_out_are_no_mode():
    def log_q(x):
        return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1)

    torch.manual_seed(0)
    assert missed_mass(rounded, log_q, torch.randn(1000, 2), 0.0) is None


def test_where_numbers_underflow_there_is_no_mass():
    """A mode of a thousandth of the mass, and right beside it no density at all: draws around the mode come there."""
    here, there = normal(0.0, 1.0, 1), normal(12.0, 1.0, 1)

    def log_p(x):
        density = torch.logaddexp(here.log_prob(x), there.log_prob(x) - math.log(1000))
        return torch.where(x[..., 0] < 15, density, torch.inf)

    torch.manual_seed(0)
    missed = missed_mass(log_p, here.log_prob, here.sample((1000,)), 0.0)
    assert missed is not None
    assert missed.share == pytest.approx(1e-3, rel=0.2)


def test_a_model_of_matrices_that_become_singular_far_out_is_ok():
    def model():
        s = pyro.sample("s", dist.LogNormal(0.0, 0.3))
        one, unit = torch.eye(1), dist.Normal(torch.zeros(1), 1.0).to_event(1)
        noise = dist.Normal(torch.zeros(1), s).to_event(1)
        pyro.sample("y", dist.GaussianHMM(unit, one, unit, one, noise, duration=3), obs=torch.ones(3, 1))

    pyro.set_rng_seed(0)
    guide = AutoConvFlow(model, num_blocks=1)
    fit(model, guide, num_steps=200)
    diagnosis = diagnose(model, guide, num_samples=2000, num_paths=20)
    assert diagnosis.verdict == "ok", diagnosis.reason


@pytest.mark.parametrize("place", [2.0, 6.0])
def test_a_mode_too_narrow_for_paths_from_far_is_met_from_the_draws_that_touch_it(place):
    """Half of the mass within a hundredth: a draw on its flank has a large weight, which smoothing takes away."""
    wide, narrow = torch.distributions.Normal(0.0, 3.0), torch.distributions.Normal(place, 0.01)

    def log_p(x):
        return torch.logaddexp(wide.log_prob(x), narrow.log_prob(x)).sum(-1) - math.log(2)

    torch.manual_seed(0)
    x = wide.sample((1000, 1))
    x[5] = place + 0.03
    found = missed_mass(log_p, lambda x: wide.log_prob(x).sum(-1), x, math.log(0.5), hints=[x[5]])
    assert found is not None
    assert float(found.latent) == pytest.approx(place, abs=1e-3)
    assert found.share == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("level", "found"), [(-50.0, False), (-2.0, True)])
def test_a_plateau_counts_as_far_as_it_is_away(level, found):
    """Flat beyond |x₃| = √(−2 level), for ever: its whole width would outweigh any height."""

    def log_p(x):
        return dist.Normal(0.0, 1.0).log_prob(x[..., :2]).sum(-1) + torch.maximum(
            -0.5 * x[..., 2].square(), torch.tensor(level, dtype=x.dtype)
        )

    here = dist.Normal(torch.zeros(3).double(), 1.0).to_event(1)
    torch.manual_seed(0)
    evidence = 0.5 * math.log(2 * math.pi)
    missed = missed_mass(log_p, here.log_prob, here.sample((1000,)), evidence)
    assert (missed is not None and missed.share > 0.2) == found
    assert missed is None or missed.share > 0.2 or missed.share < 1e-15


SATURATING = {
    "an entry of a simplex without counts": (
        lambda: dist.Dirichlet(torch.full((4,), 0.5)), lambda p: dist.Multinomial(20, p),
        torch.tensor([12.0, 3.0, 0.0, 5.0])),
    "a probability near zero": (
        lambda: dist.Beta(torch.tensor(0.5), torch.tensor(0.5)), lambda p: dist.Binomial(20, p), torch.tensor(0.0)),
    "a rate near zero": (
        lambda: dist.Gamma(torch.tensor(0.5), torch.tensor(1.0)), lambda p: dist.Poisson(p), torch.tensor(0.0)),
    "a bounded scale": (
        lambda: dist.Uniform(0.0, 10.0), lambda p: dist.Normal(0.0, p), torch.tensor(0.3)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SATURATING)
def test_where_a_map_has_run_out_of_numbers_there_is_no_mode(name):
    prior, likelihood, seen = SATURATING[name]

    def model():
        p = pyro.sample("p", prior())
        pyro.sample("y", likelihood(p), obs=seen)

    pyro.set_rng_seed(0)
    guide = AutoConvFlow(model, prototype_args=())
    fit(model, guide, progress=False)
    assert diagnose(model, guide, num_chains=0).elsewhere == "nothing"
