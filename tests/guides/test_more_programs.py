"""Programs of many kinds, each with its evidence in closed form, or refused with the name of the site."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoIAFNormal, AutoLaplaceApproximation, AutoNormal
from pyro.infer.reparam import LocScaleReparam, NeuTraReparam
from pyro.nn import PyroModule, PyroSample

from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, fit

ONE = torch.tensor(1.0)


def normal(x, sd):
    return -0.5 * (x / sd) ** 2 - math.log(sd) - 0.5 * math.log(2 * math.pi)


def joint_normal(y, covariance):
    y = torch.as_tensor(y, dtype=torch.float64)
    covariance = torch.as_tensor(covariance, dtype=torch.float64)
    return float(torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y))


def rows(y=ONE):
    """m ~ N(0, 1), z_n ~ N(m, 4), y_n ~ N(z_n, 1), y = (1, 1)."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("d", 2):
        z = pyro.sample("z", dist.Normal(m, 2.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y * torch.ones(2))


ROWS = joint_normal([1.0, 1.0], [[6.0, 1.0], [1.0, 6.0]])


def multinomial(total=10):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    pyro.sample("n", dist.Multinomial(total, p), obs=torch.tensor([3.0, 5.0, 2.0]))


def categorical():
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("d", 4):
        pyro.sample("k", dist.Categorical(p), obs=torch.tensor([0, 0, 1, 2]))


SEEN = torch.tensor([[1.0, 0.0, 2.0], [0.5, -1.0, math.nan]])
KNOWN = ~SEEN.isnan()


def crossed(by_obs_mask):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    plates = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1)
    with plates[1]:
        b = pyro.sample("b", dist.Normal(a, 1.0))
    with plates[0], plates[1]:
        if by_obs_mask:
            pyro.sample("y", dist.Normal(b, 1.0), obs=SEEN, obs_mask=KNOWN)
        else:
            with poutine.mask(mask=KNOWN):
                pyro.sample("y", dist.Normal(b, 1.0), obs=SEEN.nan_to_num(0.0))


def crossed_evidence():
    columns = KNOWN.nonzero()[:, 1]
    same = (columns[:, None] == columns).double()
    return joint_normal(SEEN[KNOWN], torch.eye(5, dtype=torch.float64) + 1 + same)


def loops():
    """A plate that is a loop, and one after it that is not."""
    total = pyro.sample("a", dist.Normal(0.0, 1.0))
    for i in pyro.plate("steps", 2):
        total = total + pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
    with pyro.plate("d", 1):
        pyro.sample("y", dist.Normal(total, 1.0), obs=torch.ones(1))


def flat_with_factor():
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.factor("f", -0.5 * (x / 2) ** 2)


def hidden_chain():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    x = 0
    for t in pyro.markov(range(4)):
        x = pyro.sample(f"x{t}", dist.Bernoulli(0.3 + 0.4 * x if t else 0.5))
        pyro.sample(f"y{t}", dist.Normal(a + x, 1.0), obs=torch.tensor(float(t % 2)))


def hidden_chain_evidence():
    terms = []
    for path in itertools.product((0, 1), repeat=4):
        prior = math.log(0.5)
        for before, after in itertools.pairwise(path):
            p = 0.3 + 0.4 * before
            prior += math.log(p if after else 1 - p)
        terms.append(prior + joint_normal([t % 2 - path[t] for t in range(4)], torch.eye(4) + 1))
    return float(torch.logsumexp(torch.tensor(terms), 0))


def one_enumerated_site():
    k = pyro.sample("k", dist.Bernoulli(0.7), infer={"enumerate": "parallel"})
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a + 2 * k - 1, 1.0), obs=ONE)


ENUMERATED = math.log(0.3 * math.exp(normal(2.0, 2**0.5)) + 0.7 * math.exp(normal(0.0, 2**0.5)))


def factor_of_a_kernel():
    points = torch.arange(3.0)
    kernel = torch.exp(-((points[:, None] - points) ** 2)) + 0.01 * torch.eye(3)
    f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(3), kernel))
    pyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=torch.tensor([1.0, 0.0, -1.0]))


def kernel_evidence():
    points = torch.arange(3.0, dtype=torch.float64)
    kernel = torch.exp(-((points[:, None] - points) ** 2)) + 0.26 * torch.eye(3, dtype=torch.float64)
    return joint_normal([1.0, 0.0, -1.0], kernel)


def priors_alone():
    pyro.sample("cholesky", dist.LKJCholesky(3, 2.0))
    pyro.sample("cauchy", dist.HalfCauchy(1.0))
    with pyro.plate("a", 2), pyro.plate("b", 3):
        pyro.sample("beta", dist.Beta(2.0, 3.0))
    pyro.sample("folded", dist.FoldedDistribution(dist.Normal(1.0, 1.0)))


class Regression(PyroModule):
    """y = (w_1 + w_2) x + noise: a list of layers with priors."""

    def __init__(self):
        super().__init__()
        self.layers = PyroModule[torch.nn.ModuleList]([PyroModule[torch.nn.Linear](1, 1, bias=False) for _ in range(2)])
        for layer in self.layers:
            layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))

    def forward(self, x, y):
        mean = sum(layer(x) for layer in self.layers).squeeze(-1)
        with pyro.plate("d", len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


X, Y = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 2.0])

