"""The guides inside Pyro's machinery, and their own methods."""

import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, JitTrace_ELBO, Predictive, RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from pyro.infer.reparam import NeuTraReparam
from pyro.optim import Adam

from tests.guides.models import correlated, flat, gaussian, hierarchical, supports
from vi_flows.flows import FLOWS, IAF
from vi_flows.guides import AutoConvFlow, AutoFlow, LogJoint, fit, init_to_median_or_origin
from vi_flows.guides.auto_conv_flow import mixed_conv_flow
from vi_flows.guides.prototype import NoLatentError


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def randomise(guide, scale=0.1):
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(scale * torch.randn_like(p))
    return guide


def test_every_support_is_kept_and_scored():
    guide = randomise(AutoConvFlow(supports), 0.03)
    draws = guide.sample_posterior(50)
    for name, site in guide.prototype_trace.iter_stochastic_nodes():
        assert draws[name].shape == (50, *site["value"].shape)
        assert site["fn"].support.check(draws[name]).all(), name
    latent, ladj = guide.unconstrain(draws)
    values, back = guide.constrain(latent)
    for name, value in draws.items():
        torch.testing.assert_close(values[name], value, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(back, -ladj, atol=1e-3, rtol=1e-3)
    # The density agrees with the one that Pyro's trace of the guide adds up.
    guide_trace = poutine.trace(guide).get_trace()
    values = {name: guide_trace.nodes[name]["value"] for name in draws}
    torch.testing.assert_close(guide.log_prob(values), guide_trace.log_prob_sum(), atol=1e-3, rtol=1e-4)


def test_log_prob_integrates_to_one_over_a_constrained_site():
    def model():
        pyro.sample("u", dist.Gamma(3.0, 2.0))

    guide = randomise(AutoConvFlow(model), 0.3).double()
    u = torch.linspace(1e-6, 60, 600_001, dtype=torch.float64)
    assert abs(torch.trapezoid(guide.log_prob({"u": u}).exp(), u) - 1) < 1e-3


def test_named_values_are_checked():
    guide = AutoConvFlow(supports)
    draws = guide.sample_posterior(2)
    with pytest.raises(ValueError, match="'positive'"):
        guide.log_prob({k: v for k, v in draws.items() if k != "positive"})
    with pytest.raises(ValueError, match=r"'simplex' has shape \(3,\)"):
        guide.log_prob({**draws, "simplex": torch.ones(2, 4) / 4})


@pytest.mark.parametrize("elbo", [Trace_ELBO, RenyiELBO])
@pytest.mark.parametrize("vectorize", [False, True])
def test_pyros_objectives(elbo, vectorize):
    y = torch.arange(4.0)
    guide = AutoConvFlow(hierarchical, prototype_args=(y,))
    svi = SVI(hierarchical, guide, Adam({"lr": 0.01}), elbo(num_particles=3, vectorize_particles=vectorize))
    assert all(svi.step(y) < 1e4 for _ in range(3))


def test_each_step_changes_every_parameter():
    guide = randomise(AutoConvFlow(correlated), 0.05)
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    SVI(correlated, guide, Adam({"lr": 0.01}), Trace_ELBO(4)).step()
    for name, p in guide.named_parameters():
        assert not torch.equal(p, before[name]), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
def test_jit():
    guide = AutoConvFlow(correlated)
    svi = SVI(correlated, guide, Adam({"lr": 0.01}), JitTrace_ELBO(ignore_jit_warnings=True))
    assert all(abs(svi.step()) < 100 for _ in range(3))


def test_module_local_params():
    with pyro.settings.context(module_local_params=True):
        guide = AutoConvFlow(correlated)
        module = Trace_ELBO()(correlated, guide)
        assert {id(p) for p in guide.parameters()} <= {id(p) for p in module.parameters()}
        module().backward()
    assert not pyro.get_param_store().keys()


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(parallel):
    y = torch.arange(4.0)
    guide = AutoConvFlow(hierarchical, prototype_args=(y,))
    draws = Predictive(hierarchical, guide=guide, num_samples=6, parallel=parallel)(y)
    assert draws["z"].shape == (6, 4)
    assert draws["mu"].numel() == 6


def test_guide_list_with_a_subsampled_plate():
    y = torch.arange(20.0)
    guide = AutoGuideList(hierarchical, create_plates=lambda y, size: pyro.plate("rows", len(y), subsample_size=size))
    guide.append(AutoConvFlow(poutine.block(hierarchical, hide=["z"])))
    guide.append(AutoNormal(poutine.block(hierarchical, hide=["mu"])))
    svi = SVI(hierarchical, guide, Adam({"lr": 0.01}), Trace_ELBO())
    for size in (5, 7, 5):
        svi.step(y, size)
    assert set(guide(y, 6)) == {"mu", "z"}


def test_guide_list_with_a_discrete_or_point_part():
    guide = AutoGuideList(supports)
    guide.append(AutoConvFlow(poutine.block(supports, hide=["real", "simplex"])))
    guide.append(AutoDelta(poutine.block(supports, expose=["real", "simplex"])))
    assert set(guide()) == {"positive", "interval", "simplex", "ordered", "correlation", "real"}
    assert set(guide.median()) == set(guide())


def test_neutra():
    guide = AutoConvFlow(correlated)
    neutra = NeuTraReparam(guide)
    model = poutine.reparam(correlated, config=lambda _: neutra)
    mcmc = MCMC(NUTS(model, max_tree_depth=3), num_samples=60, warmup_steps=20, disable_progbar=True)
    mcmc.run()
    (latent,) = mcmc.get_samples().values()
    draws = neutra.transform_sample(latent)["x"]
    assert abs(draws[:, 0].mean() - 3) < 1.5


def test_nested_vectorised_particles_match_single_ones():
    y = torch.arange(4.0)
    guide = randomise(AutoConvFlow(hierarchical, prototype_args=(y,)))
    values = guide.sample_posterior(5)
    joint = LogJoint(hierarchical, (y,))
    together = joint(values)
    assert joint.vectorized
    alone = LogJoint(hierarchical, (y,), vectorize=False)(values)
    torch.testing.assert_close(together, alone)


def test_models_that_vmap_cannot_follow_run_in_a_loop():
    def branching():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(1.0 if x.item() > 0 else 0.0, 1.0), obs=torch.tensor(0.3))

    joint = LogJoint(branching)
    x = torch.tensor([-1.0, 0.5])
    expected = dist.Normal(0.0, 1.0).log_prob(x) + dist.Normal((x > 0).float(), 1.0).log_prob(torch.tensor(0.3))
    torch.testing.assert_close(joint({"x": x}), expected)
    assert not joint.vectorized

    def broken():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        LogJoint(broken)({"x": x})


