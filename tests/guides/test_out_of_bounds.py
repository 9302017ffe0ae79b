"""Densities that are none at draws of the guide: refused by the name of the site that they come from."""

import math
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.infer.reparam import ConjugateReparam
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform, ExpTransform, SigmoidTransform, StackTransform

from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, LogJoint, fit
from vi_flows.guides.faults import check_distribution_parameters, check_observed_supports

ONE = torch.tensor(1.0)
FLAGS = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])


def fitted(model, num_steps=50):
    guide = AutoConvFlow(model, num_blocks=1)
    fit(model, guide, num_steps=num_steps)
    return guide


def probability():
    p = pyro.sample("p", dist.Normal(0.5, 0.3))
    with pyro.plate("d", 5):
        pyro.sample("x", dist.Bernoulli(p), obs=FLAGS)


def probability_of_counts():
    p = pyro.sample("p", dist.Normal(0.2, 0.2))
    pyro.sample("x", dist.Binomial(10, p), obs=ONE)


def spread_of_a_prior():
    s = pyro.sample("s", dist.Normal(0.3, 0.3))
    pyro.sample("z", dist.Laplace(0.0, s))


def spread_in_a_mixture():
    s = pyro.sample("s", dist.Normal(1.0, 1.0))
    parts = dist.Normal(torch.tensor([-1.0, 1.0]), torch.stack([s, s + 5]))
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts), obs=ONE)


def inflation():
    g = pyro.sample("g", dist.Normal(0.1, 0.3))
    with pyro.plate("d", 2):
        pyro.sample("x", dist.ZeroInflatedPoisson(torch.tensor(1.0), gate=g), obs=torch.zeros(2))


@pytest.mark.parametrize(("model", "words"), [
    (probability, r"site 'x' has a parameter probs outside of .*upper_bound=1"),
    (probability_of_counts, r"site 'x' has a parameter probs outside of .*\(-0\.\d+\)"),
    (spread_of_a_prior, r"site 'z' has a parameter scale outside"),
    (spread_in_a_mixture, r"site 'x' has a parameter scale outside"),
    (inflation, r"site 'x' has a parameter gate outside")])  # fmt: skip
@pytest.mark.parametrize("validation", [True, False])
def test_parameters_that_leave_their_bounds_are_called_by_their_site(model, words, validation):
    pyro.set_rng_seed(1)
    guide = AutoConvFlow(model, num_blocks=1, warm_start=False, init_scale=0.5)
    with pyro.validation_enabled(validation), pytest.raises(ValueError, match=words):
        fit(model, guide, num_steps=50)
    with pyro.validation_enabled(validation), pytest.raises(ValueError, match=words):
        diagnose(model, guide, num_samples=100)


@pytest.mark.parametrize(("values", "refused"), [
    ([0.0] * 5, False), ([0.0] * 6, True), ([-1e-9], False), ([-1e-3], True), ([math.nan] * 5, False),
    ([math.nan] * 6, True)])  # fmt: skip
def test_rounding_to_a_bound_at_a_few_draws_is_no_fault(values, refused):
    def model():
        s = pyro.sample("s", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, s), obs=ONE)

    draws = {"s": torch.ones(500)}
    draws["s"][7 : 7 + len(values)] = torch.tensor(values)
    with pytest.raises(ValueError, match="'x' has a parameter scale") if refused else nullcontext():
        check_distribution_parameters(model, draws, (), {})


WAITING = torch.tensor([1.2, 1.5, 2.0, 2.7])


def sooner(law):
    def model():
        t = pyro.sample("t", dist.Normal(0.8, 0.5))
        with pyro.plate("n", 4):
            law(t)

    return model


def by_its_value(fn):
    return sooner(lambda t: pyro.sample("y", fn, obs=WAITING - t))


def by_transforms(base, *before):
    return sooner(
        lambda t: pyro.sample("y", dist.TransformedDistribution(base, [*before, AffineTransform(t, 1.0)]), obs=WAITING)
    )


def by_a_scale():
    t = pyro.sample("t", dist.LogNormal(-0.5, 0.5))
    with pyro.plate("n", 4):
        pyro.sample("y", dist.Pareto(t, 0.5), obs=WAITING)


def beyond_a_threshold():
    t = pyro.sample("t", dist.Normal(0.8, 0.5))
    pyro.sample("y", dist.Uniform(0.0, torch.where(t > 1.0, 2.5, 3.0)), obs=torch.tensor(2.7))


