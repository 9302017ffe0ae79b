"""Counts whose totals differ from row to row: their density, and draws that keep each row's own total."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from vi_flows import AutoConvFlow, diagnose, fit
from vi_flows.guides.right_draws import can_be_drawn, like_its_observations

COUNTS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 1.0], [0.0, 9.0, 2.0]])


def words(counts, total):
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("documents", len(counts)):
        pyro.sample("words", dist.Multinomial(total, share), obs=counts)


def overdispersed(counts):
    shape = pyro.sample("shape", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("documents", len(counts)):
        pyro.sample("words", dist.DirichletMultinomial(shape, total_count=counts.sum(-1)), obs=counts)


def test_documents_of_several_lengths_have_the_exact_posterior():
    guide = AutoConvFlow(words, prototype_args=(COUNTS, 11))
    result = fit(words, guide, COUNTS, 11, seed=0, progress=False)
    alpha = 1 + COUNTS.sum(0)
    drawn = guide.sample_posterior(20_000)["share"]
    exact = dist.Dirichlet(alpha)
    assert torch.allclose(drawn.mean(0), exact.mean, atol=0.01)
    assert torch.allclose(drawn.std(0), exact.variance.sqrt(), rtol=0.05)
    coefficients = (torch.lgamma(COUNTS.sum(-1) + 1) - torch.lgamma(COUNTS + 1).sum(-1)).sum()
    evidence = coefficients + math.log(2) + torch.lgamma(alpha).sum() - torch.lgamma(alpha.sum())
    assert diagnose(words, guide, COUNTS, 11).log_evidence == pytest.approx(float(evidence), abs=0.05)
    tree = result.to_datatree(num_draws=1000)
    totals = tree["posterior_predictive"]["words"].values.sum(-1)
    assert (totals == COUNTS.sum(-1).numpy()).all()
    mean = tree["posterior_predictive"]["words"].values.mean((0, 1))
    expected = COUNTS.sum(-1, keepdim=True) * exact.mean
    assert abs(mean - expected.numpy()).max() < 0.2


def test_overdispersed_counts_are_drawn_with_the_totals_of_their_rows():
    result = fit(overdispersed, AutoConvFlow(overdispersed), COUNTS, num_steps=3, progress=False)
    drawn = result.to_datatree(num_draws=50)["posterior_predictive"]["words"].values
    assert (drawn.sum(-1) == COUNTS.sum(-1).numpy()).all()


@pytest.mark.parametrize("totals", [(8, 3), (0, 5)])
def test_draws_follow_the_multinomial_of_each_row(totals):
    torch.manual_seed(0)
    share = torch.tensor([0.1, 0.0, 0.6, 0.3])
    counts = torch.tensor([[n, 0, 0, 0] for n in totals]).float()
    drawn = like_its_observations(dist.Multinomial(max(totals), share), counts).sample((40_000,))
    assert drawn.shape == (40_000, 2, 4)
    for row, total in enumerate(totals):
        exact = torch.distributions.Multinomial(max(total, 1), share)
        mean, variance = (exact.mean, exact.variance) if total else (0 * share, 0 * share)
        assert torch.allclose(drawn[:, row].mean(0), mean, atol=0.03)
        assert torch.allclose(drawn[:, row].var(0), variance, atol=0.06)
        assert bool((drawn[:, row].sum(-1) == total).all())


def test_equal_totals_are_drawn_by_pyro_itself():
    fn = dist.Multinomial(6, torch.ones(3)).expand((2,))
    assert like_its_observations(fn, torch.tensor([[1.0, 2.0, 3.0], [4.0, 1.0, 1.0]])) is fn
    assert can_be_drawn(fn, torch.tensor([[1.0, 2.0, 3.0], [4.0, 1.0, 1.0]]))


@pytest.mark.parametrize(
    ("counts", "total"), [(COUNTS, 10), (COUNTS[:1], 7), (torch.tensor([[3.0, 1.0, 0.0], [2.0, 2.0, 0.0]]), 9)]
)
def test_totals_that_are_none_of_the_counts_are_refused_with_a_way_out(counts, total):
    with pytest.raises(ValueError, match=rf"total_count of \[{total}\].*total_count=int\(counts.sum\(-1\).max\(\)\)"):
        fit(words, AutoConvFlow(words), counts, total, num_steps=1, progress=False)