def test_flat_priors_start_at_the_data():
    guide = AutoConvFlow(flat)
    assert abs(guide.median()["x"] - 3) < 0.01
    site = {"fn": dist.ImproperUniform(dist.constraints.simplex, (2,), (3,)).to_event(1)}
    torch.testing.assert_close(init_to_median_or_origin(site), torch.full((2, 3), 1 / 3))


def test_quantiles_before_the_first_call_and_out_of_range():
    guide = AutoConvFlow(hierarchical)
    assert guide.quantiles([0.1, 0.9], torch.arange(3.0))["z"].shape == (2, 3)
    with pytest.raises(ValueError, match="0…1"):
        guide.quantiles([1.5])


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_every_flow_is_a_guide(name):
    guide = AutoFlow(correlated, FLOWS[name]().build)
    assert torch.isfinite(Trace_ELBO().differentiable_loss(correlated, guide))


@pytest.mark.parametrize("affine", ["full", "low_rank", "diagonal"])
def test_affine_kinds_start_near_the_posterior(affine):
    guide = AutoConvFlow(correlated, affine=affine)
    draws = guide.sample_posterior(5000)["x"]
    torch.testing.assert_close(draws.mean(0), torch.tensor([3.0, -2.0, 0.5]), atol=0.15, rtol=0)


def test_many_dimensions_use_a_low_rank_part():
    def model():
        pyro.sample("x", dist.Normal(torch.arange(300.0), 1.0).to_event(1))

    guide = AutoConvFlow(model, num_blocks=1)
    assert guide.transform[-1].kind == "low_rank"
    torch.testing.assert_close(guide.median()["x"], torch.arange(300.0), atol=0.5, rtol=0)


def test_flow_starts_at_the_identity_and_paper_flow_on_request():
    x = torch.randn(3, 6)
    flow = mixed_conv_flow(6, 2)
    y, ladj = flow.forward_and_ladj(x)
    torch.testing.assert_close(y, x, atol=0.1, rtol=0)
    assert ladj.abs().max() < 0.3
    paper = AutoConvFlow(correlated, num_blocks=3, mixing=False, activation="leaky_relu")
    assert type(paper.transform[0]).__name__ == "ConvFlowStack"
    assert sum(paper.transform[0].spec.reverts) == 3


