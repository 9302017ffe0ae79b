"""Discrete latents are summed out exactly, or refused with the name of the site."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, LogJoint, fit, log_einsum
from vi_flows.guides.enumeration import EnumerationError

Y = torch.tensor([0.3, -1.0, 2.0, 1.5, -0.2])
TABLE = torch.tensor([[0.5, -1.0, 2.0, 0.1], [1.5, 0.2, -0.3, 0.4], [-1.0, 0.0, 1.0, 2.5]])


def normal(x, loc, scale=1.0) -> Tensor:
    return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def logs(*terms) -> Tensor:
    return torch.stack([torch.as_tensor(t) for t in terms]).logsumexp(0)


def hmm(y=Y):
    p = pyro.sample("p", dist.Beta(torch.ones(2), 1.0).to_event(1))
    m = pyro.sample("m", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    z = 0
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z{t}", dist.Bernoulli(p[torch.as_tensor(z).long()])).long()
        pyro.sample(f"y{t}", dist.Normal(m[z], 0.5), obs=y[t])


def hmm_by_hand(p, m):
    paths = []
    for path in itertools.product((0, 1), repeat=len(Y)):
        steps = zip((0, *path[:-1]), path, Y, strict=True)
        paths.append(sum((p[a] if b else 1 - p[a]).log() + normal(y, m[b], 0.5) for a, b, y in steps))
    return logs(*paths) + normal(m, 0.0).sum()


def nested():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    g = pyro.sample("g", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
    with pyro.plate("i", 3, dim=-2):
        h = pyro.sample("h", dist.Bernoulli(torch.tensor([0.1, 0.5, 0.8])[g]))
        with pyro.plate("j", 4, dim=-1):
            pyro.sample("y", dist.Normal(a * h + g, 1.0), obs=TABLE)


def nested_by_hand(a):
    groups = []
    for g, (weight, p) in enumerate(((0.2, 0.1), (0.3, 0.5), (0.5, 0.8))):
        rows = (logs(math.log(1 - p) + normal(r, g).sum(), math.log(p) + normal(r, a + g).sum()) for r in TABLE)
        groups.append(math.log(weight) + sum(rows))
    return logs(*groups) + normal(a, 0.0)


def one_hot():
    a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0))  # a vector outside of a plate, without to_event
    with pyro.plate("n", 2):
        z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.3, 0.4, 0.3])))
        pyro.sample("s", dist.Normal((a * z).sum(-1), 1.0), obs=torch.tensor([1.0, -1.0]))


def one_hot_by_hand(a):
    weights = torch.tensor([0.3, 0.4, 0.3]).log()
    return sum(logs(*(weights + normal(y, a))) for y in (1.0, -1.0)) + normal(a, 0.0).sum()


def ragged():
    """Discrete sites under a mask: those masked out count as nothing."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    seen = torch.tensor([True, False, True])
    with pyro.plate("n", 3):
        z = pyro.sample("z", dist.Bernoulli(0.3).mask(seen))
        pyro.sample("s", dist.Normal(a + z, 1.0).mask(seen), obs=torch.tensor([1.0, 9.0, -1.0]))


def ragged_by_hand(a):
    pairs = (logs(math.log(0.7) + normal(y, a), math.log(0.3) + normal(y, a + 1)) for y in (1.0, -1.0))
    return sum(pairs) + normal(a, 0.0)


