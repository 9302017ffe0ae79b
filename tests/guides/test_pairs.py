"""What a model with a guide of it answers: flow guides by their own densities, all others through Pyro's traces."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from vi_flows.guides import AutoFlow
from vi_flows.guides.pairs import FlowPair, TracedPair, chunks, pair_of
from vi_flows.parameters import module_of
from vi_flows.transforms import Bijection, Chain


def model(y=1.0):
    """Evidence N(y; 0, 2); posterior N(y/2, ½)."""
    z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(y, dtype=torch.float64))


EVIDENCE = -0.25 * 1.0**2 - 0.5 * math.log(4 * math.pi)


def by_hand(y=1.0):
    pyro.sample("z", dist.Normal(torch.tensor(0.5 * y, dtype=torch.float64), 0.5**0.5))


def exact_flow_guide():
    guide = AutoFlow(model, lambda dim: Chain([]), warm_start=False, prototype_args=()).double()
    guide.location_scale.set_gaussian(torch.tensor([0.5]).double(), torch.tensor([[0.5]]).double())
    return guide


def test_every_guide_has_its_pair():
    assert type(pair_of(model, exact_flow_guide(), (), {})) is FlowPair
    for guide in (by_hand, AutoNormal(model)):
        assert type(pair_of(model, guide, (), {})) is TracedPair


def test_weights_of_the_exact_posterior_are_the_evidence():
    """Whatever the draws; the flow guide brings them along, with the density of any other point."""
    pyro.set_rng_seed(0)
    with torch.no_grad():
        traced = pair_of(model, by_hand, (), {}).weigh(300)
        weighed = pair_of(model, exact_flow_guide(), (), {}).weigh(300)
    expected = torch.full((300,), EVIDENCE, dtype=torch.float64)
    torch.testing.assert_close(traced.log_weights, expected)
    torch.testing.assert_close(weighed.log_weights, expected)
    assert traced.draws is None
    draws = weighed.draws
    assert draws.latents.shape == (300, 1)
    assert draws.at_once
    x = torch.tensor([[0.5], [2.5]]).double()
    # N(½, ½) at its mean, and at two from it, four standard deviations squared apart in halves: −4.
    assert draws.log_q(x).tolist() == pytest.approx([-0.5 * math.log(math.pi), -0.5 * math.log(math.pi) - 4.0])
    assert draws.log_density(x).tolist() == pytest.approx([EVIDENCE + q for q in draws.log_q(x).tolist()])
    assert draws.constrain(x)["z"].tolist() == [0.5, 2.5]
    other = pair_of(model, exact_flow_guide(), (), {"y": 3.0}).weigh(100)
    assert float(other.log_weights.std()) > 0.1  # the guide is not the posterior of these data


class Exponential(Bijection):
    """Reaches the positive half alone; its inverse is not a number elsewhere, or there is none."""

    def __init__(self, has_inverse=True):
        super().__init__(event_dim=1)
        self._has_inverse = has_inverse

    @property
    def has_inverse(self):
        return self._has_inverse

    def forward_and_ladj(self, x):
        return x.exp(), x.sum(-1)

    def inverse_and_ladj(self, y):
        return y.log(), -y.log().sum(-1)


def test_beyond_the_reach_of_a_flow_the_guide_has_no_mass():
    for has_inverse in (True, False):
        guide = AutoFlow(
            model,
            lambda dim, known=has_inverse: Exponential(known),
            affine="diagonal",
            warm_start=False,
            prototype_args=(),
        )
        guide = guide.double()
        with torch.no_grad():
            draws = pair_of(model, guide, (), {}).weigh(100).draws
            if not has_inverse:
                assert draws.log_q is None
                continue
            log_q = draws.log_q(guide.location_scale.forward_and_ladj(torch.tensor([[-1.0], [1.0]]).double())[0])
        assert log_q[0] == -math.inf
        # At z = log 1 = 0 the Jacobian is the affine part's alone.
        scale = guide.location_scale.forward_and_ladj(torch.zeros(1).double())[1]
        assert log_q[1].item() == pytest.approx(-0.5 * math.log(2 * math.pi) - scale.item())


def test_losses_are_one_a_particle_or_one_for_all():
    """At the exact posterior every term of the flow guide is minus the evidence, and its path gradient is zero."""
    guide = exact_flow_guide()
    pair = pair_of(model, guide, (), {})
    for objective in ("stl", "elbo"):
        terms = pair.loss_terms(5, objective)()
        torch.testing.assert_close(terms, torch.full((5,), -EVIDENCE, dtype=torch.float64))
        guide.zero_grad()
        terms.mean().backward()
        largest = max(float(p.grad.abs().max()) for p in guide.parameters() if p.grad is not None and p.numel())
        assert (largest < 1e-10) == (objective == "stl")
    traced = pair_of(model, by_hand, (), {})
    for objective in ("stl", "elbo"):
        loss = traced.loss_terms(7, objective)()
        assert loss.shape == ()
        assert loss.item() == pytest.approx(-EVIDENCE)


def test_what_remains_is_known_of_flow_guides_and_fixed_data_alone():
    guide = exact_flow_guide()
    remaining = pair_of(model, guide, (), {}).probe(500)(False)
    assert remaining.kl == pytest.approx(0.0, abs=1e-12)
    assert remaining.elbo == pytest.approx(EVIDENCE)
    assert pair_of(model, by_hand, (), {}).probe(500) is None

    def subsampled():
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("rows", 50, subsample_size=5) as index:
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.arange(50.0).double()[index])

    assert pair_of(subsampled, exact_flow_guide(), (), {}).probe(500) is None


def test_what_else_fitting_asks():
    guide = exact_flow_guide()
    pair = pair_of(model, guide, (), {})
    assert (pair.num_latents, pair.at_once(), pair.check()) == (1, True, [])
    assert {id(p) for p in pair.parameters(pair.loss_terms(2, "stl"), [])} == {id(p) for p in guide.parameters()}
    scale = torch.ones((), requires_grad=True)
    assert pair.parameters(pair.loss_terms(2, "stl"), [scale, scale])[-1] is scale

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("y", dist.Normal(z, self.scale), obs=torch.tensor(1.0).double())

    own = Scaled()
    assert pair_of(own, guide, (), {}).check() == [own.scale]
    pyro.clear_param_store()  # of what other tests left under the names of this guide
    traced = pair_of(model, AutoNormal(model), (), {})
    assert (traced.num_latents, traced.at_once(), traced.check()) == (1, True, [])
    assert len(traced.parameters(traced.loss_terms(2, "elbo"), [])) == 2  # location and scale


def test_a_program_is_a_module_or_has_none():
    layer = nn.Linear(2, 1)
    assert module_of(layer) is layer
    assert list(module_of(by_hand).parameters()) == []


def test_chunks():
    assert chunks(2500, 1000) == [1000, 1000, 500]
    assert chunks(2000, 1000) == [1000, 1000]
    assert chunks(7, 1000) == [7]
