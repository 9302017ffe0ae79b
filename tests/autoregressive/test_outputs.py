"""Mixtures of logistic distributions in bins."""

import math

import pytest
import torch

from vi_flows.autoregressive import LogisticMixture


def test_bins_sum_to_one_at_any_scale():
    torch.manual_seed(0)
    output = LogisticMixture(17, 3)
    params = 3 * torch.randn(50, 1, 9, dtype=torch.float64)
    p = output.log_prob(params.expand(50, 17, 9), torch.arange(17, dtype=torch.float64).expand(50, 17)).exp()
    assert (p.sum(1) - 1).abs().max() < 1e-12
    assert (p > 0).all()


def test_one_component_literally():
    """Three bins, mean 0, scale ½: the middle one reaches from −½ to ½."""
    output = LogisticMixture(3, 1)
    params = torch.tensor([0.0, 0.0, math.log(0.5)], dtype=torch.float64).expand(3, 3)
    p = output.log_prob(params, torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)).exp()
    tail = 1 / (1 + math.e)
    assert p.tolist() == pytest.approx([tail, 1 - 2 * tail, tail], abs=1e-12)


def test_far_from_every_component_values_and_gradients_are_finite():
    output = LogisticMixture()
    params = torch.tensor([0.0, 5.0, 900.0, -50.0, -50.0, -9.0], requires_grad=True)
    log_prob = LogisticMixture(256, 2).log_prob(params.expand(256, 6), torch.arange(256.0))
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    assert params.grad.isfinite().all()
    assert output.num_params == 15


def test_gradients():
    torch.manual_seed(0)
    params = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.0, 3.0, 7.0, 9.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: LogisticMixture(10, 2).log_prob(p, x), params)


def test_samples_follow_the_bins():
    torch.manual_seed(0)
    output = LogisticMixture(8, 2)
    params = torch.tensor([0.5, -0.5, -0.4, 0.9, -1.5, -1.0], dtype=torch.float64)
    expected = output.log_prob(params.expand(8, 6), torch.arange(8.0, dtype=torch.float64)).exp()
    counts = torch.bincount(output.sample(params.expand(20000, 6)).long(), minlength=8) / 20000
    assert (counts - expected).abs().max() < 0.015


@pytest.mark.parametrize(("sizes", "name"), [((1, 3), "num_bins"), ((256, 0), "num_components")])
def test_refusals(sizes, name):
    with pytest.raises(ValueError, match=name):
        LogisticMixture(*sizes)
