"""Faults are called by the name of their site."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LinearHMMReparam, LocScaleReparam, StudentTReparam
from torch.distributions.transforms import AffineTransform

from tests.guides.models import FIVE_VALUES as Y
from tests.guides.models import levels, lifted, shifted
from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, fit

ONE = torch.tensor(1.0)


def location(y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("d", 5):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.parametrize(
    "fn", [dist.VonMises(0.0, 1.0), dist.SineSkewed(dist.VonMises(0.0, 1.0).expand((1,)).to_event(1), torch.zeros(1))]
)
def test_a_guide_of_a_circle_is_refused_by_itself(fn):
    """Trained by Pyro's own objectives, it drew angles of a standard deviation of 227."""

    def model(rows):
        pyro.sample("phi", fn)

    with pytest.raises(ValueError, match="'phi' is circular"):
        AutoConvFlow(lambda: model(0), num_blocks=1)
    guide = AutoConvFlow(model, num_blocks=1)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    for call in (guide, svi.step, guide.set_up):
        with pytest.raises(ValueError, match="'phi' is circular"):
            call(1)


def bounded_by_a_latent():
    theta = pyro.sample("theta", dist.Gamma(2.0, 0.5))
    with pyro.plate("d", 3):
        pyro.sample("seen", dist.Uniform(torch.zeros(()), theta), obs=torch.tensor([0.5, 2.0, 3.1]))


def at_a_point():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("seen", dist.Delta(2 * a), obs=ONE)


def scaled(s=None):
    s = pyro.sample("s", dist.HalfNormal(1.0), obs=s)
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(m, s), obs=ONE)


def parts_with_bounds():
    bounds = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0])
    parts = dist.Categorical(torch.tensor([0.5, 0.5])), dist.Uniform(*bounds)
    pyro.sample("x", dist.MixtureSameFamily(*parts))


def covariance():
    pyro.sample("S", dist.Wishart(torch.tensor(4.0), torch.eye(2)))


def stretched():
    pyro.sample("x", dist.TransformedDistribution(dist.Beta(2.0, 2.0), AffineTransform(-1.0, 2.0)))


def noisy():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a + torch.randn(()), 1.0), obs=ONE)


def unequal_counts():
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("d", 2):
        n = pyro.sample("n", dist.Binomial(torch.tensor([3.0, 5.0]), p))
        pyro.sample("y", dist.Normal(n, 1.0), obs=torch.tensor([1.0, 2.5]))


def vector_of_rows(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1))
    pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


REFUSED = {
    "an observed Delta": (at_a_point, (), at_a_point, (), "'seen' is a Delta"),
    "a value outside of the support": (
        poutine.condition(scaled, data={"s": -ONE}), (), poutine.condition(scaled, data={"s": -ONE}), (), r"'s'.*-1\.0",
    ),
    "components with supports of their own": (parts_with_bounds, (), parts_with_bounds, (), "'x' .*no map"),
    "a covariance": (covariance, (), covariance, (), "'S' .*no map"),
    "too wide a support": (stretched, (), stretched, (), "'x' declares"),
    "noise that is no site": (noisy, (), noisy, (), "'y' is random"),
    "counts that differ": (unequal_counts, (), unequal_counts, (), "'n'"),
    "values in a column": (location, (Y,), location, (Y[:, None],), r"'y' has values of shape \(5, 1\).*\(5,\)"),
    "fewer values than rows": (location, (Y,), location, (Y[:3],), r"'y' has values of shape \(3,\)"),
    "one value for all rows": (location, (Y,), location, (Y[:1],), r"'y' has values of shape \(1,\)"),
    "observed before and not now": (location, (Y,), poutine.uncondition(location), (Y,), "'y' are not in the guide"),
    "a prior for a parameter": (shifted, (Y,), lifted, (Y,), "'shift' are not in the guide"),
    "another parametrisation": (
        levels, (), poutine.reparam(levels, config={"b": LocScaleReparam(0.0)}), (), "'b_decentered' are not in"),
    "fewer rows of a vector": (vector_of_rows, (Y,), vector_of_rows, (Y[:1],), r"'z' has shape \(1,\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    built, before, model, now, words = REFUSED[name]
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=words):
        fit(model, AutoConvFlow(built, num_blocks=1, prototype_args=before, warm_start=False), *now)


def test_a_density_that_is_nowhere_finite_is_called_by_its_site():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(a > 50, 0.0, -torch.inf))

    with pytest.raises(RuntimeError, match=r"not finite at the sites 'wall' \(32 of 32 draws\)"):
        fit(model, AutoConvFlow(model, num_blocks=1, warm_start=False))


