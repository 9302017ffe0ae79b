"""The estimators of evidence on weights that are known, with numbers worked out by hand."""

from __future__ import annotations

import inspect
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Independent, Normal

from vi_flows.evaluation import (
    NOT_KEPT,
    AISResult,
    annealed_evidence,
    estimate_nll,
    hmc_step,
    pilot_step_sizes,
    pyro_log_weights,
    reverse_evidence,
)
from vi_flows.evaluation import ais as ais_module
from vi_flows.evaluation.compare import paired_bootstrap
from vi_flows.evaluation.nll import NLLResult, bootstrap_interval, half_width
from vi_flows.evaluation.psis import psis
from vi_flows.vae import AISSettings, annealing, evaluate_vae, evidence


def defaults(function):
    return {name: p.default for name, p in inspect.signature(function).parameters.items() if p.default is not p.empty}


def test_what_the_published_figures_were_made_with_where_nothing_was_said():
    assert defaults(estimate_nll) == {
        "num_samples": 5000, "num_coarse": 100, "rows_per_chunk": 20, "samples_per_chunk": 100, "seed": 0,
        "progress": False, "parts": NOT_KEPT, "part_name": "importance",
    }  # fmt: skip
    assert defaults(bootstrap_interval) == {"level": 0.95, "resamples": 2000, "seed": 0}
    assert defaults(evaluate_vae) == {
        "num_samples": 5000, "ais": None, "refinement": None, "seed": 0, "progress": False, "parts": NOT_KEPT,
    }  # fmt: skip
    assert defaults(annealed_evidence) == {"chains": 8, "leapfrog": 8, "surrogate": None}
    assert defaults(reverse_evidence) == {"chains": 8, "leapfrog": 8, "surrogate": None}
    assert defaults(pilot_step_sizes) == {
        "chains": 4, "leapfrog": 8, "stride": 4, "initial": 0.2, "rate": 0.15, "surrogate": None,
    }  # fmt: skip
    assert (ais_module.TARGET_ACCEPTANCE, annealing.MOMENT_DRAWS) == (0.65, 2000)
    assert (evidence.PILOT_CHAINS, evidence.PILOT_VISITS) == (4, 200)
    settings = AISSettings()
    assert (settings.chains, settings.temperatures, settings.leapfrog) == (8, 800, 8)
    assert (settings.start, settings.images, settings.model_images) == ("gaussian", 1000, 100)
    assert settings.forces == "float32"


def weights(rows, draws):
    """Log-weights that count on from draw to draw: row r has the weights r, 2r, 3r …"""
    weights.drawn += [draws]
    first = sum(weights.drawn[:-1])
    return torch.log(torch.arange(first + 1, first + draws + 1).double()[:, None] * rows[:, 0])


def test_the_estimate_is_the_mean_weight_over_all_chunks():
    """Row 2 has weights 2, 4, 6, 8, 10: mean 6; of the first three, 4. ESS (Σw)²/Σw² = 900/220."""
    weights.drawn = []
    found = estimate_nll(weights, torch.tensor([[2.0]]), 5, num_coarse=3, samples_per_chunk=2)
    assert weights.drawn == [2, 2, 1]
    assert found.nll.item() == pytest.approx(-math.log(6))
    assert found.nll_coarse.item() == pytest.approx(-math.log(4))
    assert found.elbo.item() == pytest.approx(math.log(2**5 * 120) / 5)
    assert found.ess.item() == pytest.approx(900 / 220)
    assert math.isnan(found.k_hat.item())  # too few draws
    assert (found.num_samples, found.num_coarse, found.seed) == (5, 3, 0)
    weights.drawn = []
    few = estimate_nll(weights, torch.tensor([[1.0]]), 2)
    assert few.num_coarse == 2
    assert few.nll_coarse.item() == few.nll.item() == pytest.approx(-math.log(1.5))