PROGRAMS = {
    "multinomial": (multinomial, (), math.log(2 / (11 * 12))),  # all counts are equally likely
    "categorical": (categorical, (), math.log(2 * 2 / math.factorial(6))),
    "masked": (crossed, (False,), crossed_evidence()),
    "obs_mask": (crossed, (True,), crossed_evidence()),
    "loops": (loops, (), normal(1.0, 2.0)),
    "reparam": (poutine.reparam(rows, config={"z": LocScaleReparam(0.0)}), (), ROWS),
    "learnt_reparam": (poutine.reparam(rows, config={"z": LocScaleReparam()}), (), ROWS),
    "block_of_nothing": (poutine.block(rows, hide=["nothing"]), (), ROWS),
    "uncondition": (poutine.uncondition(rows), (), 0.0),
    "do": (poutine.do(rows, data={"m": torch.tensor(0.0)}), (), 2 * normal(1.0, 5**0.5)),
    "condition": (
        poutine.condition(rows, data={"m": torch.tensor(0.0)}), (), 2 * normal(1.0, 5**0.5) + normal(0.0, 1.0),
    ),
    "flat_with_factor": (flat_with_factor, (), 0.5 * math.log(2 * math.pi * 4)),
    "hidden_chain": (config_enumerate(hidden_chain), (), hidden_chain_evidence()),
    "one_enumerated_site": (one_enumerated_site, (), ENUMERATED),
    "kernel": (factor_of_a_kernel, (), kernel_evidence()),
    "priors_alone": (priors_alone, (), 0.0),
    "module_list": (Regression(), (X, Y), joint_normal(Y, 2 * X @ X.T + torch.eye(2))),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_evidence(name):
    model, args, evidence = PROGRAMS[name]
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoConvFlow(model, num_blocks=1)
    result = fit(model, guide, *args, num_steps=100)
    assert evidence - 0.3 < result.elbo < evidence + 0.06
    assert diagnose(model, guide, *args, num_samples=1000, num_paths=0).log_evidence == pytest.approx(
        evidence, abs=0.08
    )


def test_double_precision_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        guide = AutoConvFlow(one_enumerated_site, num_blocks=1)
        fit(one_enumerated_site, guide, num_steps=20)
        assert guide.sample_posterior(2)["a"].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_scaled_model_has_the_scaled_posterior():
    guide = AutoConvFlow(rows, num_blocks=1, prototype_args=())
    fit(poutine.scale(rows, scale=2.0), guide, num_steps=200)
    precision = 2 * torch.tensor([[1.5, -0.25, -0.25], [-0.25, 1.25, 0.0], [-0.25, 0.0, 1.25]])
    covariance = precision.inverse()
    draws = guide.sample_posterior(10_000)["m"]
    mean, sd = (covariance @ torch.tensor([0.0, 2.0, 2.0]))[0], covariance[0, 0] ** 0.5
    assert abs(draws.mean() - mean) < 0.1 * sd
    assert float(draws.std() / sd) == pytest.approx(1.0, abs=0.06)


def test_neutra_takes_the_guide():
    guide = AutoConvFlow(rows, num_blocks=1, prototype_args=())
    trace = poutine.trace(NeuTraReparam(guide).reparam(rows)).get_trace()
    noise = trace.nodes["m_shared_latent"]["value"]
    x, ladj = guide.get_transform().forward_and_ladj(noise)
    expected = float((guide.log_density_fn()(x[None]) + ladj).detach())
    assert float(trace.log_prob_sum()) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("make", [AutoDelta, AutoLaplaceApproximation])
def test_guides_that_are_points_are_not_weighed(make):
    guide = make(rows)
    assert math.isfinite(fit(rows, guide, num_steps=2).elbo)
    with pytest.raises(ValueError, match=r"'m' is a point"):
        diagnose(rows, guide, num_samples=100)


def some_points():
    guide = AutoGuideList(rows)
    guide.append(AutoNormal(poutine.block(rows, expose=["m"])))
    guide.append(AutoDelta(poutine.block(rows, expose=["z"])))
    return guide


def test_guides_of_pyro_are_weighed_and_points_among_them_told():
    guide = AutoIAFNormal(rows)
    fit(rows, guide, num_steps=300)
    assert diagnose(rows, guide, num_samples=1000).log_evidence == pytest.approx(ROWS, abs=0.1)
    with pytest.raises(ValueError, match=r"'z' is a point"):
        diagnose(rows, some_points(), num_samples=100)


def simplex_of(size):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(size)))
    pyro.sample("k", dist.Categorical(p), obs=torch.tensor(0))


def counts_latent():
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    n = pyro.sample("n", dist.Multinomial(10, p))
    pyro.sample("y", dist.Normal(n[..., 0], 1.0), obs=ONE)


def on_a_sphere():
    v = pyro.sample("v", dist.ProjectedNormal(torch.ones(3)))
    pyro.sample("y", dist.Normal(v[..., 0], 1.0), obs=ONE)


def on_a_torus():
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    v = pyro.sample("v", dist.SineBivariateVonMises(zero, zero, one, one, 0.1 * one))
    pyro.sample("y", dist.Normal(v[..., 0], 1.0), obs=ONE)


@pytest.mark.parametrize(("model", "before", "now", "words"), [
    (multinomial, (10,), (12,), r"'n' has counts with sums \[10\.0\].*total_count of \[12\]"),
    (simplex_of, (3,), (4,), r"'p' has shape \(4,\), the guide was built for \(3,\)"),
    (counts_latent, (), (), r"'n'"),
    (on_a_sphere, (), (), r"'v'"),
    (on_a_torus, (), (), r"'v' is circular")])  # fmt: skip
def test_refused_by_name(model, before, now, words):
    with pytest.raises(ValueError, match=words):
        fit(model, AutoConvFlow(model, num_blocks=1, prototype_args=before, warm_start=False), *now)
