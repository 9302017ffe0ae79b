"""Factors in plates, programs whose shapes change, and supports that nothing can be drawn from."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, LogJoint, fit

ONE = torch.tensor(1.0)


def evidence_of(model):
    pyro.set_rng_seed(0)
    guide = AutoConvFlow(model, num_blocks=1)
    fit(model, guide, num_steps=50)
    return diagnose(model, guide, num_samples=500, num_paths=10).log_evidence


def slope(total):
    """log ∫ N(a; 0, 1) e^{−total a} da."""
    return 0.5 * total**2


def factor_in_a_plate():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("d", 3):
        pyro.factor("f", -0.5 * a * torch.ones(3))


def factor_in_two_plates():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 2), pyro.plate("columns", 3):
        pyro.factor("f", -0.1 * a.expand(3, 2))


def factor_of_local_latents():
    with pyro.plate("d", 3):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.factor("f", -0.5 * a)


def unit_that_is_sampled():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("f", dist.Unit(-1.5 * a))


def masked_factor():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("d", 3), pyro.poutine.mask(mask=torch.tensor([True, False, True])):
        pyro.factor("f", -0.5 * a.expand(3))


@pytest.mark.parametrize(("model", "evidence"), [
    (factor_in_a_plate, slope(1.5)), (factor_in_two_plates, slope(0.6)), (factor_of_local_latents, 3 * slope(0.5)),
    (unit_that_is_sampled, slope(1.5)), (masked_factor, slope(1.0))])  # fmt: skip
def test_factors_of_any_shape_count(model, evidence):
    assert evidence_of(model) == pytest.approx(evidence, abs=0.03)


def two_or_three():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(2 if a > 0 else 3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(b.sum(), 1.0), obs=ONE)


def one_or_three():
    """A value of shape (3,) would be scored by a prior of shape (1,) without an error."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(1 if a > 0 else 3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(b.sum(), 1.0), obs=ONE)


def rows_by_chance():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("d", 1 if a > 0 else 2):
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("y", dist.Normal(b, 1.0), obs=torch.ones(1))


@pytest.mark.parametrize("model", [two_or_three, one_or_three, rows_by_chance])
def test_shapes_that_change_are_called_by_their_site(model):
    with pytest.raises(ValueError, match=r"'b' has the shape \(\d,\) in some runs|'y' has values of shape"):
        evidence_of(model)


@pytest.mark.parametrize("constraint", [
    dist.constraints.positive_definite, dist.constraints.softplus_lower_cholesky, constraints.square])  # fmt: skip
def test_flat_priors_on_sets_without_a_map_are_called_by_their_site(constraint):
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("matrix", dist.ImproperUniform(constraint, (), (2, 2)))

    with pytest.raises(ValueError, match=r"latent site 'matrix' \(ImproperUniform\) has a support that no map"):
        evidence_of(model)


def test_pyros_own_way_out_of_spheres_is_kept():
    def model():
        pyro.sample("v", dist.ImproperUniform(dist.constraints.sphere, (), (3,)))

    with pytest.raises(ValueError, match=r"'v'.*ProjectedNormalReparam"):
        evidence_of(model)


X, COLUMN = torch.arange(1.0, 5.0)[:, None], torch.tensor([2.0, 3.0, 7.0, 8.0])[:, None]


def of_rows(fn):
    def model(y):
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        pyro.sample("y", fn(b), obs=y)

    return model


CROSSED = {
    "a column for rows": (of_rows(lambda b: dist.Normal(X @ b, 1.0)), COLUMN),
    "a column for a vector": (of_rows(lambda b: dist.Normal(X @ b, 1.0).to_event(1)), COLUMN),
    "rows for a column": (of_rows(lambda b: dist.Normal(X * b, 1.0)), COLUMN[:, 0]),
    "rows for a column of vectors": (of_rows(lambda b: dist.Normal(X * b, 1.0).to_event(1)), COLUMN[:, 0]),
    "counts in a column": (of_rows(lambda b: dist.Poisson((X @ b).exp())), COLUMN),
}


@pytest.mark.parametrize("name", CROSSED)
def test_rows_that_would_count_against_each_other_are_refused(name):
    model, y = CROSSED[name]
    for start in (True, False):
        with pytest.raises(ValueError, match=r"observed site 'y' has values of shape .*every row.*squeeze"):
            fit(model, AutoConvFlow(model, num_blocks=1, warm_start=start), y, num_steps=10)


STRETCHED = {
    "one distribution for all values": (of_rows(lambda b: dist.Normal(b[0], 1.0)), COLUMN, 4),
    "one value for all rows": (of_rows(lambda b: dist.Normal(X @ b, 1.0)), torch.tensor(2.0), 4),
    "one of a vector for all": (of_rows(lambda b: dist.Normal(b[0] * torch.ones(1), 1.0)), COLUMN, 4),
    "both the same": (of_rows(lambda b: dist.Normal(X * b, 1.0)), COLUMN, 4),
}


@pytest.mark.parametrize("name", STRETCHED)
def test_one_for_all_stays_legal(name):
    model, y, count = STRETCHED[name]
    result = fit(model, AutoConvFlow(model, num_blocks=1), y, num_steps=20)
    zero = {"b": torch.zeros(1, 1)}
    want = dist.Normal(0.0, 1.0).log_prob(torch.zeros(1)) + dist.Normal(0.0, 1.0).log_prob(y).sum() * count / y.numel()
    torch.testing.assert_close(LogJoint(model, (y,))(zero), want)
    assert math.isfinite(result.elbo)


def test_a_mixture_of_simplexes_as_a_prior():
    """Three counts of the first kind: each component's evidence is a ratio of Beta functions."""
    first, second = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 1.0, 2.0])

    def model():
        parts = dist.Dirichlet(torch.stack([first, second]))
        p = pyro.sample("p", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), parts))
        pyro.sample("n", dist.Categorical(p), obs=torch.tensor(0))

    guide = AutoConvFlow(model, num_blocks=1)
    fit(model, guide, num_steps=200)
    evidence = 0.3 * 1 / 6 + 0.7 * 4 / 7
    assert diagnose(model, guide).log_evidence == pytest.approx(math.log(evidence), abs=0.03)
