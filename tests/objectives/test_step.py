"""One optimizer step: clipping by hand-worked numbers, stacks, and the policy for numbers that are not finite."""

from __future__ import annotations

import math

import pytest
import torch

from vi_flows.objectives.step import OptimizerStep


def never(figures):
    raise AssertionError(figures)


def test_the_gradient_is_scaled_to_the_largest_norm():
    """θ = (0, 0), loss 3θ₁ + 4θ₂: norm 5; clipped to 1 and at rate 0.5, θ = −0.5 (0.6, 0.8)."""
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    step = OptimizerStep(torch.optim.SGD([theta], lr=0.5), never, max_norm=1.0)
    weights = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert step((theta * weights).sum() + 7, torch.tensor(2.0)) == [[7.0, 2.0, 5.0]]
    torch.testing.assert_close(theta.detach(), torch.tensor([-0.3, -0.4], dtype=torch.float64), atol=1e-6, rtol=0)
    step.max_norm = math.inf
    step((theta * weights).sum())
    torch.testing.assert_close(theta.detach(), torch.tensor([-1.8, -2.4], dtype=torch.float64), atol=1e-6, rtol=0)


def test_stacked_models_are_clipped_one_by_one():
    """Norms 5 and 0.5: the first is scaled to 1, the second is left."""
    theta = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    step = OptimizerStep(torch.optim.SGD([theta], lr=1.0), never, max_norm=1.0, stacked=True)
    weights = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64)
    assert step((theta * weights).sum(1)) == [[0.0, 5.0], [0.0, pytest.approx(0.5)]]
    expected = torch.tensor([[-0.6, -0.8], [-0.3, -0.4]], dtype=torch.float64)
    torch.testing.assert_close(theta.detach(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("what", ["loss", "watched", "gradient"])
def test_a_number_that_is_not_finite_updates_nothing(what):
    theta = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.1)
    told = []
    step = OptimizerStep(optimizer, told.append)
    if what == "gradient":
        theta.register_hook(lambda grad: grad * math.inf)
    loss = theta.sum() + (math.nan if what == "loss" else 0.0)
    assert step(loss, torch.tensor(math.inf if what == "watched" else 0.0)) is None
    assert theta.item() == 1.0
    assert not optimizer.state
    ((found_loss, watched, norm),) = told[0]
    assert [math.isfinite(found_loss), math.isfinite(watched), math.isfinite(norm)] == [
        what != "loss", what != "watched", what != "gradient",
    ]  # fmt: skip


def test_the_policy_may_stop():
    theta = torch.ones(1, requires_grad=True)

    def stop(figures):
        raise FloatingPointError("stop")

    with pytest.raises(FloatingPointError, match="stop"):
        OptimizerStep(torch.optim.SGD([theta], lr=1.0), stop)(theta.sum() * math.nan)
    assert theta.item() == 1.0