@pytest.mark.parametrize("start", [True, False])
def test_an_observation_that_a_latent_bounds_is_called_by_its_site(start):
    """Before the start if the prior's median, a random one, leaves the observation out; else at the first draws."""
    with pytest.raises(ValueError, match=r"site 'seen' (depends on the latents|has a value outside).*= y.max\(\) \+"):
        fit(
            bounded_by_a_latent,
            AutoConvFlow(bounded_by_a_latent, num_blocks=1, warm_start=start, init_scale=None if start else 1.0),
        )


def test_bounds_of_the_latents_may_keep_to_the_data():
    """A Pareto law of θ below θ's bound, and y ~ U(0, θ): a Pareto law of shape 2 + 3."""
    y = torch.tensor([0.5, 2.0, 3.1])

    def model():
        theta = pyro.sample("theta", dist.Pareto(y.max(), 2.0))
        with pyro.plate("d", 3):
            pyro.sample("seen", dist.Uniform(torch.zeros(()), theta), obs=y)

    guide = AutoConvFlow(model, num_blocks=1)
    fit(model, guide, num_steps=100)
    report = diagnose(model, guide, num_paths=0, num_chains=0)
    assert report.log_evidence == pytest.approx(math.log(2 / 5 / 3.1**3), abs=0.03)


@pytest.mark.parametrize("guide_of", [lambda model: AutoConvFlow(model, num_blocks=1), AutoNormal])
def test_draws_are_not_weighed_by_a_part_of_the_data(guide_of):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y), subsample_size=2) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    with pytest.raises(ValueError, match="'rows', 2 of 5"):
        diagnose(model, guide_of(model), Y)


@pytest.mark.parametrize("fn", [dist.Bernoulli(logits=ONE), dist.Bernoulli(0.3)])
@pytest.mark.parametrize("late", [True, False])
def test_truth_values_are_refused_by_the_name_of_their_site(fn, late):
    flags = torch.tensor([True, False, True])

    def model(data=flags):
        pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 3):
            pyro.sample("x", fn, obs=data)

    arguments = (flags,) if late else ()
    words = r"site 'x' \(Bernoulli\) has no density at its value, torch.bool of shape \(3,\).*\.float\(\)"
    with pytest.raises(ValueError, match=words):
        AutoConvFlow(model, prototype_args=arguments)
    with pytest.raises(ValueError, match=words):
        fit(model, AutoConvFlow(model, warm_start=False, prototype_args=arguments), *arguments, num_steps=5)


def linear_hmm(scale):
    eye = torch.eye(1).expand(4, 1, 1)
    moves, noise = dist.Normal(0.0, scale), dist.StudentT(3.0, 0.0, 0.5)
    start = dist.Normal(0.0, 1.0).expand([1]).to_event(1)
    return dist.LinearHMM(start, eye, moves.expand([4, 1]).to_event(1), eye, noise.expand([4, 1]).to_event(1))


@pytest.mark.parametrize(
    ("fn", "value", "words"),
    [
        (linear_hmm, torch.zeros(4, 1), r"'y' \(LinearHMM\) can be drawn but has no density.*LinearHMMReparam\(…\)"),
        (lambda s: dist.ProjectedNormal(s.expand(5)), torch.eye(5)[0], r"'y' \(ProjectedNormal\) can be drawn but"),
    ],
)
def test_what_can_only_be_drawn_is_not_observed(fn, value, words):
    def model():
        pyro.sample("y", fn(pyro.sample("s", dist.HalfNormal(1.0))), obs=value)

    with pytest.raises(ValueError, match=words):
        fit(model, AutoConvFlow(model), num_steps=5)


def test_the_way_out_of_a_linear_model_without_a_density():
    def model():
        pyro.sample("y", linear_hmm(pyro.sample("s", dist.HalfNormal(1.0))), obs=torch.zeros(4, 1))

    written = poutine.reparam(model, {"y": LinearHMMReparam(obs=StudentTReparam())})
    assert fit(written, AutoConvFlow(written), num_steps=3).num_steps == 3


def test_parameters_from_a_file_need_parameters_to_go_to():
    guide = AutoConvFlow(location, num_blocks=1, prototype_args=(Y,))
    fresh = AutoConvFlow(location, num_blocks=1)
    outer = torch.nn.ModuleDict({"guide": fresh})
    with pytest.raises(RuntimeError, match=r"no parameters yet.*prototype_args"):
        fresh.load_state_dict(guide.state_dict())
    with pytest.raises(RuntimeError, match=r"no parameters yet.*prototype_args"):
        outer.load_state_dict({f"guide.{key}": value for key, value in guide.state_dict().items()})
    fresh.load_state_dict({})
    fresh.set_up(Y).load_state_dict(guide.state_dict())
    torch.testing.assert_close(fresh.quantiles([0.5]), guide.quantiles([0.5]))
