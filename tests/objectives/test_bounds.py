"""ELBO, IWAE and NLL against closed forms of a linear-Gaussian model, and against Pyro's losses where Pyro is right."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal
from torch import nn

from vi_flows.evaluation import estimate_nll, pyro_log_weights
from vi_flows.objectives import ELBO, IWAE

DIM, ROWS, NOISE = 3, 40, 0.7


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.fixture
def data():
    return torch.randn(ROWS, DIM) * math.sqrt(1 + NOISE**2) + 0.3


class Local:
    """z_n ~ N(0, I), x_n ~ N(z_n, s²): log p(x) in closed form, with a guide that is off by a known amount."""

    def __init__(self, batch: int | None = None, offset: float = 0.3, log_scale: float = 0.1) -> None:
        self.batch, self.offset, self.log_scale = batch, offset, log_scale
        self.gain = nn.Parameter(torch.tensor(1 / (1 + NOISE**2)))
        self.calls = 0

    def plate(self):
        """Disjoint minibatches in turn, so that an average over a whole number of epochs has no subsampling error."""
        if self.batch is None:
            return pyro.plate("data", ROWS)
        start = self.calls * self.batch % ROWS
        return pyro.plate("data", ROWS, subsample=torch.arange(start, start + self.batch))

    def model(self, x):
        with self.plate() as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x[index])

    def guide(self, x):
        self.calls += 1
        gain = pyro.param("gain", lambda: self.gain.detach().clone())
        scale = math.exp(self.log_scale) * math.sqrt(NOISE**2 / (1 + NOISE**2))
        with self.plate() as index:
            pyro.sample("z", dist.Normal(gain * x[index] + self.offset, scale).to_event(1))


def log_evidence(x):
    return dist.Normal(0.0, math.sqrt(1 + NOISE**2)).log_prob(x).sum(-1)


def exact_kl(program):
    ratio = math.exp(2 * program.log_scale)
    variance = NOISE**2 / (1 + NOISE**2)
    return DIM * 0.5 * (ratio - 1 - math.log(ratio) + program.offset**2 / variance)


def mean_bound(bound, program, x, repeats):
    return -sum(bound.loss(program.model, program.guide, x) for _ in range(repeats)) / repeats


@pytest.mark.parametrize("batch", [None, 5])
def test_elbo_equals_its_closed_form(data, batch):
    program = Local(batch)
    exact = log_evidence(data).sum().item() - ROWS * exact_kl(program)
    bound = ELBO(500, vectorize_particles=True, max_plate_nesting=1)
    assert mean_bound(bound, program, data, 80) == pytest.approx(exact, abs=0.3)


@pytest.mark.parametrize("batch", [None, 5])
def test_bounds_are_ordered_and_below_the_evidence(data, batch):
    program = Local(batch, offset=0.5, log_scale=0.3)
    evidence = log_evidence(data).sum().item()
    values = [mean_bound(ELBO(50, vectorize_particles=True, max_plate_nesting=1), program, data, 240)]
    for particles in (2, 10, 100):
        bound = IWAE(particles, vectorize_particles=True, max_plate_nesting=1)
        values.append(mean_bound(bound, program, data, 240))
    assert values[0] < values[1] < values[2] < values[3]
    assert values[3] < evidence + 0.1
    assert evidence - values[3] < 0.05 * (evidence - values[0])


def test_posterior_guide_gives_the_evidence_with_no_variance(data):
    full = Local(None, offset=0.0, log_scale=0.0)
    for bound in (ELBO(3, vectorize_particles=True), IWAE(3), IWAE(4, vectorize_particles=True, max_plate_nesting=1)):
        value = -bound.loss(full.model, full.guide, data)
        assert value == pytest.approx(log_evidence(data).sum().item(), rel=1e-5)


def test_stock_renyi_breaks_under_subsampling_and_ours_does_not(data):
    """The scale inside the logarithm lifts Pyro's value above the exact evidence; ours stays below, and near it."""
    program = Local(2, offset=0.6, log_scale=0.5)
    evidence = log_evidence(data).sum().item()
    stock = RenyiELBO(alpha=0, num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    ours = IWAE(50, vectorize_particles=True, max_plate_nesting=1)
    assert mean_bound(stock, program, data, 200) > evidence + 5
    assert evidence - 3 < mean_bound(ours, program, data, 200) < evidence


@pytest.mark.parametrize("vectorized", [False, True])
def test_equals_pyro_where_pyro_is_right(data, vectorized):
    program = Local(None)
    options = dict(num_particles=4, vectorize_particles=vectorized, max_plate_nesting=1)
    pairs = [(ELBO(**options), Trace_ELBO(**options)), (IWAE(**options), RenyiELBO(alpha=0, **options))]
    for ours, stock in pairs:
        results = []
        for bound in (ours, stock):
            pyro.clear_param_store()
            pyro.set_rng_seed(1)
            value = bound.loss_and_grads(program.model, program.guide, data)
            results.append((value, pyro.param("gain").grad.clone()))
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
        assert torch.allclose(results[0][1], results[1][1], rtol=1e-4)


@pytest.mark.parametrize("batch", [None, 10])
def test_elbo_equals_pyro_with_global_latents(data, batch):
    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
        with pyro.plate("data", ROWS, subsample_size=batch) as index:
            pyro.sample("x", dist.Normal(loc, NOISE).to_event(1), obs=x[index])

    guide = AutoDiagonalNormal(model)
    guide(data)
    values = []
    for bound in (ELBO(3, vectorize_particles=True), Trace_ELBO(3, vectorize_particles=True), ELBO(3), Trace_ELBO(3)):
        pyro.set_rng_seed(2)
        values.append(bound.loss(model, guide, data))
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert values[2] == pytest.approx(values[3], rel=1e-5)
    evidence = math.inf
    if batch is None:
        covariance = NOISE**2 * torch.eye(ROWS) + torch.ones(ROWS, ROWS)
        evidence = dist.MultivariateNormal(torch.zeros(ROWS), covariance).log_prob(data.T).sum().item()
        pyro.set_rng_seed(2)
        joint = -IWAE(2000, vectorize_particles=True).loss(model, guide, data)
        assert -values[0] < joint < evidence + 0.5
    else:
        with pytest.warns(UserWarning, match="couple"):
            IWAE(3, vectorize_particles=True).loss(model, guide, data)


def test_kl_weight_bends_the_gradient_and_not_the_value(data):
    program = Local(None)
    for kind in (ELBO, IWAE):
        results = []
        for kl_weight in (1.0, 0.2):
            pyro.clear_param_store()
            pyro.set_rng_seed(1)
            value = kind(5, kl_weight, vectorize_particles=True).loss_and_grads(program.model, program.guide, data)
            results.append((value, pyro.param("gain").grad.item()))
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
        assert abs(results[0][1] - results[1][1]) > 1e-2


def test_works_with_svi_and_as_a_module(data):
    program = Local(10, offset=0.0)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.02}), IWAE(5, vectorize_particles=True))
    pyro.param("gain", torch.tensor(0.0))
    for _ in range(300):
        svi.step(data)
    assert pyro.param("gain").item() == pytest.approx(1 / (1 + NOISE**2), abs=0.12)
    assert svi.evaluate_loss(data) > 0
    assert ELBO()(program.model, program.guide)(data).requires_grad


