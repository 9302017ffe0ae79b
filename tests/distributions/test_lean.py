"""Gaussians and flows of one site: sizes, batches, what is refused, and the edges of the precision."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import ExpTransform, StickBreakingTransform, kl_divergence

from tests.transforms.case import randomise
from vi_flows.distributions.lean import FlowNormal, StandardNormal
from vi_flows.flows import IAF, MAF, ConvFlow, Planar, RealNVP
from vi_flows.transforms import ActNorm, Chain, FromPyro, Inverse

LOG_2PI = math.log(2 * math.pi)


def test_a_map_of_entries_is_one_of_vectors():
    loc, log_scale = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([0.1, -0.5, 0.0])
    for q in (FlowNormal(loc, log_scale, FromPyro(ExpTransform())), FlowNormal(loc, log_scale).expand((4,))):
        assert q.log_prob(q.sample()).shape == q.batch_shape
    q = FlowNormal(loc, log_scale, FromPyro(ExpTransform()))
    z = torch.tensor([0.5, 1.0, 2.0])
    expected = dist.LogNormal(loc, log_scale.exp()).to_event(1).log_prob(z)
    torch.testing.assert_close(q.log_prob(z), expected)
    z = q.rsample((2,))
    torch.testing.assert_close(q.log_prob(z), dist.LogNormal(loc, log_scale.exp()).to_event(1).log_prob(z))
    with pytest.raises(ValueError, match="within the support"):
        q.log_prob(-z)


def test_bijections_of_larger_events_are_refused_and_those_to_other_sizes_are_not():
    with pytest.raises(ValueError, match="ActNorm acts on events of 3 dimensions"):
        FlowNormal(torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), ActNorm(2, False))
    q = FlowNormal(torch.zeros(4), torch.zeros(4), FromPyro(StickBreakingTransform()))
    assert q.event_shape == (5,)
    z = q.rsample((3,))
    assert z.shape == (3, 5)
    own = q.log_prob(z)
    torch.testing.assert_close(q.log_prob(z.clone()), own, atol=1e-3, rtol=1e-3)
    assert q.expand((2,)).rsample().shape == (2, 5)


@pytest.mark.parametrize("flow", [ConvFlow(), Planar(), IAF(2), MAF(2), RealNVP(2)], ids=lambda flow: flow.name)
def test_each_row_of_a_context_has_noise_of_its_own(flow):
    family = randomise(flow.build(3, 2), 0.2)
    context = torch.randn(1, 2).expand(6, 2)  # equal rows: what differs is the noise
    q = FlowNormal(torch.zeros(3), torch.zeros(3), family.condition(context))
    assert q.batch_shape == (6,)
    z = q.rsample((5,))
    assert z.shape == (5, 6, 3)
    assert len(z.detach().reshape(-1, 3).unique(dim=0)) == 30
    own = q.log_prob(z)
    assert own.shape == (5, 6)
    if q.bijection.has_inverse:
        torch.testing.assert_close(q.log_prob(z.clone()), own, atol=1e-3, rtol=1e-3)
    for bijection in (q.bijection, Inverse(q.bijection), Chain([q.bijection])):
        assert bijection.forward_shape((3,)) == bijection.inverse_shape((3,)) == (6, 3)
        base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        stock = dist.TransformedDistribution(base, [bijection])
        assert stock.batch_shape == (6,)
        assert len(stock.sample().unique(dim=0)) == 6
    with pytest.raises(ValueError, match=r"batch of \(4,\), which doesn't go with \(6,\)"):
        FlowNormal(torch.zeros(4, 3), torch.zeros(4, 3), q.bijection)


@pytest.mark.parametrize("make", [lambda: StandardNormal(2), lambda: FlowNormal(torch.zeros(2), torch.zeros(2))])
def test_a_plate_keeps_the_validation(make):
    wrong = torch.tensor([[0.0, math.nan]] * 3)
    with pytest.raises(ValueError, match="within the support"):
        make().expand((3,)).log_prob(wrong)

    def program():
        with pyro.plate("rows", 3):
            pyro.sample("z", make(), obs=wrong)

    with pytest.raises(ValueError, match="within the support"):
        pyro.poutine.trace(program).get_trace().log_prob_sum()
    loose = make()
    loose._validate_args = False
    assert loose.expand((3,)).log_prob(wrong).isnan().all()


def test_divergences_and_densities_have_the_shapes_of_both_sides():
    q = FlowNormal(torch.tensor([0.5, -1.0, 0.0]), torch.tensor([0.2, 0.0, -0.3]))
    stock = kl_divergence(dist.Normal(q.loc, q.log_scale.exp()), dist.Normal(torch.zeros(3), 1.0)).sum()
    torch.testing.assert_close(kl_divergence(q, StandardNormal(3)), stock)
    torch.testing.assert_close(kl_divergence(q, StandardNormal(3, (4,))), stock.expand(4))
    torch.testing.assert_close(kl_divergence(q.expand((2, 1)), StandardNormal(3, (4,))), stock.expand(2, 4))
    for p in (StandardNormal(5), FlowNormal(torch.zeros(1), torch.zeros(1))):
        with pytest.raises(ValueError, match=r"of 3 and of [15] dimensions"):
            kl_divergence(q, p)
    zero = StandardNormal(3, (4,)).log_prob(torch.zeros(3))
    torch.testing.assert_close(zero, torch.full((4,), -1.5 * LOG_2PI))
    assert StandardNormal(3, (4,)).log_prob(torch.zeros(2, 1, 3)).shape == (2, 4)
    assert StandardNormal(3).log_prob(torch.zeros(2, 3)).shape == (2,)


def test_a_scale_below_the_smallest_reciprocal():
    """At the location the density is known, although ``1/σ`` overflows in float32."""
    loc = torch.zeros(2, requires_grad=True)
    log_scale = torch.tensor([-100.0, 0.5], requires_grad=True)
    q = FlowNormal(loc, log_scale)
    at = torch.tensor([0.0, 1.0])
    log_q = q.log_prob(at)
    expected = 100.0 - 0.5 - 0.5 * math.exp(-1.0) - LOG_2PI
    assert log_q.item() == pytest.approx(expected, rel=1e-6)
    by_loc, by_log_scale = torch.autograd.grad(log_q, (loc, log_scale))
    torch.testing.assert_close(by_loc, torch.tensor([0.0, math.exp(-1.0)]))
    torch.testing.assert_close(by_log_scale, torch.tensor([-1.0, math.exp(-1.0) - 1.0]))
    assert kl_divergence(FlowNormal(loc, log_scale), q).item() == 0.0
    assert q.log_prob(at + 1.0).item() == -math.inf
