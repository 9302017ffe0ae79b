"""Masked latent coordinates get their prior: evidence and posterior are those of the model without them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions.transforms import AffineTransform, ExpTransform

from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, LogJoint, fit

Y = torch.tensor([4.0, 5.5, 6.0, 99.0, 4.5])
SEEN = torch.tensor([True, True, True, False, True])


def evidence(y, prior_sd=10.0):
    """log N(y; 0, prior_sd² 11ᵀ + I) with one mean for all of y."""
    cov = prior_sd**2 * torch.ones(len(y), len(y), dtype=torch.float64) + torch.eye(len(y), dtype=torch.float64)
    return float(torch.distributions.MultivariateNormal(torch.zeros(len(y)).double(), cov).log_prob(y.double()))


def missing():
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("d", 5):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=Y, obs_mask=SEEN)


def outer():
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("d", 5), poutine.mask(mask=SEEN):
        z = pyro.sample("z", dist.Normal(mu, 0.6))
        pyro.sample("y", dist.Normal(z, 0.8), obs=Y)


def inner():
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    z = pyro.sample("z", dist.Normal(mu, 0.6).expand([5]).mask(SEEN).to_event(1))
    pyro.sample("y", dist.Normal(z, 0.8).mask(SEEN).to_event(1), obs=Y)


@pytest.mark.parametrize(("model", "site"), [(missing, "y_unobserved"), (outer, "z"), (inner, "z")])
def test_evidence_and_posterior_are_those_of_what_is_seen(model, site):
    guide = AutoConvFlow(model, num_blocks=1)
    result = fit(model, guide, num_steps=600)
    report = diagnose(model, guide)
    want = evidence(Y[SEEN])
    assert report.log_evidence == pytest.approx(want, abs=0.02)
    assert want - 0.05 < result.elbo < want + 0.01
    draws = guide.sample_posterior(8000)
    mean, sd = 20.0 / 4.01, 4.01**-0.5
    assert float(draws["mu"].mean()) == pytest.approx(mean, abs=0.1 * sd)
    assert float(draws["mu"].std()) == pytest.approx(sd, rel=0.06)
    # The row that is not seen follows the posterior predictive of a row.
    spread = (sd**2 + (1.0 if site == "y_unobserved" else 0.36)) ** 0.5
    assert float(draws[site][:, 3].mean()) == pytest.approx(mean, abs=0.1 * spread)
    assert float(draws[site][:, 3].std()) == pytest.approx(spread, rel=0.08)


def test_a_walk_that_ends_early_goes_on_by_its_prior():
    lengths = torch.tensor([3, 1])

    def model():
        x = torch.zeros(2)
        with pyro.plate("series", 2):
            for t in range(3):
                with poutine.mask(mask=t < lengths):
                    x = pyro.sample(f"x{t}", dist.Normal(x, 1.0))
                    pyro.sample(f"y{t}", dist.Normal(x, 1.0), obs=torch.tensor([1.0, -1.0]))

    values = {f"x{t}": torch.tensor([[0.5 * t, 1.0 + t], [1.0, -2.0 * t]]) for t in range(3)}

    def normal(x, loc):
        return -0.5 * (x - loc) ** 2 - 0.5 * math.log(2 * math.pi)

    want = torch.zeros(2)
    for series, length in enumerate((3, 1)):
        before = torch.zeros(2)
        for t in range(3):
            x = values[f"x{t}"][:, series]
            want = want + normal(x, before) + (normal((1.0, -1.0)[series], x) if t < length else 0.0)
            before = x
    torch.testing.assert_close(LogJoint(model)(values), want)


def test_what_is_missing_depends_on_a_discrete_site():
    seen = torch.tensor([True, False, True])

    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("d", 3):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(a + 2 * z, 1.0), obs=torch.tensor([1.0, math.nan, -1.0]), obs_mask=seen)

    def normal(x, loc):
        return -0.5 * (x - loc) ** 2 - 0.5 * math.log(2 * math.pi)

    a, y = torch.tensor([0.3, -1.0]), torch.tensor([[0.5, 2.0, -0.3], [0.1, 0.2, 0.3]])
    want = normal(a, 0.0)
    for row, observed in enumerate((1.0, None, -1.0)):
        # The spare coordinate of a row that is seen follows that row's own density, whatever its z.
        low, high = (math.log(0.7) + normal(y[:, row], a), math.log(0.3) + normal(y[:, row], a + 2))
        if observed is not None:
            low, high = low + normal(observed, a), high + normal(observed, a + 2)
        want = want + torch.logaddexp(low, high)
    torch.testing.assert_close(LogJoint(model)({"a": a, "y_unobserved": y}), want)


def test_a_masked_site_that_the_model_uses_stays_flat():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 10.0).to_event(1).mask(False))
        pyro.factor("target", -x.square().sum(-1))

    values = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    torch.testing.assert_close(LogJoint(model)({"x": values}), -values.square().sum(-1))


def test_what_has_no_density_is_refused():
    def steps():
        z = pyro.sample("z", dist.Normal(0.0, 1.0).mask(False))
        pyro.sample("y", dist.Normal((z > 0).float(), 0.1), obs=torch.tensor(1.0))

    def nowhere():
        pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()).mask(False))
        pyro.sample("a", dist.Normal(0.0, 1.0))

    def in_part():
        z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)).mask(False))
        pyro.factor("target", -z[..., 0].square())

    for model in (steps, nowhere, in_part):
        guide = AutoConvFlow(model, num_blocks=1, warm_start=False)
        for call in (fit, diagnose):
            with pytest.raises(ValueError, match=r"'z'.*masked"):
                call(model, guide)


GAPS = torch.tensor([1.0, math.nan, 2.0, 3.0])


def log_normal(x, sd=1.0):
    return -0.5 * (x / sd) ** 2 - math.log(sd) - 0.5 * math.log(2 * math.pi)


def residuals():
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("n", 4), poutine.mask(mask=~GAPS.isnan()):
        pyro.sample("r", dist.Normal(0.0, 1.0), obs=GAPS - mu)


def residuals_of_a_masked_vector():
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    pyro.sample("r", dist.Normal(torch.zeros(4), 1.0).mask(~GAPS.isnan()).to_event(1), obs=GAPS - mu)


def residuals_by_obs_mask():
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("n", 4):
        pyro.sample("r", dist.Normal(0.0, 1.0), obs=GAPS - mu, obs_mask=~GAPS.isnan())


def residuals_of_classes():
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("n", 4):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with poutine.mask(mask=~GAPS.isnan()):
            pyro.sample("r", dist.Normal(0.0, 1.0), obs=GAPS - k * mu)


@pytest.mark.parametrize(
    "model", [residuals, residuals_of_a_masked_vector, residuals_by_obs_mask, residuals_of_classes]
)
def test_gaps_in_what_is_computed_from_latents(model):
    """Missing values of an observation that moves with the latents, which counts at each value as it is there."""
    mu = torch.tensor([0.5, 1.0, 2.5])
    want = log_normal(mu, 3.0)
    spare = torch.tensor([0.2, -0.4, 1.0])  # the row of obs_mask that is not seen
    for seen in GAPS[~GAPS.isnan()]:
        there = log_normal(seen - mu)
        mixed = torch.logaddexp(math.log(0.3) + there, math.log(0.7) + log_normal(seen))
        want = want + (mixed if model is residuals_of_classes else there)
    values = {"mu": mu}
    if model is residuals_by_obs_mask:
        values["r_unobserved"] = spare[:, None].expand(3, 4)
        want = want + 4 * log_normal(spare)
    joint = LogJoint(model)
    torch.testing.assert_close(joint(values), want)
    leaf = mu.clone().requires_grad_()
    assert torch.autograd.grad(joint({**values, "mu": leaf}).sum(), leaf)[0].isfinite().all()


def test_gaps_whose_support_moves():
    """The value that stands in keeps to the bounds of each run: y − a ~ LogNormal beyond a."""

    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        shifted = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [ExpTransform(), AffineTransform(a, 1.0)])
        with pyro.plate("n", 2), poutine.mask(mask=torch.tensor([True, False])):
            pyro.sample("y", shifted, obs=torch.tensor([8.0, math.nan]))

    leaf = torch.tensor([-6.0, 0.0, 6.0], requires_grad=True)
    value = LogJoint(model)({"a": leaf})
    rest = 8.0 - leaf.detach()
    torch.testing.assert_close(value.detach(), log_normal(leaf.detach()) + log_normal(rest.log()) - rest.log())
    assert torch.autograd.grad(value.sum(), leaf)[0].isfinite().all()


@pytest.mark.parametrize("gap", [0, 5])
def test_gaps_of_every_minibatch(gap):
    """The mean over all minibatches is the density of the whole, be the gap in the first of them or in the last."""
    x = torch.arange(1.0, 7.0)
    y = torch.where(torch.arange(6) == gap, math.nan, 2 * x + 1)
    place = iter(range(1000))

    def model(size):
        b = pyro.sample("b", dist.Normal(0.0, 3.0))
        i = torch.arange(size) + size * (next(place) % (6 // size))
        with pyro.plate("d", 6, subsample=i), poutine.mask(mask=~y[i].isnan()):
            pyro.sample("y", dist.Normal(b * x[i], 2.0), obs=y[i])

    values = {"b": torch.tensor([1.0, 2.0, 2.5])}
    want = log_normal(values["b"], 3.0) + sum(log_normal(y[i] - values["b"] * x[i], 2.0) for i in range(6) if i != gap)
    minibatch = LogJoint(model, (2,))
    minibatch(values)
    torch.testing.assert_close(sum(minibatch(values) for _ in range(3)) / 3, want)
    torch.testing.assert_close(LogJoint(model, (6,))(values), want)


def test_gaps_draw_no_random_numbers():
    pyro.set_rng_seed(3)
    want = torch.randn(3)
    pyro.set_rng_seed(3)
    LogJoint(residuals)({"mu": torch.zeros(2)})
    assert torch.equal(torch.randn(3), want)


SCALE = torch.tensor([[2.0, 0.6], [0.6, 1.0]])
PAIRS = torch.tensor([[1.0, 2.0], [math.nan, 0.5], [3.0, math.nan], [math.nan, math.nan]])


def pyros_own_gaps():
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("n", 4):
        pyro.sample("y", dist.NanMaskedNormal(mu, 1.0), obs=GAPS)


def pyros_own_gaps_of_a_vector():
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.NanMaskedNormal(mu * torch.ones(4), 1.0).to_event(1), obs=GAPS)


def pyros_own_gaps_of_pairs():
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("n", 4):
        pyro.sample("y", dist.NanMaskedMultivariateNormal(mu * torch.ones(2), SCALE), obs=PAIRS)


@pytest.mark.parametrize("model", [pyros_own_gaps, pyros_own_gaps_of_a_vector, pyros_own_gaps_of_pairs])
def test_pyros_own_normals_with_gaps(model):
    """The conjugate posterior of what is there, by matrices A and covariances C: y ~ N(A mu, C)."""
    parts = [(y.reshape(1), torch.eye(1)) for y in GAPS[~GAPS.isnan()]]
    if model is pyros_own_gaps_of_pairs:
        parts = [(row[~row.isnan()], SCALE[~row.isnan()][:, ~row.isnan()]) for row in PAIRS[:3]]
    y, cov = torch.cat([part for part, _ in parts]).double(), torch.block_diag(*[part for _, part in parts]).double()
    precision = 1 / 9 + float(cov.inverse().sum())
    mean = float((cov.inverse() @ y).sum()) / precision
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(y), cov + 9).log_prob(y)
    guide = AutoConvFlow(model, num_blocks=1)
    fit(model, guide, num_steps=100)
    report = diagnose(model, guide, num_samples=1000)
    assert report.log_evidence == pytest.approx(float(evidence), abs=0.02)
    assert float(guide.sample_posterior(8000)["mu"].mean()) == pytest.approx(mean, abs=0.1 * precision**-0.5)
