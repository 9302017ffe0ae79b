"""Supports that depend on other latents: mapped draw by draw, against quadrature and closed forms."""

import copy
import io
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim import Adam

from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, AutoFlow, DependentSupportError, fit
from vi_flows.transforms import Chain


def triangle():
    """a ~ U(0, 1), b ~ U(0, 1 − a), y ~ N(a − b, 0.1), y = 0.3."""
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    b = pyro.sample("b", dist.Uniform(torch.zeros(()), 1 - a))
    pyro.sample("y", dist.Normal(a - b, 0.1), obs=torch.tensor(0.3))


def quadrature(num=1500):
    """Log evidence, means and sds of a and b by the midpoint rule on the triangle (b = (1 − a) v, uniform in v)."""
    grid = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    a, v = torch.meshgrid(grid, grid, indexing="ij")
    b = (1 - a) * v
    weight = torch.distributions.Normal(a - b, 0.1).log_prob(torch.tensor(0.3, dtype=torch.float64)).exp()
    evidence = weight.mean().log()
    weight = weight / weight.sum()
    means = [(weight * x).sum() for x in (a, b)]
    return float(evidence), means, [(weight * (x - m) ** 2).sum().sqrt() for x, m in zip((a, b), means, strict=True)]


@pytest.fixture(scope="module")
def fitted():
    pyro.set_rng_seed(0)
    guide = AutoConvFlow(triangle, num_blocks=2)
    return guide, fit(triangle, guide, num_steps=800)


def test_posterior_and_evidence_are_those_of_quadrature(fitted):
    guide, result = fitted
    evidence, means, sds = quadrature()
    report = diagnose(triangle, guide, num_samples=2000)
    assert report.log_evidence == pytest.approx(evidence, abs=0.05)
    assert evidence - 0.05 < result.elbo < evidence + 0.03
    draws = guide.sample_posterior(8000)
    assert bool((draws["a"] + draws["b"] <= 1).all())
    for name, mean, sd in zip("ab", means, sds, strict=True):
        assert abs(draws[name].mean() - mean) < 0.1 * sd
        assert float(draws[name].std() / sd) == pytest.approx(1.0, abs=0.07)
        levels = guide.quantiles([0.1, 0.5])[name]
        torch.testing.assert_close(levels, torch.quantile(draws[name], torch.tensor([0.1, 0.5])), atol=0.02, rtol=0)


def test_the_density_integrates_to_one_within_the_support_and_is_none_beyond(fitted):
    guide, _ = fitted
    grid = (torch.arange(300) + 0.5) / 300
    a, b = torch.meshgrid(grid, grid, indexing="ij")
    log_q = guide.log_prob({"a": a, "b": b})
    assert bool((log_q[a + b > 1.0001] == -math.inf).all())
    assert float(log_q.detach().exp().sum() / 300**2) == pytest.approx(1.0, abs=0.02)
    values = guide.sample_posterior(5)
    latent, ladj = guide.unconstrain(values)
    again, forward = guide.constrain(latent)
    torch.testing.assert_close(again, values)
    torch.testing.assert_close(forward, -ladj, atol=1e-4, rtol=1e-4)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: torch.stack([v for v in guide.constrain(x)[0].values()]), latent[0]
    )
    torch.testing.assert_close(jacobian.det().abs().log(), forward[0], atol=1e-4, rtol=1e-4)


def test_pyros_own_loop_and_predictive(fitted):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    evidence = quadrature(300)[0]
    guide, _ = fitted
    with torch.no_grad():
        loss = Trace_ELBO(2000, vectorize_particles=True, max_plate_nesting=0).loss(triangle, guide)
    assert -loss == pytest.approx(evidence, abs=0.06)
    own = copy.deepcopy(guide)
    svi = SVI(triangle, own, Adam({"lr": 1e-4}), Trace_ELBO())
    assert math.isfinite(svi.step())
    draws = Predictive(triangle, guide=own, num_samples=50)()
    assert bool((draws["a"] + draws["b"] <= 1).all())
    pyro.clear_param_store()


def test_a_guide_from_a_file_says_that_it_has_no_map(fitted):
    file = io.BytesIO()
    torch.save(fitted[0], file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    with pytest.raises(RuntimeError, match=r"support of 'b' depends"):
        loaded.sample_posterior(2)
    fresh = AutoConvFlow(triangle, num_blocks=2)
    fresh.load_state_dict(fitted[0].state_dict())
    torch.testing.assert_close(fresh.quantiles([0.5]), fitted[0].quantiles([0.5]))
    diagnose(triangle, loaded, num_samples=100)  # the model given knows


def plated(y):
    """Rows below a common upper end: θ ~ Pareto(1, 3), z_n ~ U(0, θ), y_n ~ N(z_n, 0.2); a vector between two ends."""
    theta = pyro.sample("theta", dist.Pareto(1.0, 3.0))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Uniform(torch.zeros(()), theta))
        pyro.sample("y", dist.Normal(z, 0.2), obs=y)
    low = theta.unsqueeze(-1) * torch.ones(2)
    pyro.sample("w", dist.Uniform(low, low + 1.0).to_event(1))


