"""The Gaussian start against posteriors whose moments are known in closed form or by quadrature."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from vi_flows.guides import AutoConvFlow, AutoFlow, fit, pathfinder
from vi_flows.guides.log_joint import LogJoint
from vi_flows.guides.promoting import Promoting
from vi_flows.guides.start.gaussian_vi import antithetic_normal, exact_derivatives, refine_gaussian
from vi_flows.guides.whitened_affine import WhitenedAffine
from vi_flows.transforms import TriangularScale

DIM = 4
DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def raw_unit_data():
    """A trend over calendar years with an interaction: correlations of −0.99998, scales from 0.01 to 1000."""
    generator = torch.Generator().manual_seed(3)
    year = torch.arange(1960.0, 2010.0)
    group = (torch.arange(50) % 2).float()
    x = torch.stack([torch.ones(50), year, 1000 * group, group * year], -1)
    return x, -36.0 + 0.02 * year + 0.5 * group + torch.randn(50, generator=generator)


def regression(x, y):
    """Flat priors on the coefficients and on the noise, and data that float64 can't be mixed with."""
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (DIM,)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    pyro.sample("y", dist.Normal(x @ beta, sigma).to_event(1), obs=y)


def regression_moments(x, y):
    """Student posterior of the coefficients, with n − d − 1 degrees of freedom, and inverse-χ² of the variance."""
    x, y = x.double(), y.double()
    dof = len(y) - DIM - 1
    gram = x.T @ x
    center = torch.linalg.solve(gram, x.T @ y)
    rss = (y - x @ center).square().sum()
    sd = (torch.linalg.inv(gram).diagonal() * rss / (dof - 2)).sqrt()
    sigma = (rss / 2).sqrt() * math.exp(math.lgamma((dof - 1) / 2) - math.lgamma(dof / 2))
    return {"beta": (center, sd), "sigma": (sigma, (rss / (dof - 2) - sigma**2).sqrt())}


Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
S = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def centered_schools(y, s):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, s), obs=y)


def schools_by_quadrature(y, s):
    """Moments and log evidence on a grid of (mu, log tau), the school effects integrated out."""
    y, s = y.double(), s.double()
    mu = torch.linspace(-25, 35, 601, dtype=DOUBLE)[:, None]
    log_tau = torch.linspace(-12, 9, 2101, dtype=DOUBLE)[None]
    tau = log_tau.exp()
    log_p = dist.Normal(0.0, 5.0).log_prob(mu) + dist.HalfCauchy(5.0).log_prob(tau) + log_tau
    for yj, sj in zip(y, s, strict=True):
        log_p = log_p + dist.Normal(mu, (tau**2 + sj**2).sqrt()).log_prob(yj)
    log_evidence = float(torch.logsumexp(log_p.flatten(), 0) + math.log(0.1 * 0.01))
    weight = torch.softmax(log_p.flatten(), 0).reshape(log_p.shape)

    def moments(mean, square):
        first = (weight * mean).sum()
        return first, ((weight * square).sum() - first**2).sqrt()

    result = {"mu": moments(mu, mu**2), "tau": moments(tau, tau**2)}
    shrink = tau**2 / (tau**2 + s[:, None, None] ** 2)
    mean = shrink * y[:, None, None] + (1 - shrink) * mu
    parts = [moments(m, m**2 + v * sj**2) for m, v, sj in zip(mean, shrink, s, strict=True)]
    result["theta"] = tuple(torch.stack(part) for part in zip(*parts, strict=True))
    return result, log_evidence


def check(guide, exact, mean_error, low, high):
    draws = guide.sample_posterior(40_000)
    for name, (mean, sd) in exact.items():
        value = draws[name].double()
        assert ((value.mean(0) - mean) / sd).abs().max() < mean_error, name
        ratio = value.std(0) / sd
        assert ratio.min() > low, (name, ratio)
        assert ratio.max() < high, (name, ratio)


def test_raw_units_are_met_by_the_start_alone():
    data = raw_unit_data()
    guide = AutoConvFlow(regression, prototype_args=data)
    check(guide, regression_moments(*data), 0.1, 0.9, 1.1)


def test_the_start_is_not_in_the_neck_of_a_funnel():
    exact, log_evidence = schools_by_quadrature(Y, S)
    guide = AutoConvFlow(centered_schools, prototype_args=(Y, S))
    with torch.no_grad():
        x = guide.get_posterior().sample((4000,))
        elbo = (guide.log_density_fn(Y, S)(x) - guide.get_posterior().log_prob(x)).mean()
    assert log_evidence - 2 < elbo < log_evidence
    mean, sd = exact["mu"]
    assert abs(guide.sample_posterior(20_000)["mu"].mean() - mean) < 0.2 * sd


@pytest.mark.slow
def test_defaults_fit_raw_units():
    data = raw_unit_data()
    guide = AutoConvFlow(regression)
    fit(regression, guide, *data)
    check(guide, regression_moments(*data), 0.1, 0.9, 1.1)


@pytest.mark.slow
def test_defaults_fit_the_centred_schools():
    exact, log_evidence = schools_by_quadrature(Y, S)
    guide = AutoConvFlow(centered_schools)
    result = fit(centered_schools, guide, Y, S)
    check(guide, exact, 0.1, 0.9, 1.1)
    assert log_evidence - 0.3 < result.elbo < log_evidence + 3 * result.elbo_se