def test_rows_of_a_chunk_draw_from_its_own_seed():
    def drawn(rows, draws):
        return torch.randn(draws, len(rows), dtype=torch.float64)

    found = estimate_nll(drawn, torch.zeros(5, 1), 1, rows_per_chunk=2, seed=7)
    for start, size in ((0, 2), (2, 2), (4, 1)):
        torch.manual_seed(7 * 1_000_003 + start)
        assert torch.equal(found.elbo[start : start + size], torch.randn(1, size, dtype=torch.float64)[0])


def test_broken_weights_are_named_by_their_row():
    def broken(rows, draws):
        return torch.where(rows[:, 0] == 3, torch.nan, 0.0).double().expand(draws, len(rows))

    with pytest.raises(FloatingPointError, match="log-weight of row 3 is NaN"):
        estimate_nll(broken, torch.arange(6.0)[:, None], 4, rows_per_chunk=2)
    with pytest.raises(ValueError, match=r"must give \(4, 2\) \(draws, rows\), got \(2,\)"):
        estimate_nll(lambda rows, draws: torch.zeros(2), torch.zeros(2, 1), 4)


def test_weights_of_a_pyro_program_must_be_one_a_row():
    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0] / 2, 0.5**0.5))

    def apart(x):
        for i in pyro.plate("rows", len(x)):
            pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))

    x = torch.tensor([[0.0], [2.0]])
    found = pyro_log_weights(model, guide)(x, 3)  # the guide is exact: every weight is N(x; 0, √2)
    exact = Normal(0.0, 2**0.5).log_prob(x[:, 0])
    torch.testing.assert_close(found, exact.expand(3, 2), atol=1e-5, rtol=0)
    weights, runs = pyro_log_weights(lambda x: runs.append(1) or model(x), guide), []
    estimate_nll(weights, x, 20, samples_per_chunk=4)
    assert len(runs) == 20 // 4 + 1  # a run a chunk, and one to see the plates
    with pytest.raises(ValueError, match=r"expected weights of shape \(3, 2\), got"):
        pyro_log_weights(apart, apart)(x, 3)


def test_the_summary_of_the_estimate_by_hand():
    column = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    k_hat = torch.tensor([0.1, 0.7, 0.8], dtype=torch.float64)
    found = NLLResult(column, column + 1, column + 2, 10 * column, k_hat, 50, 5, 4)
    low, high = found.summary().pop("interval")
    assert 1.0 <= low < 3.0 < high <= 6.0
    assert found.summary() | {"interval": 0} == {
        "nll": 3.0, "interval": 0, "elbo": 5.0, "nll_5": 4.0, "num_samples": 50, "num_rows": 3, "mean_ess": 30.0,
        "median_k_hat": 0.7, "share_k_hat_above_0.7": pytest.approx(1 / 3), "evaluation_seed": 4,
    }  # fmt: skip
    assert {name: values.tolist() for name, values in found.scores().items() if name != "k_hat"} == {
        "nll": [1, 2, 6], "nll_5": [2, 3, 7], "elbo": [3, 4, 8], "ess": [10, 20, 60],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("k_hat", "median"),
    [([0.9, 0.1], 0.5), ([0.1, 0.6, 0.8, 0.2], 0.4), ([0.3], 0.3), ([-math.inf, -math.inf, 0.5, 0.7], -math.inf)],
)
def test_the_median_of_an_even_number_of_shapes_lies_between_the_middle_two(k_hat, median):
    column = torch.ones(len(k_hat), dtype=torch.float64)
    shapes = torch.tensor(k_hat, dtype=torch.float64)
    assert NLLResult(column, column, column, column, shapes, 50, 5, 0).summary()["median_k_hat"] == pytest.approx(
        median
    )
    unknown = NLLResult(column, column, column, column, shapes.index_fill(0, torch.tensor([0]), math.nan), 50, 5, 0)
    assert math.isnan(unknown.summary()["median_k_hat"])


