"""Annealed importance sampling against a linear-Gaussian model, whose evidence is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from vi_flows.evaluation import AISResult, annealed_evidence, hmc_step, pilot_step_sizes, reverse_evidence

DIM, ROWS, NOISE = 3, 400, 0.5


class Model:
    """``z ~ N(0, I)``, ``x = A z + noise``; ``ROWS`` rows drawn with the ``z`` they came from."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        a = torch.randn(5, DIM, dtype=torch.float64)
        zero = torch.zeros(ROWS, DIM, dtype=torch.float64)
        self.a, self.start = a, Independent(Normal(zero, 1.0), 1)
        self.z = torch.randn(ROWS, DIM, dtype=torch.float64)
        self.x = self.z @ a.T + NOISE * torch.randn(ROWS, 5, dtype=torch.float64)
        cov = a @ a.T + NOISE**2 * torch.eye(5, dtype=torch.float64)
        self.exact = MultivariateNormal(torch.zeros(5, dtype=torch.float64), cov).log_prob(self.x)

    def log_joint(self, z: Tensor) -> Tensor:
        return self.start.log_prob(z) + Normal(z @ self.a.T, NOISE).log_prob(self.x).sum(-1)

    def bounds(self, temperatures: int, chains: int = 4) -> tuple[AISResult, AISResult]:
        torch.manual_seed(0)
        steps = pilot_step_sizes(self.log_joint, self.start, temperatures, leapfrog=4, stride=1)
        below = annealed_evidence(self.log_joint, self.start, steps, chains=chains, leapfrog=4)
        above = reverse_evidence(self.log_joint, self.start, steps, self.z, chains=chains, leapfrog=4)
        return below, above


def test_the_two_bounds_bracket_the_exact_evidence_and_close() -> None:
    model = Model()
    gaps = []
    for temperatures, tolerance in ((10, 2.5), (150, 0.4)):
        below, above = model.bounds(temperatures)
        low = (below.log_evidence - model.exact).mean().item()
        high = (above.log_evidence - model.exact).mean().item()
        assert -tolerance < low < 0 < high < tolerance
        gaps.append(high - low)
    assert gaps[1] < 0.3 * gaps[0]
    # Both weights are unbiased, which is what makes the two means bounds.
    assert (below.log_weights - model.exact).exp().mean().item() == pytest.approx(1, abs=0.1)
    assert (model.exact - above.log_weights).exp().mean().item() == pytest.approx(1, abs=0.1)
    assert 0.5 < below.acceptance.mean() < 0.85
    assert below.log_weights.dtype == torch.float64
    assert (below.effective_chains >= 1).all()
    assert (below.effective_chains <= 4 + 1e-9).all()


def test_one_hmc_step_leaves_the_target_invariant() -> None:
    torch.manual_seed(1)
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
    target = Independent(Normal(torch.ones(1, 2, dtype=torch.float64), scale), 1)
    z = target.sample(torch.Size([100_000]))
    moved, accept = hmc_step(z, target.log_prob, torch.tensor([0.7], dtype=torch.float64), 3)
    assert 0.3 < accept.mean() < 0.95  # so that the Metropolis step has work to do
    standard = ((moved - 1) / scale).squeeze(1)
    assert standard.mean(0).abs().max() < 0.015  # 4.7 standard errors
    assert (standard.square().mean(0) - 1).abs().max() < 0.021
    assert (standard[:, 0] * standard[:, 1]).mean().abs() < 0.015


def test_forces_of_another_density_leave_the_weights_unbiased() -> None:
    """Rounded forces as bfloat16 gives them, and forces that are a fifth too weak: acceptance pays, not the target."""
    model = Model()

    def rounded(z: Tensor) -> Tensor:
        return model.log_joint(z.bfloat16().double())

    for surrogate in (rounded, lambda z: 0.8 * model.log_joint(z)):
        torch.manual_seed(0)
        settings = {"leapfrog": 4, "surrogate": surrogate}
        steps = pilot_step_sizes(model.log_joint, model.start, 60, stride=1, **settings)
        below = annealed_evidence(model.log_joint, model.start, steps, chains=4, **settings)
        assert (below.log_weights - model.exact).exp().mean().item() == pytest.approx(1, abs=0.15)  # 3.5 se


def test_a_path_between_equal_ends_has_weights_zero() -> None:
    start = Model().start
    steps = torch.full((8, ROWS), 0.3, dtype=torch.float64)
    result = annealed_evidence(start.log_prob, start, steps, chains=2, leapfrog=2)
    assert result.log_weights.abs().max() == 0
    back = reverse_evidence(start.log_prob, start, steps, start.sample(), chains=2, leapfrog=2)
    assert back.log_evidence.abs().max() < 1e-12


def test_wrong_arguments_are_refused() -> None:
    start = Model().start
    steps = torch.full((3, ROWS), 0.3, dtype=torch.float64)
    with pytest.raises(ValueError, match="chains must be at least 1"):
        annealed_evidence(start.log_prob, start, steps, chains=0)
    with pytest.raises(ValueError, match="log-density"):
        annealed_evidence(lambda z: z, start, steps)
    with pytest.raises(FloatingPointError, match="row 0 is NaN"):
        annealed_evidence(lambda z: z.sum(-1) + torch.nan, start, steps)
