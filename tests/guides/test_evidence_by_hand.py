"""Programs that look as if they could not be fitted, and can: their evidence in closed form."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from tests.guides.models import FIVE_VALUES as Y
from tests.guides.models import TABLE, levels, lifted
from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, fit

ONE = torch.tensor(1.0)
SEEN = torch.tensor([True, True, False, False, True])


def normal(x, variance):
    return -0.5 * x**2 / variance - 0.5 * math.log(2 * math.pi * variance)


def joint_normal(y, covariance):
    y = torch.as_tensor(y, dtype=torch.float64)
    covariance = torch.as_tensor(covariance, dtype=torch.float64)
    return float(torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y))


def log_sum(terms):
    return float(torch.logsumexp(torch.tensor(list(terms), dtype=torch.float64), 0))


def components(y, known, seen):
    """Two components with means m; which one a row is of is known for some rows."""
    m = pyro.sample("m", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    with pyro.plate("d", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.3), obs=known, obs_mask=seen)
        pyro.sample("y", dist.Normal(m[k.long()], 1.0), obs=y)


def ragged(y, kept):
    m = pyro.sample("m", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    with pyro.plate("d", len(y)), poutine.mask(mask=kept):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(m[k.long()], 1.0), obs=y)


def of_components(y, choices):
    def term(path):
        prior = sum(math.log(0.3 if k else 0.7) for k in path)
        same = torch.tensor([[float(a == b) for b in path] for a in path])
        return prior + joint_normal(y - torch.tensor([2.0 * k - 1 for k in path]), same + torch.eye(len(path)))

    return log_sum(term(path) for path in itertools.product(*choices))


def crossed_choices():
    """A choice for each group and one for each of its rows."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 2, dim=-2):
        k = pyro.sample("k", dist.Bernoulli(0.4))
        with pyro.plate("rows", 3, dim=-1):
            j = pyro.sample("j", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("y", dist.Normal(a + 2 * k - j, 1.0), obs=TABLE)


def of_crossed_choices():
    a = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    total = dist.Normal(0.0, 1.0).log_prob(a)
    for row in TABLE.double():
        groups = []
        for k, p in ((0, 0.6), (1, 0.4)):
            terms = [dist.Normal(a[:, None] + 2 * k - j, 1.0).log_prob(row) for j in range(3)]
            weighted = torch.stack([t + math.log(q) for t, q in zip(terms, (0.2, 0.3, 0.5), strict=True)])
            groups.append(math.log(p) + torch.logsumexp(weighted, 0).sum(-1))
        total = total + torch.logsumexp(torch.stack(groups), 0)
    return float(torch.logsumexp(total, 0)) + math.log(18 / 4000)


STEPS = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
SERIES, LENGTHS = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]), torch.tensor([3, 2])


def chains_of_several_lengths():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("series", 2):
        x = 0
        for t in pyro.markov(range(3)):
            with poutine.mask(mask=t < LENGTHS):
                x = pyro.sample(f"x{t}", dist.Categorical(STEPS[x]))
                pyro.sample(f"y{t}", dist.Normal(a + 2.0 * x, 1.0), obs=SERIES[:, t])


def of_chains():
    a = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    total = dist.Normal(0.0, 1.0).log_prob(a)
    for row, length in zip(SERIES.double(), LENGTHS.tolist(), strict=True):
        terms = []
        for path in itertools.product((0, 1), repeat=length):
            prior = sum(math.log(STEPS[i, j]) for i, j in itertools.pairwise((0, *path)))
            means = a[:, None] + 2 * torch.tensor(path)
            terms.append(prior + dist.Normal(means, 1.0).log_prob(row[:length]).sum(-1))
        total = total + torch.logsumexp(torch.stack(terms), 0)
    return float(torch.logsumexp(total, 0)) + math.log(18 / 4000)


def vectors(y, seen):
    a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("d", len(y)):
        noise = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        pyro.sample("y", dist.MultivariateNormal(a, noise), obs=y, obs_mask=seen)


VECTORS = torch.tensor([[0.5, 1.0], [math.nan, 3.0], [-1.0, 0.2]])


def of_vectors():
    one, noise = torch.eye(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    covariance = torch.cat([torch.cat([one + noise, one], 1), torch.cat([one, one + noise], 1)])
    return joint_normal(VECTORS[[0, 2]].flatten(), covariance)


def half_counted():
    """√N(a; 0, 1) is a normal density of variance 2 times (8π)^¼."""
    with poutine.scale(scale=0.5):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a, 1.0), obs=ONE)


def chosen():
    with pyro.plate("d", 3):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        b = pyro.sample("b", dist.Normal(0.0, torch.where(z > 0, 1.5, 0.6)))
        pyro.sample("y", dist.Normal(b, 1.0), obs=torch.tensor([0.2, 3.0, -1.0]))


def delta_with_density():
    """e^(−a²/2) N(a; 0, 1) is a normal density of variance 1/2 over √2."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Delta(a.exp(), log_density=-0.5 * a.square()))
    pyro.sample("y", dist.Normal(b.log(), 1.0), obs=ONE)


def of_a_mixture():
    parts = dist.Categorical(torch.tensor([0.5, 0.5])), dist.Normal(torch.tensor([-1.0, 1.0]), 1.0)
    x = pyro.sample("x", dist.MixtureSameFamily(*parts))
    pyro.sample("y", dist.Normal(x, 1.0), obs=ONE)


def of_positive_parts():
    parts = dist.Categorical(torch.tensor([0.5, 0.5])), dist.Gamma(torch.tensor([2.0, 5.0]), torch.ones(2))
    pyro.sample("x", dist.MixtureSameFamily(*parts))


def chain_of_bounds():
    x = torch.zeros(())
    for i in range(3):
        x = pyro.sample(f"x{i}", dist.Uniform(x, 1.0))


def half_counted_rows_with_a_choice(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("d", len(y)), poutine.scale(scale=0.5):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(m + k, 1.0), obs=y)


def of_half_counted_rows(y):
    """The scale stands outside of each row's sum."""
    m = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    parts = torch.stack([dist.Normal(m[:, None] + k, 1.0).log_prob(y.double()) - math.log(2) for k in (0, 1)])
    total = dist.Normal(0.0, 1.0).log_prob(m) + 0.5 * torch.logsumexp(parts, 0).sum(-1)
    return float(torch.logsumexp(total, 0)) + math.log(18 / 4000)


