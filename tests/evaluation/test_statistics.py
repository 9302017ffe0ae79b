"""Statistics of the records against numbers worked out by hand, and PSIS against ArviZ."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats
from torch import nn

from vi_flows.data import load
from vi_flows.diagnostics import active_units
from vi_flows.evaluation.nll import (
    NLLResult,
    bootstrap_interval,
    bootstrap_intervals,
    half_width,
    interval_in_words,
    student_half_width,
)
from vi_flows.evaluation.psis import psis, usable_k_hat
from vi_flows.training import ImageTrainConfig
from vi_flows.training.tasks.image import ImageEvaluationSettings, ImageFlowTask


@pytest.mark.parametrize("size", [100, 400, 900, 3600])  # tails of 20 = S/5, then 60, 90 and 180 = 3√S
@pytest.mark.parametrize("scale", [0.6, 0.9, 1.5])
def test_psis_agrees_with_arviz(size, scale):
    """Target N(0, 1), proposal N(0, scale²); ArviZ takes the negative of the log-weights (as of log-likelihoods).

    ArviZ rounds 3√S down, R's loo and this package up; squares of S have nothing to round.
    """
    z = scale * torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    log_w = -0.5 * z.square() + 0.5 * (z / scale).square() + math.log(scale)
    ours = psis(log_w)
    smoothed, k_hat = array_stats.psislw(-log_w.numpy())
    assert ours.k_hat.item() == pytest.approx(float(k_hat), abs=1e-6)
    np.testing.assert_allclose(ours.log_weights.numpy(), smoothed, atol=1e-6)


def coin(size):
    """Half zeros, half ones: the mean has standard error 1/(2√size)."""
    return torch.arange(size).remainder(2).double()


def test_smoothing_gives_no_mass_to_what_has_none():
    """150 of 4000 weights are not zero, and the tail holds 190: they stay as they are, and so does their mean."""
    torch.manual_seed(0)
    log_w = torch.full((4000, 2), -math.inf, dtype=torch.float64)
    log_w[:150, 0] = 0.1 * torch.randn(150, dtype=torch.float64)
    log_w[:, 1] = torch.randn(4000, dtype=torch.float64)
    found = psis(log_w)
    assert bool((found.log_weights[150:, 0] == -math.inf).all())
    assert float(found.log_mean_weight[0]) == pytest.approx(float(log_w[:150, 0].logsumexp(0)) - math.log(4000))
    alone = psis(log_w[:, 1])
    assert float(found.log_mean_weight[1]) == pytest.approx(float(alone.log_mean_weight))
    assert not torch.equal(alone.log_weights, log_w[:, 1] - log_w[:, 1].logsumexp(0))  # this one is smoothed


@pytest.mark.parametrize("spread", [400.0, 800.0])
def test_weights_that_vanish_beside_the_largest_are_no_law(spread):
    torch.manual_seed(0)
    for log_w in (
        spread * torch.randn(4000).double(),
        torch.cat([torch.zeros(1), torch.full((3999,), -1000.0)]).double(),
    ):
        found = psis(log_w)
        assert float(found.log_mean_weight) == pytest.approx(float(log_w.logsumexp(0)) - math.log(4000))
        assert float(found.k_hat) > 1


def test_the_shape_up_to_which_weights_can_be_used():
    """Vehtari et al. (2024): 1 − 1/log₁₀ S, at most 0.7, which it is from S = 10^(1/0.3) = 2154.4 on."""
    assert usable_k_hat(100) == 0.5
    assert usable_k_hat(2154) < 0.7 == usable_k_hat(2155)
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        usable_k_hat(1)


def test_the_bootstrap_interval_covers_95_percent():
    """Resampled means are binomial: 0.5 ± 1.96 · 0.005 = 0.5 ± 0.0098 (90 % would be ± 0.00822)."""
    values = coin(10_000)
    result = NLLResult(values, values, values, values, values, 1, 1, 0)
    for low, high in (bootstrap_interval(values), result.summary()["interval"]):
        assert low == pytest.approx(0.4902, abs=8e-4)
        assert high == pytest.approx(0.5098, abs=8e-4)
    low, high = bootstrap_interval(values, level=0.5)  # ± 0.6745 · 0.005
    assert [low, high] == pytest.approx([0.49663, 0.50337], abs=4e-4)


def test_intervals_of_several_quantities_are_those_of_each():
    values = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).double()
    several = bootstrap_intervals(values, 0.8, 450, 7)
    counts = np.random.default_rng(7).multinomial(50, np.full(50, 1 / 50), size=450)
    for row, found in zip(values, several, strict=True):
        assert found == pytest.approx(bootstrap_interval(row, 0.8, 450, 7), abs=1e-12)
        assert found == pytest.approx(np.quantile(counts @ row.numpy() / 50, [0.1, 0.9]), abs=1e-12)
    with pytest.raises(ValueError, match="got 0 and 5"):
        bootstrap_intervals(torch.zeros(3, 0), resamples=5)


@pytest.mark.parametrize("level", [0.0, 1.0, 2.0, math.nan])
def test_levels_that_are_none_are_refused(level):
    """Of level 0 the bootstrap had an interval without width, of 2 Student's was NaN."""
    for interval in (bootstrap_interval, lambda values, level: student_half_width(values.tolist(), level)):
        with pytest.raises(ValueError, match=f"level must lie between 0 and 1, got {level}"):
            interval(torch.arange(5.0), level)


def test_a_single_row_has_no_interval():
    assert all(math.isnan(end) for end in bootstrap_interval(torch.tensor([3.0])))
    assert all(math.isnan(end) for pair in bootstrap_intervals(torch.zeros(2, 1)) for end in pair)
    assert math.isnan(half_width(torch.tensor([3.0])))
    assert interval_in_words((math.nan, math.nan), 3) == "no interval of a single row"
    assert interval_in_words((1.0, 2.5), 2) == "95 % interval [1.00, 2.50]"


class FixedBits(nn.Module):
    """An image density whose first four images cost 1, 2, 3 and 4 bits/dim."""

    num_dims = 64

    def condition(self, context):
        return self

    def bits_per_dim(self, images, num_draws):
        return torch.tensor([1.0, 2.0, 3.0, 4.0])

    def encode(self, images):
        return images

    def decode(self, latents):
        return latents


def test_the_interval_of_bits_per_dim_is_196_standard_errors():
    """Mean 2.5, s = √(5/3) = 1.2909944, 1.96 s/√4 = 1.2651746; 2.5 bits · ln 2 · 64 = 110.90355 nats."""
    data = load("digits")
    task = ImageFlowTask(ImageTrainConfig(), data)
    task.module = FixedBits()
    record, scores = task.evaluate(data.test, ImageEvaluationSettings(limit=4, num_samples=1), False)
    assert scores["bits_per_dim"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert record["bits_per_dim"] == 2.5
    assert record["interval"] == pytest.approx([1.2348254, 3.7651746], abs=1e-6)
    assert record["nll"] == pytest.approx(110.90355, abs=1e-4)


def test_a_unit_is_active_above_a_variance_of_one_hundredth():
    """Rows ±a have variance 2a²: 0.0200, 0.0098, 0.0128 and 0.08 (all but the last below 0.1)."""
    a = torch.tensor([0.1, 0.07, 0.08, 0.2])
    assert active_units(torch.stack([a, -a])).tolist() == [True, False, True, True]