def test_options_are_checked():
    with pytest.raises(TypeError, match="flow_factory"):
        AutoFlow(correlated, "conv_flow")
    with pytest.raises(ValueError, match="affine"):
        AutoConvFlow(correlated, affine="banded")
    with pytest.raises(ValueError, match="init_scale"):
        AutoConvFlow(correlated, init_scale=-1.0)
    with pytest.raises(ValueError, match="num_blocks"):
        AutoConvFlow(correlated, num_blocks=0)
    with pytest.raises(NoLatentError, match="no latent"):
        AutoConvFlow(lambda: None)


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_of_the_registry_is_a_factory(name):
    pyro.set_rng_seed(0)
    by_call = AutoFlow(correlated, FLOWS[name](), warm_start=False)
    pyro.set_rng_seed(0)
    by_build = AutoFlow(correlated, FLOWS[name]().build, warm_start=False)
    assert {k: v.tolist() for k, v in by_call.state_dict().items()} == {
        k: v.tolist() for k, v in by_build.state_dict().items()
    }


@pytest.mark.parametrize(
    ("factory", "found"),
    [(IAF, "IAF"), (lambda dim: torch.nn.Linear(dim, dim), "Linear"), (lambda dim: None, "NoneType"),
     (lambda dim: IAF().build(dim, 3), "ConditionalChain")],
)  # fmt: skip
def test_what_makes_no_transform_is_refused_at_every_call(factory, found):
    def shifted(loc):
        pyro.sample("x", dist.Normal(torch.zeros(3) + loc, 1.0).to_event(1))

    guide = AutoFlow(shifted, factory)
    for _ in range(2):
        with pytest.raises(TypeError, match=f"transform of vectors of length 3, not an object of type {found}; give a"):
            guide(1.0)


def test_no_finite_density_warns():
    def impossible():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.validation_enabled(False):
            pyro.factor("f", x * float("nan"))

    with pytest.warns(UserWarning, match="no start with a finite log density"):
        AutoConvFlow(impossible)


def test_gaussian_start_ignores_the_callers_handlers():
    with poutine.trace() as tape:
        AutoConvFlow(gaussian)
    assert not [n for n, s in tape.trace.nodes.items() if s["type"] == "sample"]


def _discrete():
    z = pyro.sample("z", dist.Categorical(torch.ones(3)))
    pyro.sample("x", dist.Normal(z.float(), 1.0), obs=torch.tensor(1.0))


def _count():
    pyro.sample("x", dist.Normal(pyro.sample("z", dist.Poisson(3.0)), 1.0), obs=torch.tensor(1.0))


def _point():
    pyro.sample("x", dist.Normal(pyro.sample("z", dist.Delta(torch.tensor(2.0))), 1.0), obs=torch.tensor(1.0))


def _empty():
    z = pyro.sample("z", dist.Normal(torch.zeros(0), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=torch.tensor(1.0))


def _nothing():
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (_discrete, "'z' are discrete and would be summed out: nothing is left for AutoConvFlow; pyro.infer.infer_d"),
        (_count, "'z' are discrete and would be summed out"),
        (_point, "no latent sites, all that it doesn't observe .'z'. is given by a Delta: nothing is left"),
        (_empty, "continuous latent sites 'z' have no entries"),
        (_nothing, "the model has no latent sites, it observes all its sites"),
    ],
)
def test_a_model_that_leaves_nothing_to_a_guide_is_told_why(program, words):
    with pytest.raises(NoLatentError, match=words):
        AutoConvFlow(program)
    guide = AutoConvFlow(lambda _: program())
    for _ in range(2):  # a second call is refused as the first
        with pytest.raises(NoLatentError, match=words):
            fit(lambda _: program(), guide, 0.0, num_steps=1)


def test_an_error_of_the_model_stays_what_it_is():
    def broken():
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        AutoConvFlow(broken)()


def test_quantiles_rise_where_the_map_to_the_support_falls():
    flat = dist.ImproperUniform(dist.constraints.less_than(torch.tensor([2.0, 5.0])), (), (2,))
    shape = dist.Gamma(4.0, 2.0)

    def model():
        x = pyro.sample("x", flat)
        pyro.factor("density", shape.log_prob(torch.tensor([2.0, 5.0]) - x).sum(-1))
        pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = AutoConvFlow(model)
    fit(model, guide, num_steps=300)
    levels = guide.quantiles([0.05, 0.5, 0.95])
    below = torch.as_tensor(scipy.stats.gamma(4.0, scale=0.5).ppf([0.95, 0.5, 0.05]), dtype=torch.float32)
    torch.testing.assert_close(levels["x"], torch.tensor([2.0, 5.0]) - below[:, None], atol=0.08, rtol=0)
    torch.testing.assert_close(levels["z"], torch.tensor([-1.645, 0.0, 1.645]), atol=0.03, rtol=0)


def test_a_bound_with_draws_without_density_is_no_number():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(z < 2.0, 0.0, -math.inf))

    result = fit(model, AutoConvFlow(model, warm_start=False, init_scale=1.0), num_steps=1)
    assert result.elbo == -math.inf  # log Φ(2) = −0.0230 bounds it, and the average of the other draws is 0
    assert math.isnan(result.elbo_se)