def by_a_vector():
    t = pyro.sample("t", dist.Normal(0.8, 0.5))
    pyro.sample("y", dist.Exponential(torch.ones(4)).to_event(1), obs=WAITING - t)


LEAVING = {
    "Exponential of a difference": by_its_value(dist.Exponential(1.0)),
    "Gamma of a difference": by_its_value(dist.Gamma(2.0, 1.0)),
    "Weibull of a difference": by_its_value(dist.Weibull(2.0, 1.0)),
    "shifted Exponential": by_transforms(dist.Exponential(1.0)),
    "shifted LogNormal": by_transforms(dist.Normal(0.0, 1.0), ExpTransform()),
    "shifted logistic": by_transforms(dist.Normal(0.0, 1.0), SigmoidTransform(), AffineTransform(0.0, 2.0)),
    "Pareto": by_a_scale,
    "threshold": beyond_a_threshold,
    "vector": by_a_vector,
}


@pytest.mark.parametrize("name", LEAVING)
def test_observations_that_leave_their_support_at_some_latents_are_refused(name):
    """Exponential and Pareto have a formula beyond their bounds, too, where PyTorch takes it for a density."""
    pyro.set_rng_seed(0)
    guide = AutoConvFlow(LEAVING[name], num_blocks=1, warm_start=False, init_scale=0.5)
    for call in (fit, diagnose):
        with pytest.raises(ValueError, match=r"observed site 'y' (depends|has a value).*y.max\(\) \+"):
            call(LEAVING[name], guide)


def kept_by_the_latent():
    gap = pyro.sample("gap", dist.LogNormal(0.0, 1.0))
    with pyro.plate("n", 4):
        pyro.sample("y", dist.Exponential(1.0), obs=WAITING - (WAITING.min() - gap))


def kept_by_a_map():
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    pyro.sample("y", dist.Beta(2.0, 2.0), obs=torch.sigmoid(a))


def masked_where_it_leaves():
    t = pyro.sample("t", dist.Normal(0.8, 0.5))
    with pyro.plate("n", 4), pyro.poutine.mask(mask=t < WAITING):
        pyro.sample("y", dist.Exponential(1.0), obs=WAITING - t)


def what_a_count_leaves():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Categorical(torch.ones(4)))
    pyro.sample("y", dist.Poisson(a.exp()), obs=2.0 - k)


@pytest.mark.parametrize("model", [kept_by_the_latent, kept_by_a_map, masked_where_it_leaves, what_a_count_leaves])
def test_observations_that_keep_to_their_support_are_not_refused(model):
    pyro.set_rng_seed(0)
    check_observed_supports(model, lambda: {k: v[0] for k, v in PRIORS[model](1).items()}, (), {})


PRIORS = {
    kept_by_the_latent: lambda n: {"gap": dist.LogNormal(0.0, 1.0).sample((n,))},
    kept_by_a_map: lambda n: {"a": dist.Normal(0.0, 10.0).sample((n,))},
    masked_where_it_leaves: lambda n: {"t": dist.Normal(0.8, 0.5).sample((n,))},
    what_a_count_leaves: lambda n: {"a": torch.randn(n)},
}


def test_values_beyond_the_base_of_a_composed_distribution_are_refused():
    late = dist.TransformedDistribution(dist.Exponential(1.0), [AffineTransform(2.0, 1.0)])

    def model(y):
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", late, obs=torch.tensor(y))

    with pytest.raises(ValueError, match=r"observed site 'y' has a value that the transforms .* nowhere .*: 1\.0"):
        fit(model, AutoConvFlow(model, num_blocks=1), 1.0)
    joint = LogJoint(model, (2.5,))({"a": torch.zeros(1)})
    torch.testing.assert_close(joint, dist.Normal(0.0, 1.0).log_prob(torch.zeros(1)) - 0.5)


class Forgetful(dist.TorchDistribution):
    """Two independent normals as one vector, by someone who forgot to add up their densities."""

    arg_constraints = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, batch=()):
        super().__init__(torch.Size(batch), torch.Size([2]))

    def expand(self, batch_shape, _instance=None):
        return Forgetful(batch_shape)

    def rsample(self, sample_shape=()):
        return torch.randn(*sample_shape, *self.batch_shape, 2)

    def log_prob(self, value):
        return dist.Normal(0.0, 1.0).log_prob(value)


PARTS = [ExpTransform(), AffineTransform(0.0, 2.0)]