def test_sites_that_are_not_reparameterised_are_named(data):
    def model():
        coin = pyro.sample("coin", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(coin, 1.0), obs=torch.tensor(0.3))

    def guide():
        pyro.sample("coin", dist.Bernoulli(pyro.param("p", torch.tensor(0.4))))

    with pytest.raises(ValueError, match="coin"):
        ELBO().loss_and_grads(model, guide)


def local_log_weights(data, offset=0.2, log_scale=0.1):
    scale = math.exp(log_scale) * math.sqrt(NOISE**2 / (1 + NOISE**2))

    def log_weights(rows, particles):
        q = dist.Normal(rows / (1 + NOISE**2) + offset, scale)
        z = q.sample((particles,))
        log_joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, NOISE).log_prob(rows)
        return (log_joint - q.log_prob(z)).sum(-1)

    return log_weights


def test_nll_equals_the_closed_form(data):
    result = estimate_nll(local_log_weights(data), data, 4000, rows_per_chunk=7, samples_per_chunk=333)
    assert torch.allclose(result.nll, -log_evidence(data).double(), atol=0.08)
    assert result.nll.mean() < result.nll_coarse.mean() + 0.02
    assert (result.nll_coarse < -result.elbo + 0.1).all()
    assert result.num_samples == 4000
    assert ((result.ess > 1) & (result.ess < 4000)).all()
    assert result.k_hat.median() < 0.5
    summary = result.summary()
    assert summary["interval"][0] < summary["nll"] < summary["interval"][1]


def test_nll_is_reproducible_to_the_bit(data):
    weights = local_log_weights(data)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = estimate_nll(weights, data, 300, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = estimate_nll(weights, data, 300, seed=4)
    other = estimate_nll(weights, data, 300, seed=5)
    assert torch.equal(first.nll, again.nll)
    assert not torch.equal(first.nll, other.nll)


@pytest.mark.parametrize("scale", [0.6, 0.8, 0.95])
def test_k_hat_of_a_known_tail(scale):
    """Weights N(0,1)/N(0,s²) under N(0,s²) have shape 1 − s²."""
    rows = torch.zeros(30, 1)

    def log_weights(rows, particles):
        z = scale * torch.randn(particles, len(rows))
        return dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(0.0, scale).log_prob(z)

    result = estimate_nll(log_weights, rows, 5000)
    assert result.k_hat.mean().item() == pytest.approx(1 - scale**2, abs=0.12)


def test_nll_of_a_pyro_program(data):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / (1 + NOISE**2), 0.6).to_event(1))

    result = estimate_nll(pyro_log_weights(model, guide), data, 2000, samples_per_chunk=500)
    assert torch.allclose(result.nll, -log_evidence(data).double(), atol=0.08)


def test_nll_refuses_nan(data):
    with pytest.raises(FloatingPointError, match="row 0"):
        estimate_nll(lambda rows, particles: torch.full((particles, len(rows)), math.nan), data, 10)
    with pytest.raises(ValueError, match="at least 1"):
        estimate_nll(local_log_weights(data), data, 0)
