"""Weights, bounds, gates and steps on numbers worked out by hand."""

from __future__ import annotations

import inspect
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from vi_flows.objectives import DIRECT_OBJECTIVES, ELBO, IWAE, DReG, StickingTheLanding, elbo_bound, iwae_bound
from vi_flows.objectives.path_gradient import GradientGate, dreg_factor
from vi_flows.objectives.step import OptimizerStep
from vi_flows.objectives.traced import TracedWeights

LOG_2PI = math.log(2 * math.pi)


def standard(value):
    return -0.5 * value * value - 0.5 * LOG_2PI


def test_the_defaults():
    for kind in (ELBO, IWAE, StickingTheLanding, DReG):
        found = {n: p.default for n, p in inspect.signature(kind).parameters.items() if p.default is not p.empty}
        assert found == {
            "num_particles": 1, "kl_weight": 1.0, "max_plate_nesting": math.inf, "vectorize_particles": False,
        }  # fmt: skip
        with pytest.raises(ValueError, match="at least 1"):
            kind(0)
    chosen = {name: (objective.path, objective.gated) for name, objective in DIRECT_OBJECTIVES.items()}
    assert chosen == {"elbo": (False, False), "stl": (True, False), "iwae": (False, False), "dreg": (True, True)}
    assert inspect.signature(OptimizerStep).parameters["max_norm"].default == math.inf


@pytest.mark.parametrize("vectorized", [False, True])
def test_a_site_without_the_particles_dimension_counts_for_each(vectorized):
    """x is observed and depends on nothing: its one number stands for every particle, in the plates too."""

    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(2.0))
        with pyro.plate("rows", 4):
            pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    def guide():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4):
            pyro.sample("b", dist.Normal(0.0, 1.0))

    weights = ELBO(3, vectorize_particles=vectorized).log_weights(model, guide)
    assert weights.log_likelihood.shape == weights.log_prior.shape == weights.log_posterior.shape == (3,)
    torch.testing.assert_close(weights.log_likelihood, torch.full((3,), standard(2.0) + 4 * standard(1.0)))
    torch.testing.assert_close(weights.log_prior, weights.log_posterior)
    assert (weights.common_scale, weights.coupled) == (1, ())
    assert ELBO(3, vectorize_particles=vectorized).loss(model, guide) == pytest.approx(
        -standard(2.0) - 4 * standard(1.0), rel=1e-5
    )


@pytest.mark.parametrize("vectorized", [False, True])
def test_plates_that_hold_every_site_stay_rows(vectorized):
    """Two plates around all sites, one of them a part of ten: weights a particle and cell, scaled by 10/2."""

    def model():
        with pyro.plate("outer", 10, subsample_size=2, dim=-2), pyro.plate("inner", 3, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor([0.0, 1.0, 2.0]))

    def guide():
        with pyro.plate("outer", 10, subsample_size=2, dim=-2), pyro.plate("inner", 3, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    weights = IWAE(4, vectorize_particles=vectorized, max_plate_nesting=2).log_weights(model, guide)
    assert weights.log_prior.shape == (4, 2, 3)
    assert weights.common_scale == 5.0
    cells = torch.tensor([standard(0.0), standard(1.0), standard(2.0)])
    torch.testing.assert_close(weights.log_likelihood, cells.expand(4, 2, 3))
    loss = IWAE(4, vectorize_particles=vectorized, max_plate_nesting=2).loss(model, guide)
    assert loss == pytest.approx(-5 * 2 * float(cells.sum()), rel=1e-5)


def test_a_latent_outside_of_a_subsampled_plate_couples_its_rows():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 6, subsample_size=2):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    def guide():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    weights = IWAE(2).log_weights(model, guide)
    assert (weights.common_scale, weights.coupled) == (1, ("rows",))
    torch.testing.assert_close(weights.log_likelihood, torch.full((2,), 6 * standard(1.0)))
    with pytest.warns(UserWarning, match=r"plate\(s\) rows couple"):
        assert IWAE(2).loss(model, guide) == pytest.approx(-6 * standard(1.0), rel=1e-5)


WEIGHTS = TracedWeights(
    torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.zeros(2, 2), 2.5, (), (-1,)
)


