"""What is counted as a false verdict, and that the truths of the synthetic posteriors are those of their densities."""

import math

import pyro.poutine as poutine
import pytest
import torch

from experiments.verdicts.known import held_out, scalars
from experiments.verdicts.synthetic import POSTERIORS
from experiments.verdicts.table import counts, coverage, false_ok, false_warning
from experiments.verdicts.ways import BOUND, Bounded


def row(mean_error, low, high, verdict):
    return {"mean_error": mean_error, "least_sd_ratio": low, "largest_sd_ratio": high, "verdict": verdict}


@pytest.mark.parametrize(("errors", "verdict", "says_ok_falsely", "warns_falsely"), [
    ((0.31, 1.0, 1.0), "ok", True, False), ((0.31, 1.0, 1.0), "don't trust", False, False),
    ((0.0, 0.74, 1.0), "ok", True, False), ((0.0, 1.0, 1.34), "ok", True, False),
    ((0.2, 0.8, 1.2), "ok", False, False), ((0.2, 0.8, 1.2), "use importance weights", False, False),
    ((0.09, 0.95, 1.05), "use importance weights", False, True), ((0.09, 0.95, 1.05), "ok", False, False),
    ((math.nan, 1.0, 1.0), "ok", True, False)])  # fmt: skip
def test_what_is_false(errors, verdict, says_ok_falsely, warns_falsely):
    assert false_ok(row(*errors, verdict)) is says_ok_falsely
    assert false_warning(row(*errors, verdict)) is warns_falsely


def test_counts():
    rows = [row(0.5, 1, 1, "ok"), row(0.5, 1, 1, "don't trust"), row(0.0, 1, 1, "ok"), row(0, 1, 1, "don't trust")]
    assert counts(rows) == "4 | 1 of 2 (50.0%) | 1 of 2 (50.0%) | 1 of 2 (50.0%)"


def test_what_is_missing_is_said():
    seeds = {"a": {0, 1, 2}, "b": {0}, "c": {0}, "d": set()}
    assert coverage(seeds) == "Posteriors: 1 with 3 seeds, 2 with 1 seed; not fitted yet: d."
    assert coverage({"a": {0, 1}}) == "Posteriors: 1 with 2 seeds."


def moments(log_density, low, high, points):
    """Of a density of one or two real numbers, on a grid."""
    axes = [torch.linspace(a, b, points, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    weight = torch.softmax(log_density(grid), 0)
    mean = weight @ grid
    return mean, (weight @ (grid - mean).square()).sqrt()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("skew-normal", [-8], [8]),
        ("close-modes", [-12], [12]),
        ("two-modes-1", [-16], [16]),
        ("spike-and-slab", [-9], [9]),
        ("banana-2", [-14, -5], [14, 50]),
        ("three-modes-2", [-12, -9], [9, 18]),
    ],
)
def test_truths_in_closed_form_are_those_of_the_density(name, low, high):
    known = POSTERIORS[name]()

    def log_density(x):
        return poutine.trace(poutine.condition(known.model, {"x": x})).get_trace().nodes["target"]["fn"].log_factor

    mean, sd = moments(log_density, low, high, 20001 if len(low) == 1 else 1201)
    for j in range(len(low)):
        assert known.truth[f"x[{j}]"] == pytest.approx((float(mean[j]), float(sd[j])), abs=2e-3)


@pytest.mark.parametrize("name", ["funnel-3", "conjugate-normal", "truncated-normal", "dirichlet-4", "log-normal"])
def test_truths_of_programs_are_those_of_their_draws(name):
    """Where the prior is the posterior, by draws; where it is not, by weighted ones."""
    known = POSTERIORS[name]()
    torch.manual_seed(0)
    draws, log_w = [], []
    for _ in range(3000):
        trace = poutine.trace(known.model).get_trace()
        draws.append({n: s["value"] for n, s in trace.iter_stochastic_nodes()})
        log_w.append(sum(torch.as_tensor(s["fn"].log_prob(s["value"])) for s in trace.nodes.values()
                         if s["type"] == "sample" and s["is_observed"]))  # fmt: skip
    weight = torch.softmax(torch.stack([torch.as_tensor(w, dtype=torch.float64) for w in log_w]), 0)
    for key, x in scalars({n: torch.stack([d[n] for d in draws]) for n in draws[0]}).items():
        mean = float(weight @ x.double())
        sd = float((weight @ (x.double() - mean).square()).sqrt())
        assert mean == pytest.approx(known.truth[key][0], abs=0.15 * known.truth[key][1])
        assert sd == pytest.approx(known.truth[key][1], rel=0.25)


def test_the_bounded_map_is_one():
    z = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    x = Bounded()(z)
    (slope,) = torch.autograd.grad(x.sum(), z)
    torch.testing.assert_close(Bounded().log_abs_det_jacobian(z, x), slope.log())
    torch.testing.assert_close(Bounded().inv(x), z)
    assert float(x.detach().abs().max()) < BOUND


def test_about_half_of_the_posteriors_are_held_out():
    assert 0.35 < sum(map(held_out, POSTERIORS)) / len(POSTERIORS) < 0.65