def missing_behind_a_mask():
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("d", 2):
        k = pyro.sample("k", dist.Categorical(p))
        with poutine.mask(mask=torch.tensor([True, False])):
            pyro.sample("y", dist.Normal(k.float(), 1.0), obs=torch.tensor([1.0, math.nan]))


FIVE = torch.eye(5) + 2
RIGHT = {
    "a parameter with a prior": (lifted, (Y,), joint_normal(Y, FIVE)),
    "kinds known for some": (components, (Y, torch.tensor([0.0, 1, 0, 0, 1]), SEEN), of_components(
        Y, [(0,), (1,), (0, 1), (0, 1), (1,)])),
    "masked rows with a choice": (ragged, (Y, SEEN), of_components(Y[SEEN], [(0, 1)] * 3)),
    "choices in nested plates": (crossed_choices, (), of_crossed_choices()),
    "masked hidden Markov chains": (chains_of_several_lengths, (), of_chains()),
    "vectors by obs_mask": (vectors, (VECTORS, torch.tensor([True, False, True])), of_vectors()),
    "a scaled latent": (half_counted, (), 0.25 * math.log(8 * math.pi) + normal(1.0, 3.0)),
    "a choice of scales": (chosen, (), sum(
        log_sum([math.log(0.4) + normal(y, 3.25), math.log(0.6) + normal(y, 1.36)]) for y in (0.2, 3.0, -1.0))),
    "a scaled plate with a choice": (half_counted_rows_with_a_choice, (Y,), of_half_counted_rows(Y)),
    "a missing row with a choice": (
        missing_behind_a_mask, (), log_sum(normal(1.0 - k, 1.0) for k in range(3)) - math.log(3)),
    "a Delta with a density": (delta_with_density, (), -0.5 * math.log(2) + normal(1.0, 1.5)),
    "a latent mixture": (of_a_mixture, (), log_sum([normal(2.0, 2.0), normal(0.0, 2.0)]) + math.log(0.5)),
    "a latent mixture of positive parts": (of_positive_parts, (), 0.0),
    "a chain of bounds": (chain_of_bounds, (), 0.0),
    "three levels": (levels, (), joint_normal(
        TABLE.flatten(), 1 + torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)) + 2 * torch.eye(6))),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_the_evidence_is_that_by_hand(name):
    model, args, evidence = RIGHT[name]
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoConvFlow(model, num_blocks=1, prototype_args=args)
    report = diagnose(model, guide, *args, num_paths=0, num_chains=0)
    assert report.elbo < evidence + 0.05
    assert report.log_evidence == pytest.approx(evidence, abs=0.08)


def test_keywords_that_the_guides_methods_have_too():
    def named(model, guide, quantiles):
        m = pyro.sample("m", dist.Normal(guide, 1.0))
        pyro.sample("y", dist.Normal(m, quantiles), obs=model)

    keywords = {"model": ONE, "guide": 0.5, "quantiles": 2.0}
    guide = AutoConvFlow(named, num_blocks=1)
    fit(named, guide, num_steps=20, model_kwargs=keywords)
    report = diagnose(named, guide, num_paths=0, num_chains=0, model_kwargs=keywords)
    assert report.log_evidence == pytest.approx(normal(0.5, 5.0), abs=0.02)


def test_the_way_out_of_a_circle():
    def circular():
        pyro.sample("phi", dist.VonMises(1.0, 4.0))

    def on_the_plane():
        v = pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        phi = torch.atan2(v[..., 1], v[..., 0])
        pyro.factor("phi_prior", dist.VonMises(1.0, 4.0).log_prob(phi) + math.log(2 * math.pi))

    with pytest.raises(ValueError, match=r"'phi' is circular.*torch\.atan2.*pyro\.factor\('phi_prior'"):
        fit(circular, AutoConvFlow(circular, num_blocks=1))
    guide = AutoConvFlow(on_the_plane, num_blocks=1)
    report = diagnose(on_the_plane, guide, num_paths=0, num_chains=0)
    assert report.log_evidence == pytest.approx(0.0, abs=0.08)  # the prior alone
    v = report.draws["v"]
    cosine = report.weighted_mean(lambda draws: torch.cos(torch.atan2(draws["v"][:, 1], draws["v"][:, 0]) - 1.0))
    assert v.shape == (4000, 2)
    assert float(cosine) == pytest.approx(0.863523, abs=0.03)  # I₁(4) / I₀(4)


def test_other_rows_of_data_for_the_same_latents():
    def regression(x, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ b, 1.0).to_event(1), obs=y)

    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(1))
    y = x.sum(-1) + 0.5
    guide = AutoConvFlow(regression, num_blocks=1, prototype_args=(x[:4], y[:4]))
    fit(regression, guide, x, y, num_steps=300)
    report = diagnose(regression, guide, x, y, num_paths=0, num_chains=0)
    assert report.log_evidence == pytest.approx(joint_normal(y, x @ x.T + torch.eye(9)), abs=0.03)