def test_bounds_of_given_weights():
    """β = ½: log-weights ½ and 1½ of particle one, 2 and 3 of particle two."""
    assert ELBO().bound(WEIGHTS, 0.5).item() == pytest.approx(2.5 * (1.25 + 2.25))
    assert ELBO().bound(WEIGHTS, 1.0).item() == pytest.approx(2.5 * (1.5 + 2.5))
    e = math.exp
    expected = 2.5 * (math.log((e(0.5) + e(2)) / 2) + math.log((e(1.5) + e(3)) / 2))
    assert IWAE().bound(WEIGHTS, 0.5).item() == pytest.approx(expected)


@pytest.mark.parametrize("bound", [elbo_bound, iwae_bound])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3)])
def test_a_bound_of_no_particle_is_refused(bound, shape):
    nothing = TracedWeights(torch.zeros(shape), torch.zeros(shape), torch.zeros(shape), 1.0, (), ())
    with pytest.raises(ValueError, match="log-weights have the particles first, at least one"):
        bound(nothing)


def test_factors_of_the_doubly_reparameterised_gradient():
    """Weights ¼ and ¾: ŵ at β = 1, and 1 − ½ (1 − ŵ) = 0.625 and 0.875 at β = ½."""
    log_w = torch.tensor([0.0, math.log(3.0)])
    assert dreg_factor(log_w).tolist() == pytest.approx([0.25, 0.75])
    assert dreg_factor(log_w, 0.5).tolist() == pytest.approx([0.625, 0.875])


def test_a_gate_multiplies_what_comes_back():
    value = torch.ones(2, 3, 4, requires_grad=True)
    gate = GradientGate()
    gate(value, 1).sum().backward()
    assert (value.grad == 1).all()  # open
    value.grad = None
    gate.factor = torch.arange(6.0).reshape(2, 3)
    gate(value, 1).sum().backward()
    assert torch.equal(value.grad, gate.factor[..., None].expand(2, 3, 4))
    value.grad = None
    both = gate.with_statistics(value, 1)
    assert both.shape == (4, 3, 4)
    both[:2].sum().backward(retain_graph=True)
    assert torch.equal(value.grad, gate.factor[..., None].expand(2, 3, 4))
    value.grad = None
    both[2:].sum().backward()
    assert torch.equal(value.grad, (2 - gate.factor)[..., None].expand(2, 3, 4))


@pytest.mark.parametrize(("max_norm", "moved"), [(math.inf, (3.0, 4.0)), (10.0, (3.0, 4.0)), (2.5, (1.5, 2.0))])
def test_a_step_by_hand(max_norm, moved):
    """Gradient (3, 4) of norm 5; at a rate of one the parameters move by it, clipped."""
    p = torch.nn.Parameter(torch.zeros(2))
    step = OptimizerStep(torch.optim.SGD([p], lr=1.0), lambda figures: None, max_norm)
    ((loss, watched, norm),) = step((torch.tensor([3.0, 4.0]) * p).sum() + 7.0, torch.tensor(11.0))
    assert (loss, watched, norm) == (7.0, 11.0, pytest.approx(5.0))
    assert p.tolist() == pytest.approx([-m for m in moved], rel=1e-5)


def test_a_stacked_step_by_hand():
    """Two models with gradients (3, 4) and (0, 1), clipped to 2: by 0.4, and not at all."""
    p = torch.nn.Parameter(torch.zeros(2, 2))
    seen = []
    step = OptimizerStep(torch.optim.SGD([p], lr=1.0), seen.append, 2.0, stacked=True)
    loss = (torch.tensor([[3.0, 4.0], [0.0, 1.0]]) * p).sum(1) + torch.tensor([1.0, 2.0])
    figures = step(loss, torch.tensor([5.0, 6.0]))
    assert figures == [[1.0, 5.0, pytest.approx(5.0)], [2.0, 6.0, pytest.approx(1.0)]]
    torch.testing.assert_close(p.detach(), -torch.tensor([[1.2, 1.6], [0.0, 1.0]]), rtol=1e-5, atol=1e-6)
    held = p.detach().clone()
    assert step((torch.tensor([1.0, math.nan])[:, None] * p).sum(1), torch.tensor([1.0, 1.0])) is None
    assert len(seen) == 1
    assert torch.equal(p.detach(), held)