def test_plates_vectors_and_other_bounds():
    pyro.set_rng_seed(0)
    y = torch.tensor([0.3, 0.9, 2.0])
    guide = AutoFlow(plated, lambda dim: Chain([]), prototype_args=(y,))
    assert guide.latent_dim == 6
    draws = guide.sample_posterior(100)
    assert bool((draws["z"] <= draws["theta"][:, None]).all())
    assert bool((draws["w"] >= draws["theta"][:, None]).all())
    # E over θ of Π ∫ U(z; 0, θ) N(y; z, 0.2) dz, by quadrature on θ = (1 − u)^(−1/3).
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    theta = (1 - u) ** (-1 / 3)
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    rows = (normal.cdf((theta[:, None] - y) / 0.2) - normal.cdf(-y.double() / 0.2)) / theta[:, None]
    evidence = float(rows.prod(-1).mean().log())
    report = diagnose(plated, guide, y, num_samples=4000)
    assert report.log_evidence == pytest.approx(evidence, abs=0.15)
    with torch.no_grad():
        loss = Trace_ELBO(500, vectorize_particles=True, max_plate_nesting=1).loss(plated, guide, y)
    assert -loss == pytest.approx(report.elbo, abs=0.4)


def by_argument(upper):
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    b = pyro.sample("b", dist.Uniform(torch.zeros(()), upper * (1 + a)))
    pyro.sample("y", dist.Normal(b, 1.0), obs=torch.tensor(1.0))


def test_the_bounds_are_those_of_the_arguments_given():
    pyro.set_rng_seed(0)
    guide = AutoFlow(by_argument, lambda dim: Chain([]), prototype_args=(10.0,))
    fit(by_argument, guide, 0.5, num_steps=300)
    draws = guide.sample_posterior(500)
    assert bool((draws["b"] <= 0.5 * (1 + draws["a"])).all())
    # b is uniform on (0, s), s uniform on (1/2, 1): evidence of y = 1 by quadrature.
    s = 0.5 + 0.5 * (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    normal = torch.distributions.Normal(torch.tensor(1.0, dtype=torch.float64), 1.0)
    evidence = float(((normal.cdf(s) - normal.cdf(torch.zeros_like(s))) / s).mean().log())
    assert diagnose(by_argument, guide, 0.5).log_evidence == pytest.approx(evidence, abs=0.02)


def test_bounds_that_depend_on_what_is_summed_out_are_refused():
    def model():
        k = pyro.sample("k", dist.Bernoulli(0.5))
        a = pyro.sample("a", dist.Uniform(0.0, 1.0))
        pyro.sample("b", dist.Uniform(torch.zeros(()), 1 + k + a))

    with pytest.raises(DependentSupportError, match=r"'b' depends on a site that is summed out.*b_fraction"):
        AutoConvFlow(model)


def beyond_a_threshold():
    """a ~ N(0, 1), b ~ U(0, 2 if a > 1.5 else 1), y ~ N(a, 0.5), y = 1.5: a ~ N(1.2, √0.2) after y."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Uniform(0.0, torch.where(a > 1.5, 2.0, 1.0)))
    pyro.sample("y", dist.Normal(a, 0.5), obs=torch.tensor(1.5))


def between_two_bounds():
    """The upper end is flat where the latents start, and 3 prior sds away from there it is not."""
    a = pyro.sample("a", dist.Normal(300.0, 100.0))
    pyro.sample("b", dist.Uniform(0.0, (a / 100).clamp(0.1, 2.0)))


def of_another_law():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("c", dist.Pareto(torch.where(a > 1.5, 2.0, 1.0), 3.0))


@pytest.mark.parametrize(("model", "sites"), [
    (beyond_a_threshold, ("b",)), (between_two_bounds, ("b",)), (of_another_law, ("c",))])  # fmt: skip
def test_bounds_that_move_beyond_a_threshold_alone_are_found(model, sites):
    assert AutoConvFlow(model, num_blocks=1, warm_start=False).dependent_sites == sites


def test_a_bound_beyond_a_threshold_is_kept_to():
    pyro.set_rng_seed(0)
    guide = AutoConvFlow(beyond_a_threshold, num_blocks=2)
    fit(beyond_a_threshold, guide, num_steps=600)
    draws = guide.sample_posterior(20000)
    # P(a > 1.5) = 1 − Φ(0.3 / √0.2) = 0.2512, and b is uniform on (0, 2) there.
    assert float(draws["b"].mean()) == pytest.approx(0.5 + 0.5 * 0.2512, abs=0.02)
    assert bool((draws["b"] <= torch.where(draws["a"] > 1.5, 2.0, 1.0)).all())
    assert float((draws["b"] > 1).float().mean()) == pytest.approx(0.1256, abs=0.015)


def test_bounds_that_move_only_where_the_data_lead_are_refused():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        pyro.sample("b", dist.Uniform(0.0, torch.where(a > 43.5, 2.0, 1.0)))
        pyro.sample("y", dist.Normal(a, 0.5), obs=torch.tensor(43.0))

    pyro.set_rng_seed(0)
    guide = AutoConvFlow(model, num_blocks=1)
    assert guide.dependent_sites == ()
    words = r"support of latent site 'b' depends on other latents.*takes it for fixed.*'b_fraction'"
    with pytest.raises(DependentSupportError, match=words):
        fit(model, guide, num_steps=50)
    with pytest.raises(DependentSupportError, match=words):
        diagnose(model, guide, num_samples=100)


def test_bounds_that_have_moved_at_the_centre_are_refused():
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        pyro.sample("b", dist.Uniform(0.0, torch.where(a > 43.5, 2.0, 1.0)))
        pyro.sample("y", dist.Normal(a, 0.5), obs=y)

    guide = AutoConvFlow(model, num_blocks=1, prototype_args=(torch.tensor(45.0),))
    with pytest.raises(
        ValueError, match=r"'b' is not the one .* build a new guide with these arguments, or, .* other latents"
    ):
        fit(model, guide, torch.tensor(45.0), num_steps=50)
