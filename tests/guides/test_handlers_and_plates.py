"""Handlers around a program, plates of all kinds and names, each with its evidence in closed form."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import DiscreteCosineReparam, HaarReparam, LocScaleReparam, SplitReparam, TransformReparam

from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, fit

ONE = torch.tensor(1.0)


def normal(x, variance):
    return -0.5 * x**2 / variance - 0.5 * math.log(2 * math.pi * variance)


def joint_normal(y, covariance):
    y, covariance = torch.as_tensor(y).double(), torch.as_tensor(covariance).double()
    return float(torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y))


def rows():
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("d", 2):
        z = pyro.sample("z", dist.Normal(m, 2.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.ones(2))


def vector():
    x = pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=torch.ones(4))


def positive():
    x = pyro.sample("x", dist.LogNormal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x.log(), 1.0), obs=ONE)


def learnt():
    w = pyro.param("w", torch.tensor(1.0), constraint=dist.constraints.positive)
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a + w.log(), 1.0), obs=ONE)


def alike():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a + b, 1.0), obs=ONE)


def plates_with_a_gap():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("p", 3, dim=-3):
        b = pyro.sample("b", dist.Normal(a, 1.0))
        with pyro.plate("q", 2, dim=-1):
            pyro.sample("y", dist.Normal(b, 1.0), obs=torch.ones(3, 1, 2))


GAP = torch.ones(6, 6) + torch.kron(torch.eye(3), torch.ones(2, 2)) + torch.eye(6)


def plates_in_a_loop():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    for i in range(3):
        with pyro.plate(f"p{i}", i + 1):
            b = pyro.sample(f"b{i}", dist.Normal(a, 1.0))
            pyro.sample(f"y{i}", dist.Normal(b, 1.0), obs=torch.ones(i + 1))


def a_loop_in_a_plate():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 2):
        for i in pyro.plate("steps", 3):
            b = pyro.sample(f"b{i}", dist.Normal(a, 1.0))
            pyro.sample(f"y{i}", dist.Normal(b, 1.0), obs=torch.ones(2))


SIX = joint_normal(torch.ones(6), torch.ones(6, 6) + 2 * torch.eye(6))


def a_whole_subsample():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("d", 6, subsample=torch.arange(6)):
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("y", dist.Normal(b, 1.0), obs=torch.ones(6))


def names_of_our_own():
    total = sum(
        pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("my site.x/1", "values", "model", "transform", "base")
    )
    pyro.sample("guide", dist.Normal(total, 1.0), obs=ONE)


def types_side_by_side():
    a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a + b, 1.0), obs=ONE.double())


def sizes_far_apart():
    a = pyro.sample("a", dist.Normal(0.0, 1e8))
    b = pyro.sample("b", dist.Normal(0.0, 1e-8))
    pyro.sample("x", dist.Normal(a, 1e8), obs=torch.tensor(1e8))
    pyro.sample("y", dist.Normal(b, 1e-8), obs=torch.tensor(1e-8))


def two_back():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    before = last = 0
    for t in pyro.markov(range(3), history=2):
        x = pyro.sample(f"x{t}", dist.Bernoulli(0.2 + 0.3 * before + 0.3 * last), infer={"enumerate": "parallel"})
        before, last = last, x
        pyro.sample(f"y{t}", dist.Normal(a + 2 * x, 1.0), obs=torch.tensor(float(t)))


def of_two_back():
    terms = []
    for path in itertools.product((0, 1), repeat=3):
        log_prior, before, last = 0.0, 0, 0
        for x in path:
            p = 0.2 + 0.3 * before + 0.3 * last
            log_prior += math.log(p if x else 1 - p)
            before, last = last, x
        terms.append(log_prior + joint_normal([t - 2 * path[t] for t in range(3)], torch.ones(3, 3) + torch.eye(3)))
    return float(torch.logsumexp(torch.tensor(terms), 0))


ROWS = joint_normal([1.0, 1.0], [[6.0, 1.0], [1.0, 6.0]])
GIVEN = normal(0.5, 1.0) + 2 * normal(0.5, 5.0)
PROGRAMS = {
    "nested": (poutine.scale(poutine.reparam(poutine.condition(rows, data={"m": ONE / 2}), config={
        "z": LocScaleReparam(0.0)}), scale=1.0), GIVEN),
    "masked_do": (poutine.mask(poutine.do(rows, data={"m": ONE * 0}), mask=ONE > 0), 2 * normal(1.0, 5.0)),
    "masked_out": (poutine.mask(rows, mask=ONE < 0), 0.0),
    "masked_out_in_python": (poutine.mask(rows, mask=False), 0.0),
    "conditioned_again": (poutine.condition(poutine.uncondition(rows), data={"y": torch.ones(2)}), ROWS),
    "seeded": (poutine.seed(rows, rng_seed=1), ROWS),
    "haar": (poutine.reparam(vector, config={"x": HaarReparam(dim=-1)}), 4 * normal(1.0, 2.0)),
    "cosine": (poutine.reparam(vector, config={"x": DiscreteCosineReparam(dim=-1)}), 4 * normal(1.0, 2.0)),
    "split": (poutine.reparam(vector, config={"x": SplitReparam([1, 3], -1)}), 4 * normal(1.0, 2.0)),
    "transform": (poutine.reparam(positive, config={"x": TransformReparam()}), normal(1.0, 2.0)),
    "lifted": (poutine.lift(learnt, prior={"w": dist.LogNormal(0.0, 1.0)}), normal(1.0, 3.0)),
    "substituted": (poutine.substitute(learnt, data={"w": ONE}), normal(1.0, 2.0)),
    "equalized": (poutine.equalize(alike, ["a", "b"]), normal(1.0, 5.0)),
    "gap": (plates_with_a_gap, joint_normal(torch.ones(6), GAP)),
    "plates_in_a_loop": (plates_in_a_loop, SIX),
    "a_loop_in_a_plate": (a_loop_in_a_plate, SIX),
    "a_whole_subsample": (a_whole_subsample, SIX),
    "names_of_our_own": (names_of_our_own, normal(1.0, 6.0)),
    "types_side_by_side": (types_side_by_side, normal(1.0, 3.0)),
    "sizes_far_apart": (sizes_far_apart, normal(1e8, 2e16) + normal(1e-8, 2e-16)),
    "two_back": (two_back, of_two_back()),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_evidence_is_that_by_hand(name):
    model, evidence = PROGRAMS[name]
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoConvFlow(model, num_blocks=1)
    assert evidence - 0.1 < fit(model, guide, num_steps=50).elbo < evidence + 0.02
    assert diagnose(model, guide, num_samples=500, num_paths=10).log_evidence == pytest.approx(evidence, abs=0.04)