def stacked():
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    pyro.sample("t", dist.TransformedDistribution(base, [StackTransform(PARTS, dim=-1)]))


def forgetful():
    pyro.sample("t", Forgetful())


def forgetful_data():
    pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("t", Forgetful(), obs=torch.zeros(2))


@pytest.mark.parametrize("model", [stacked, forgetful, forgetful_data])
def test_densities_that_would_count_twice_are_refused(model):
    with pytest.raises(ValueError, match=r"site 't' \(\w+\) has a log_prob of shape \(2,\) for a batch of shape \(\)"):
        fitted(model)


def flat():
    pyro.sample("s", dist.ImproperUniform(constraints.real, (), ()))


def growing():
    s = pyro.sample("s", dist.HalfCauchy(1.0))
    pyro.factor("f", 3 * s.log())


@pytest.mark.parametrize("model", [flat, growing])
@pytest.mark.filterwarnings("ignore")
def test_a_posterior_without_finite_mass_is_called_by_its_site(model):
    pyro.set_rng_seed(0)
    with pytest.raises(RuntimeError, match=r"Draws of 's' are infinite: .* needs a proper prior"):
        fitted(model, 300)


@pytest.mark.filterwarnings("ignore:a step without")
def test_what_is_nan_at_a_few_draws_is_called_by_its_site():
    def model():
        p = pyro.sample("p", dist.Normal(0.0, 1.0))
        pyro.sample("other", dist.Normal(p, 1.0), obs=ONE)
        pyro.sample("x", dist.Normal((p + 2.5).sqrt(), 3.0), obs=ONE)

    pyro.set_rng_seed(0)
    guide = AutoConvFlow(model, num_blocks=1, init_loc_fn=None, warm_start=True)
    guide.set_up()
    with torch.no_grad():
        guide.location_scale.log_scale.add_(0.5)
    with pytest.raises(
        ValueError, match=r"NaN or infinite at \d+ of 1000 draws of the guide, at the sites 'x'|'x' has a"
    ):
        diagnose(model, guide, num_samples=4000)


def test_supports_whose_map_is_of_single_values_are_refused():
    """StackTransform stacks along the first dimension by default, which is that of the draws."""

    def model():
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        pyro.sample("t", dist.TransformedDistribution(base, [StackTransform(PARTS)]))

    with pytest.raises(ValueError, match=r"the map to the support of latent site 't'"):
        AutoConvFlow(model)


@pytest.mark.parametrize("make", [transforms.planar, transforms.radial, transforms.polynomial])
def test_densities_of_transforms_without_an_inverse_are_refused(make):
    transform = make(2)

    def model():
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [transform]))
        pyro.sample("y", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=torch.zeros(2))

    with pytest.raises(ValueError, match=r"latent site 'z' can't be evaluated at a value that was not drawn from it"):
        AutoConvFlow(model)

    def computed():
        z = pyro.deterministic("z", transform(pyro.sample("e", dist.Normal(torch.zeros(2), 1.0).to_event(1))))
        pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=torch.zeros(2))

    assert fitted(computed).latent_dim == 2  # the way out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_latents_of_half_precision_are_refused(dtype):
    def model():
        a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)))
        pyro.sample("y", dist.Normal(a.float(), 1.0), obs=ONE)

    with pytest.raises(ValueError, match=r"latent site 'a' is of type torch\.b?float16"):
        fitted(model)


@pytest.mark.parametrize(("guess", "exact"), [((4.0, 1.0), True), ((3.0, 1.0), False)])
def test_terms_that_make_up_for_each_other_are_no_random_density(guess, exact):
    """Pyro's ConjugateReparam draws a site at every run; only with the right guess is the joint density a number."""

    def model():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("count", dist.Poisson(rate), obs=torch.tensor(3.0))
        pyro.sample("y", dist.Normal(a, 1.0), obs=ONE)

    program = pyro.poutine.reparam(model, config={"rate": ConjugateReparam(dist.Gamma(*guess))})
    guide = AutoConvFlow(program, num_blocks=1)
    if not exact:
        with pytest.raises(ValueError, match=r"'rate'.*is random"):
            fit(program, guide)
        return
    result = fit(program, guide, num_steps=50)
    count = dist.GammaPoisson(2.0, 1.0).log_prob(torch.tensor(3.0))
    assert result.elbo == pytest.approx(float(count + dist.Normal(0.0, 2**0.5).log_prob(ONE)), abs=0.02)