def test_refinement_is_exact_for_a_gaussian_from_far():
    loc = torch.tensor([3.0, -200.0, 0.5], dtype=DOUBLE)
    tril = torch.tensor([[2.0, 0.0, 0.0], [150.0, 0.3, 0.0], [0.1, -0.2, 0.05]], dtype=DOUBLE)
    target = torch.distributions.MultivariateNormal(loc, scale_tril=tril)
    found = (torch.zeros(3, dtype=DOUBLE), torch.eye(3, dtype=DOUBLE))
    for _ in range(20):
        found = refine_gaussian(target.log_prob, *found)
    torch.testing.assert_close(found[0], loc, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found[1], tril, atol=1e-6, rtol=1e-6)


def test_paths_go_on_where_second_derivatives_are_missing():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return 2 * grad * ctx.saved_tensors[0]

    scale = torch.tensor([1e-3, 1.0, 1e3], dtype=DOUBLE)
    loc = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)

    def log_density(x):
        return -0.5 * Square.apply((x - loc) / scale).sum(-1)

    assert exact_derivatives(log_density, loc[None]) is None
    start = pathfinder(log_density, torch.zeros(1, 3, dtype=DOUBLE))
    torch.testing.assert_close(start.covariance.diagonal().sqrt(), scale, rtol=0.05, atol=0)
    assert ((start.loc - loc) / scale).abs().max() < 0.1


def test_nothing_finite_gives_no_start():
    assert pathfinder(lambda x: x.sum(-1) * math.nan, torch.zeros(2, 3)) is None


def test_antithetic_pairs():
    noise = antithetic_normal(7, 3)
    assert noise.shape == (8, 3)
    assert torch.equal(noise[:4], -noise[4:])


def test_log_joint_in_double():
    x, y = raw_unit_data()
    values = {"beta": torch.randn(3, DIM, dtype=DOUBLE), "sigma": torch.rand(3, dtype=DOUBLE) + 0.5}
    found = LogJoint(regression, (x,), {"y": y}, within=partial(Promoting, DOUBLE))(values)
    wanted = dist.Normal(values["beta"] @ x.double().T, values["sigma"][:, None]).log_prob(y.double()).sum(-1)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0.0)
    seen = []

    def model():
        value = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        seen.append(torch.zeros(()).dtype)
        return value

    assert LogJoint(model, within=partial(Promoting, DOUBLE))({"x": torch.zeros(3, 2, dtype=DOUBLE)}).dtype == DOUBLE
    assert set(seen) == {DOUBLE}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("kind", ["full", "low_rank", "diagonal"])
def test_whitened_affine(kind, dense):
    layer = WhitenedAffine(torch.zeros(DIM), 0.3, kind, 2, dense).double()
    factor = torch.randn(DIM, DIM, dtype=DOUBLE)
    loc = torch.randn(DIM, dtype=DOUBLE)
    layer.set_gaussian(loc, factor @ factor.T + torch.eye(DIM, dtype=DOUBLE))
    if dense or kind == "full":
        expected = factor @ factor.T + torch.eye(DIM, dtype=DOUBLE)
        torch.testing.assert_close(layer.matrix() @ layer.matrix().T, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = torch.randn(5, 3, DIM, dtype=DOUBLE)
    y, ladj = layer.forward_and_ladj(x)
    back, inverse_ladj = layer.inverse_and_ladj(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_ladj, -ladj)
    jacobian = torch.autograd.functional.jacobian(lambda z: layer.forward_and_ladj(z)[0], x[0, 0])
    torch.testing.assert_close(jacobian.slogdet()[1], ladj[0, 0])
    torch.testing.assert_close(jacobian, layer.matrix())
    assert {name for name, _ in layer.named_parameters()}.isdisjoint({"center", "whitening"})
    assert {"center", "whitening"} <= set(layer.state_dict())
    layer.set_gaussian(loc, torch.full((DIM,), 4.0, dtype=DOUBLE))
    torch.testing.assert_close(layer.inverse_and_ladj(loc)[0].abs().max() < 1e-9, torch.tensor(True))


def test_steps_in_terms_of_what_parameters_stand_for():
    """`fit` undoes the layers' gains: whatever they are, the first step moves every layer's map equally far."""
    data = raw_unit_data()
    moved = []
    for gain in (1.0, 0.1):
        layer = TriangularScale(DIM + 1, gain=gain)
        guide = AutoFlow(regression, lambda _, layer=layer: layer, warm_start=False, prototype_args=data)
        fit(regression, guide, *data, num_steps=1, num_particles=4, learning_rate=0.01)
        moved.append((gain * layer.weight).detach())
    torch.testing.assert_close(moved[0].abs(), torch.full_like(moved[0], 0.01), rtol=1e-3, atol=0)
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="gain"):
        TriangularScale(DIM, gain=0.0)
    with pytest.raises(ValueError, match="gain"):
        WhitenedAffine(torch.zeros(DIM), gain=-1.0)


def test_a_long_chain_is_met_in_many_dimensions_and_in_parts():
    dim, sizes = 220, []
    index = torch.arange(dim)
    exact = 0.99 ** (index[:, None] - index).abs().double()
    target = torch.distributions.MultivariateNormal(torch.zeros(dim, dtype=DOUBLE), exact)

    def log_density(x):
        sizes.append(len(x))
        return target.log_prob(x)

    start = pathfinder(log_density, torch.ones(1, dim, dtype=DOUBLE))
    torch.testing.assert_close(start.covariance, exact, rtol=1e-5, atol=1e-5)
    assert max(sizes) <= 50_000 // dim