def test_half_widths_and_paired_differences():
    assert half_width(torch.tensor([1.0, 3.0])) == pytest.approx(1.96)  # s = √2, √n = √2
    assert half_width(torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(1.96 / math.sqrt(3))
    assert half_width(torch.tensor([1, 2, 3])) == pytest.approx(1.96 / math.sqrt(3))
    assert math.isnan(half_width(torch.tensor([1.0])))
    with pytest.raises(ValueError, match=r"over rows \(n,\), got values of shape \(3, 2\)"):
        half_width(torch.zeros(3, 2))
    found = paired_bootstrap(torch.tensor([5.0, 7.0, 9.0]), torch.tensor([4.0, 5.0, 6.0]))
    assert found.difference == 2.0
    assert found.interval[0] >= 1.0
    assert found.interval[1] <= 3.0


@pytest.mark.parametrize(("size", "known"), [(20, False), (21, True), (25, True)])
def test_a_tail_has_at_least_five_weights(size, known):
    """A fifth of the weights, rounded up: 4 of 20, 5 of 21."""
    generator = torch.Generator().manual_seed(0)
    assert psis(torch.randn(size, generator=generator)).k_hat.isnan().item() is not known


@pytest.mark.parametrize(
    ("excess", "level", "dtype", "equal"),
    [
        (0.9e-3, 0.0, torch.float64, True),  # less than a thousandth of the weights
        (1.2e-3, 0.0, torch.float64, False),
        (5e-3, 1000.0, torch.float32, True),  # 64 · 2⁻²³ · 1000 = 7.6e-3: what rounding makes of equal weights
        (9e-3, 1000.0, torch.float32, False),
        (5e-3, -1000.0, torch.float32, True),
        (5e-3, 1000.0, torch.float64, False),
    ],
)
def test_weights_that_differ_by_rounding_alone_are_equal(excess, level, dtype, equal):
    log_w = torch.full((100,), level, dtype=dtype)
    log_w[-20:] += torch.linspace(0.1, 1, 20, dtype=dtype) * excess
    assert (psis(log_w).k_hat == -math.inf).item() is equal


# Annealing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_weights", [torch.tensor(0.0), torch.zeros(0), torch.zeros(0, 3)])
def test_no_weights_are_refused(log_weights):
    with pytest.raises(ValueError, match="expected draws along the first dimension"):
        psis(log_weights)


def test_the_temperatures_by_hand():
    """σ(−4) = 0.0179862, σ(−2) = 0.1192029: β₁ of four is 0.1012167/0.9640276 = 0.1049936."""
    betas = ais_module._schedule(4, torch.device("cpu"))
    assert betas.dtype == torch.float64
    assert betas.tolist() == pytest.approx([0.0, 0.1049936, 0.5, 0.8950064, 1.0], abs=1e-7)


def test_one_temperature_is_importance_sampling_from_the_start():
    """Start N(0, 1), joint 2 N(z; 1, 1): log w = log 2 + z − 1/2 at the start's draw, and no HMC step to report."""
    start = Independent(Normal(torch.zeros(3, 1, dtype=torch.float64), 1.0), 1)

    def joint(z):
        return math.log(2) - 0.5 * (z[..., 0] - 1).square() - 0.5 * math.log(2 * math.pi)

    steps = torch.full((2, 3), 0.1, dtype=torch.float64)
    torch.manual_seed(0)
    found = annealed_evidence(joint, start, steps, chains=5)
    torch.manual_seed(0)
    z = start.rsample(torch.Size([5]))[..., 0]
    expected = math.log(2) + z - 0.5
    torch.testing.assert_close(found.log_weights, expected)
    torch.testing.assert_close(found.log_evidence, expected.logsumexp(0) - math.log(5))
    w = expected.exp()
    torch.testing.assert_close(found.effective_chains, w.sum(0).square() / w.square().sum(0))
    assert found.acceptance.isnan().all()
    exact = torch.full((3, 1), 1.0, dtype=torch.float64)
    above = reverse_evidence(joint, start, steps, exact, chains=5)
    torch.testing.assert_close(above.log_weights, torch.full((5, 3), math.log(2) + 0.5, dtype=torch.float64))
    torch.testing.assert_close(above.log_evidence, torch.full((3,), math.log(2) + 0.5, dtype=torch.float64))
    torch.testing.assert_close(above.effective_chains, torch.full((3,), 5.0, dtype=torch.float64))


def test_the_bound_from_above_takes_the_harmonic_mean():
    found = ais_module._result(torch.log(torch.tensor([[1.0], [3.0]]).double()), -1, torch.zeros(1))
    assert found.log_evidence.item() == pytest.approx(math.log(1.5))  # 2 / (1 + 1/3)
    assert found.effective_chains.item() == pytest.approx((4 / 3) ** 2 / (10 / 9))
    below = ais_module._result(torch.log(torch.tensor([[1.0], [3.0]]).double()), 1, torch.zeros(1))
    assert below.log_evidence.item() == pytest.approx(math.log(2))
    with pytest.raises(FloatingPointError, match="row 1 is NaN"):
        ais_module._result(torch.tensor([[0.0, torch.nan]]), 1, torch.zeros(2))


@pytest.mark.parametrize(("step", "leapfrog"), [(0.3, 1), (0.5, 3)])
def test_an_hmc_step_by_hand(step, leapfrog):
    """Of N(0, 1): half a kick, drifts with kicks between, half a kick; accepted by the change of energy."""
    torch.manual_seed(4)
    z = torch.randn(2000, 1, 1, dtype=torch.float64)
    torch.manual_seed(5)
    moved, accept = hmc_step(z, lambda v: -0.5 * v.square().sum(-1), torch.tensor([step]).double(), leapfrog)
    torch.manual_seed(5)
    p = torch.randn_like(z)
    q, energy = z, 0.5 * (z.square() + p.square())
    for _ in range(leapfrog):
        p = p - 0.5 * step * q
        q = q + step * p
        p = p - 0.5 * step * q
    expected = (energy - 0.5 * (q.square() + p.square())).clamp(max=0).exp()[..., 0]
    torch.testing.assert_close(accept, expected)
    taken = torch.rand_like(expected) < expected
    torch.testing.assert_close(moved, torch.where(taken[..., None], q, z))


def test_pilot_steps_rise_where_all_is_accepted_and_are_held_between_visits():
    """On a flat density every proposal is accepted: each visit multiplies the step by exp(0.15 · 0.35)."""
    flat = Independent(Normal(torch.zeros(2, 1, dtype=torch.float64), 1e9), 1)
    table = pilot_step_sizes(flat.log_prob, flat, 5, chains=3, leapfrog=1, stride=2)
    assert table.shape == (6, 2)
    factor = math.exp(0.15 * 0.35)
    # Twenty visits of the first temperature, then one each of 0, 2 and 4; others go on with the last one's.
    powers = [21, 21, 22, 22, 23, 23]
    for row, power in zip(table.tolist(), powers, strict=True):
        assert row == pytest.approx([0.2 * factor**power] * 2, rel=1e-6)


def test_the_summary_of_the_annealing():
    parts = [AISResult(*(torch.full(shape, value) for shape in ((1,), (1,), (1,), (4, 1)))) for value in (2.0, 4.0)]
    joined = AISResult.join(parts)
    assert joined.log_weights.shape == (4, 2)
    assert joined.summary() == {
        "nll": -3.0, "chains": 4, "num_rows": 2, "mean_effective_chains": 3.0, "mean_acceptance": 3.0,
    }  # fmt: skip


def test_weights_that_are_whole_numbers_or_equal_have_a_shape():
    whole = psis(torch.arange(200))
    torch.testing.assert_close(whole.log_weights, psis(torch.arange(200).double()).log_weights)
    assert float(psis(torch.zeros(100)).k_hat) == -math.inf
    assert math.isnan(float(psis(torch.zeros(4)).k_hat))