def far_apart():
    """Two observations that want different values, 100 nats each: factors must not underflow before they meet."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("s", dist.Normal(20 * z, 1.0), obs=torch.tensor(0.0))
    pyro.sample("t", dist.Normal(20 * z + a, 1.0), obs=torch.tensor(20.0))


def far_apart_by_hand(a):
    return logs(normal(0.0, 0.0) + normal(20, a), normal(0, 20.0) + normal(20, 20 + a)) + math.log(0.5) + normal(a, 0)


CASES = [(hmm, hmm_by_hand, {"p": (2,), "m": (2,)}), (nested, nested_by_hand, {"a": ()}),
         (one_hot, one_hot_by_hand, {"a": (3,)}), (ragged, ragged_by_hand, {"a": ()}),
         (far_apart, far_apart_by_hand, {"a": ()})]  # fmt: skip


@pytest.mark.parametrize(("model", "by_hand", "shapes"), CASES)
@pytest.mark.parametrize("wrapped", [lambda model: model, config_enumerate])
def test_log_density_is_that_of_the_sum_by_hand(model, by_hand, shapes, wrapped):
    generator = torch.Generator().manual_seed(1)
    values = {name: torch.rand(3, *shape, generator=generator).requires_grad_() for name, shape in shapes.items()}
    log_joint = LogJoint(wrapped(model))
    got, want = log_joint(values), torch.stack([by_hand(*parts) for parts in zip(*values.values(), strict=True)])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert log_joint.vectorized
    leaves = list(values.values())
    for a, b in zip(torch.autograd.grad(got.sum(), leaves), torch.autograd.grad(want.sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_scale_stands_outside_of_the_sum():
    a = torch.tensor([0.3, -1.2])
    got = LogJoint(poutine.scale(nested, scale=0.3))({"a": a})
    torch.testing.assert_close(got, torch.stack([0.3 * nested_by_hand(x) for x in a]))


def test_einsum_of_logarithms_against_torch():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in ((2, 3, 4), (4, 3, 5)))
    for equation in ("abc,cbd->ad", "abc,cbd->dba", "abc,cbd->", "abc,cbd->abcd"):
        want = torch.einsum(equation, x, y).log()
        torch.testing.assert_close(log_einsum.einsum(equation, x.log(), y.log()), want)
    want = torch.tensordot(x, y, ([2, 1], [0, 1])).log()
    torch.testing.assert_close(log_einsum.tensordot(x.log(), y.log(), ([2, 1], [0, 1])), want)
    zero = torch.full((2,), -torch.inf, requires_grad=True)
    value = log_einsum.einsum("a->", zero)
    assert value == -torch.inf
    assert torch.autograd.grad(value, zero)[0].tolist() == [0.0, 0.0]


def observed(loc):
    pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.tensor(1.0))


def adds_up():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("i", 4):
        z = pyro.sample("z", dist.Bernoulli(0.3))
    observed(z.sum() * a)


def branches():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    observed(a if pyro.sample("z", dist.Bernoulli(0.3)) else -a)


def counts():
    observed(pyro.sample("a", dist.Normal(0.0, 1.0)) + pyro.sample("z", dist.Poisson(3.0)))


def vector():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    observed(a + pyro.sample("z", dist.Bernoulli(torch.tensor([0.3, 0.4]))).sum())


def event():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    observed(a + pyro.sample("z", dist.Bernoulli(torch.tensor([0.3, 0.4])).to_event(1)).sum())


@pytest.mark.parametrize("model", [adds_up, branches, vector, event])
def test_what_cannot_be_summed_out_is_refused(model):
    with pytest.raises(EnumerationError, match=r"'z'.*MixtureSameFamily"):
        AutoConvFlow(model, num_blocks=1)
    guide = AutoConvFlow(poutine.block(model, hide=["z"]), num_blocks=1, warm_start=False)
    for call in (fit, diagnose):
        with pytest.raises(EnumerationError, match=r"'z'.*MixtureSameFamily"):
            call(model, guide)


def test_a_count_without_a_bound_is_refused():
    guide = AutoConvFlow(poutine.block(counts, hide=["z"]), num_blocks=1, warm_start=False)
    for call in (fit, diagnose):
        with pytest.raises(EnumerationError, match=r"'z' .Poisson .*its values are no finite list; sum it out"):
            call(counts, guide)
    with pytest.raises(ValueError, match="'z'"):
        AutoConvFlow(counts, num_blocks=1)


def two_groups(y):
    w = pyro.sample("w", dist.Beta(2.0, 2.0))
    with pyro.plate("d", len(y)):
        z = pyro.sample("z", dist.Bernoulli(w))
        pyro.sample("y", dist.Normal(2 * z - 1, 0.5), obs=y)


@pytest.mark.parametrize("guide", [
    lambda y: AutoConvFlow(two_groups, num_blocks=1),
    lambda y: AutoConvFlow(poutine.block(two_groups, hide=["z"]), num_blocks=1),
    lambda y: AutoConvFlow(poutine.block(two_groups, hide=["z"]), num_blocks=1, prototype_args=(y,)),
])  # fmt: skip
def test_start_fit_and_diagnosis_use_the_sum(guide):
    y = torch.tensor([-1.2, 0.9, 1.1, 0.2, 1.4])
    grid = torch.linspace(0, 1, 20001, dtype=torch.float64)[1:-1]
    log_p = (6 * grid * (1 - grid)).log()
    for value in y.double():
        log_p = log_p + torch.logaddexp((1 - grid).log() + normal(value, -1.0, 0.5), grid.log() + normal(value, 1, 0.5))
    evidence = float(log_p.logsumexp(0) + (grid[1] - grid[0]).log())
    mean = float((log_p.softmax(0) * grid).sum())
    guide = guide(y)
    result = fit(two_groups, guide, y, num_steps=50)
    # The start is near already: fifty steps would not bring it there from a prior median with a spread of 0.1.
    assert result.elbo == pytest.approx(evidence, abs=0.03)
    report = diagnose(two_groups, guide, y)
    assert report.log_evidence == pytest.approx(evidence, abs=0.03)
    assert float(report.weighted_mean(lambda draws: draws["w"])) == pytest.approx(mean, abs=0.01)


@pytest.mark.parametrize("how", ["poutine", "mask of the distribution", "plate"])
def test_latents_masked_by_what_is_summed_out_are_refused(how):
    """Unused where the mask takes them out, they are flat in that term of the sum, which has no integral."""

    def model():
        k = pyro.sample("k", dist.Bernoulli(0.4))
        if how == "poutine":
            with poutine.mask(mask=k.bool()):
                mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        else:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0).mask(k.bool()))
        pyro.sample("y", dist.Normal(mu * k, 1.0), obs=torch.tensor(1.0))

    def in_a_plate():
        with pyro.plate("n", 3):
            model()

    for seed in range(3):  # whatever the discrete site's value in the first run
        pyro.set_rng_seed(seed)
        with pytest.raises(EnumerationError, match=r"'mu' is masked at some values of the discrete.*without the mask"):
            AutoConvFlow(in_a_plate if how == "plate" else model)


@pytest.mark.parametrize("weighs_all", [True, False])
def test_weights_of_rows_that_are_summed_over_are_refused_with_a_way_out(weighs_all):
    weights, y = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 1.0, 2.0])
    scale = poutine.scale(scale=weights)

    def model():
        m = pyro.sample("m", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("d", 3):
            with scale if weighs_all else poutine.scale(scale=1.0):
                k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            with scale:
                pyro.sample("y", dist.Normal(m[k], 1.0), obs=y)

    def summed():
        m = pyro.sample("m", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("d", 3), scale:
            parts = dist.Normal(m.expand(3, 2), 1.0)
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), parts), obs=y)

    with pytest.raises(EnumerationError, match=r"'k'.*weights of their own.*MixtureSameFamily, and weigh that"):
        AutoConvFlow(model)
    m = torch.tensor([0.5, -1.0])
    rows = logs(math.log(0.3) + normal(y, m[0]), math.log(0.7) + normal(y, m[1]))
    by_hand = (weights * rows).sum() + normal(m, 0.0, 3.0).sum()
    torch.testing.assert_close(LogJoint(summed)({"m": m[None]})[0], by_hand)


def rare_and_wide():
    k = pyro.sample("k", dist.Bernoulli(0.002))
    return pyro.sample("b", dist.Uniform(0.0, 1 + k))


def rare_in_a_plate():
    with pyro.plate("n", 3):
        return rare_and_wide()


def rare_vector():
    k = pyro.sample("k", dist.Bernoulli(0.002))
    return pyro.sample("b", dist.Uniform(torch.zeros(2), (1 + k).unsqueeze(-1) * torch.ones(2)).to_event(1))


def rare_and_low():
    k = pyro.sample("k", dist.Bernoulli(0.002))
    return pyro.sample("b", dist.Pareto(2.0 - k, 3.0))


@pytest.mark.parametrize("prior", [rare_and_wide, rare_in_a_plate, rare_vector, rare_and_low])
def test_bounds_of_a_rare_discrete_value_are_refused(prior):
    """No run of the model is likely to meet it; the data do."""

    def model():
        b = prior()
        pyro.sample("y", dist.Normal(b.sum(), 0.1), obs=torch.tensor(1.8))

    for seed in range(3):
        pyro.set_rng_seed(seed)
        with pytest.raises(EnumerationError, match=r"support of latent site 'b' depends on the discrete.*'b_fraction'"):
            AutoConvFlow(model)


def test_bounds_that_no_discrete_value_moves_are_not_refused():
    def model():
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.plate("n", 3):
            b = pyro.sample("b", dist.Uniform(torch.zeros(3), 2.0))
            c = pyro.sample("c", dist.Normal(k, 1.0))
            with poutine.mask(mask=torch.tensor([True, False, True])):
                v = pyro.sample("v", dist.Uniform(torch.zeros(2), torch.tensor([1.0, 2.0])).to_event(1))
        w = pyro.sample("w", dist.Uniform(torch.zeros(2), torch.tensor([1.0, 2.0])).to_event(1))
        pyro.sample("y", dist.Normal(b.sum(-1) + c.sum(-1) + w.sum(-1) + v[..., 0, 0], 0.1), obs=torch.tensor(1.8))

    b, c = torch.tensor([0.1, 0.5, 1.5]), torch.tensor([0.2, -1.0, 1.0])
    prior = logs(math.log(0.7) + normal(c, 0.0).sum(), math.log(0.3) + normal(c, 1.0).sum())
    by_hand = prior - 7 * math.log(2.0) + normal(torch.tensor(1.8), b.sum() + c.sum() + 1.1 + 0.3, 0.1)
    values = {"b": b, "c": c, "v": torch.full((3, 2), 0.3), "w": torch.tensor([0.2, 0.9])}
    torch.testing.assert_close(LogJoint(model)({name: value[None] for name, value in values.items()})[0], by_hand)
