"""The words, the numbers and the picture of a calibration check, on ranks that are written down."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom

from vi_flows.diagnostics.calibration import (
    JOINT,
    LIKELIHOOD,
    Calibration,
    _check_counts,
    _entry_name,
    _fractions,
    _judged,
    _kind,
    _rank,
    _ranks_of_sites,
    expected_coverage,
    simulation_based_calibration,
)
from vi_flows.diagnostics.uniformity import NUM_NULL, Band, ecdf_band

EVEN = torch.arange(100)  # of 0 … 99: as uniform as can be


def check(ranks, num_draws=99, **changes):
    values = {
        "verdict": "calibrated", "reason": "as it should be", "ranks": ranks, "num_draws": num_draws,
        "p_values": {name: 0.5 / (n + 1) for n, name in enumerate(ranks)},
        "asymmetry": dict.fromkeys(ranks, 1.0),
    }  # fmt: skip
    return Calibration(**{**values, **changes})


def test_defaults():
    def of(function):
        return {n: p.default for n, p in inspect.signature(function).parameters.items() if p.default is not p.empty}

    assert of(expected_coverage) == {"num_replications": 1000, "num_draws": 200, "seed": 0, "progress": True}
    assert of(simulation_based_calibration) == {
        "num_replications": 100, "num_draws": 200, "data": None, "fit_options": None, "seed": 0, "progress": True,
        "model_kwargs": None,
    }  # fmt: skip
    for counts in ((19, 20), (20, 19)):
        with pytest.raises(ValueError, match="at least 20 replications and 20 draws"):
            _check_counts(*counts)
    _check_counts(20, 20)


def test_ranks():
    draws = torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0]])
    assert _rank(torch.tensor([2.5, 4.0]), draws).tolist() == [2, 0]
    torch.manual_seed(0)
    ties = torch.cat([_rank(torch.tensor([2.0]), torch.tensor([[2.0], [2.0], [1.0]])) for _ in range(300)])
    assert sorted(set(ties.tolist())) == [1, 2, 3]
    assert [(ties == rank).float().mean().item() for rank in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.1)
    assert _fractions(torch.tensor([0, 4, 9]), 9).tolist() == pytest.approx([0.05, 0.45, 0.95])
    assert _entry_name("a", torch.Size([]), 0) == "a"
    assert _entry_name("a", torch.Size([2, 3]), 4) == "a[1, 1]"
    # A triangular factor: what is always zero has no rank.
    truth = {"l": torch.tensor([[[1.0, 0.0], [2.0, 3.0]]]), "s": torch.tensor([0.5])}
    many = {
        "l": torch.tensor([[[[0.0, 0.0], [9.0, 1.0]]], [[[0.5, 0.0], [1.0, 2.0]]]]),
        "s": torch.tensor([[0.1], [0.9]]),
    }
    found = _ranks_of_sites(truth, many)
    assert {name: rank.tolist() for name, rank in found.items()} == {
        "l[0, 0]": [2], "l[1, 0]": [1], "l[1, 1]": [2], "s": [1],
    }  # fmt: skip


def test_coverage_counts_the_middle_and_for_the_joint_the_highest():
    """Fractions 0.005, 0.015 … 0.995: of the central half 50 of 100, of the lowest half 50, too; 90 of 90 %."""
    both = check({"a": EVEN, JOINT: EVEN})
    assert both.coverage(0.5) == {"a": 0.5, JOINT: 0.5}
    assert both.coverage(0.9) == {"a": 0.9, JOINT: 0.9}
    low = check({"a": torch.full((50,), 2), JOINT: torch.full((50,), 2)})  # at 0.025
    assert low.coverage(0.9) == {"a": 0.0, JOINT: 1.0}
    assert low.coverage(0.96) == {"a": 1.0, JOINT: 1.0}
    assert low.num_replications == 50
    for level in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            both.coverage(level)


def test_the_report():
    lines = str(check({"theta": EVEN, "b": torch.full((100,), 49)})).splitlines()
    assert lines[:2] == ["verdict  calibrated: as it should be", "       50 %    90 %    p"]
    # Clopper and Pearson's interval of 90 of 100 is 82.4 … 95.1 %; of 100 of 100, 96.4 … 100 %.
    assert lines[2:] == [
        "b      100.0%  100.0% (96.4%…100.0%)  0.25", "theta   50.0%   90.0% (82.4%…95.1%)  0.5",
    ]  # fmt: skip
    many = str(check({f"x{n}": EVEN for n in range(14)})).splitlines()
    assert len(many) == 2 + 12 + 1
    assert many[-1] == "and 2 more"
    assert many[2].startswith("x13")  # the least p-value
    assert len(str(check({f"x{n}": EVEN for n in range(12)})).splitlines()) == 14


OFTEN, HOLD = "the truth too often (mean rank", "90 % hold the truth in"


def uniform(shift=0.0, scale=1.0, count=200):
    return 0.5 + shift + scale * ((np.arange(count) + 0.5) / count - 0.5)


@pytest.mark.parametrize(
    ("name", "u", "verdict", "words"),
    [
        ("a", uniform(0.1, 0.8), "biased", f"draws of 'a' lie below {OFTEN} 0.60 in place of 0.50)"),
        ("a", uniform(-0.1, 0.8), "biased", f"draws of 'a' lie above {OFTEN} 0.40 in place of 0.50)"),
        ("a", uniform(0.0, 0.5), "under-confident", f"intervals of 'a' of {HOLD} 100% of the replications"),
        ("a", np.repeat([0.01, 0.99], 50), "over-confident",
         f"intervals of 'a' of {HOLD} 0% of the replications"),
        (JOINT, uniform(0.1, 0.8), "over-confident",
         "regions of highest density of 90 % hold the truth in 88% of the replications"),
        (JOINT, uniform(-0.1, 0.8), "under-confident",
         "regions of highest density of 90 % hold the truth in 100% of the replications"),
        (LIKELIHOOD, uniform(0.1, 0.8), "not calibrated",
         "draws fit the data less than the truth does: the ranks of the log joint are not even"),
        (LIKELIHOOD, uniform(-0.1, 0.8), "not calibrated",
         "draws fit the data more than the truth does: the ranks of the log joint are not even"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_words(name, u, verdict, words):
    assert _kind(name, u) == (verdict, words)


def test_a_bias_and_a_spread_are_weighed_by_their_standard_errors():
    """√(12 n) (mean − ½) against √(180 n) (variance about ½ − 1/12).

    Of 100 numbers ½ ± a about ½ + m the variance is a² + m²: with m = 0.02 the first is 0.69;
    with a² + m² = 1/12 + 0.004 the second is 0.54, with 1/12 + 0.006 it is 0.80.
    """
    for extra, verdict in ((0.004, "biased"), (0.006, "over-confident"), (-0.006, "under-confident")):
        a = math.sqrt(1 / 12 + extra - 0.02**2)
        assert _kind("a", np.repeat([0.52 - a, 0.52 + a], 50))[0] == verdict


def test_the_verdict_of_even_ranks_says_how_well_it_can_tell():
    """2.58 √(0.09/100) = 7.7 %, and 2.58 √(0.09/1000) = 2.4 %."""
    found = _judged({"a": EVEN, "b": EVEN}, 99)
    assert found.verdict == "calibrated"
    assert found.reason == (
        "the ranks of all 2 quantities are as uniform as 100 replications can tell "
        "(coverages of 90 % intervals to ± 8 %)"
    )
    assert found.asymmetry["a"] == pytest.approx(1.0, abs=0.01)
    assert "± 2 %" in _judged({"a": EVEN.repeat(10)}, 99).reason


def test_the_verdict_of_uneven_ranks_is_of_the_worst_that_tells_most():
    low, lower = torch.arange(100) // 2, torch.arange(100) // 4
    found = _judged({"a": low, "b": lower, "c": EVEN, LIKELIHOOD: lower // 2}, 99)
    assert found.verdict == "biased"
    assert found.reason.startswith("draws of 'b' lie above the truth")
    assert found.reason.endswith(" (and 2 more of 4 quantities)")
    assert found.asymmetry["b"] < 1e-6
    alone = _judged({"a": low, "c": EVEN}, 99)
    assert "more of" not in alone.reason
    assert _judged({LIKELIHOOD: lower, "c": EVEN}, 99).verdict == "not calibrated"


def test_the_band_by_hand():
    """Points are the ranks that are multiples of two hundredths of the draws, and the counts are binomial."""
    band = Band(30, 200)
    assert len(band.points) == 100
    assert band.points[:3].tolist() == pytest.approx([1 / 201, 3 / 201, 5 / 201])
    assert NUM_NULL == 2000
    null = band._null
    assert len(null) == 2000
    assert (np.diff(null) >= 0).all()
    first = np.quantile(null, 0.01)
    for level, gamma in ((0.9, np.quantile(null, 0.1)), (0.99, first), (0.999, 0.1 * first), (0.9999, 0.01 * first)):
        low, high = band.limits(level)
        assert low == pytest.approx(binom.ppf(gamma / 2, 30, band.points) / 30)
        assert high == pytest.approx(binom.ppf(1 - gamma / 2, 30, band.points) / 30)
    # All ranks zero: at the first point all 30 are at or below, which has probability (1/201)³⁰.
    zeros = np.zeros(30, dtype=int)
    gamma = 2 * (1 / 201) ** 30
    assert band.p_value(zeros) == pytest.approx(0.01 * gamma / first, rel=1e-6)
    middle = np.round(np.linspace(3, 197, 30)).astype(int)
    assert band.p_value(middle) > 0.5
    assert ecdf_band(30, 200) is ecdf_band(30, 200)


def test_a_p_value_is_the_share_of_simulated_sets_that_are_as_far_out():
    band = Band(30, 200)
    ranks = np.random.default_rng(5).integers(0, 120, 30)  # biased, within what was simulated
    gamma = band._gamma(band.counts(ranks))
    share = (1 + np.sum(band._null <= gamma * (1 + 1e-9))) / 2001
    assert band.p_value(ranks) == pytest.approx(share if gamma >= np.quantile(band._null, 0.01) else 0.01 * gamma /
                                                np.quantile(band._null, 0.01))  # fmt: skip
    even = np.random.default_rng(6).integers(0, 201, 30)
    gamma = band._gamma(band.counts(even))
    assert gamma > np.quantile(band._null, 0.01)
    assert band.p_value(even) == pytest.approx((1 + np.sum(band._null <= gamma * (1 + 1e-9))) / 2001)


def test_the_picture_holds_the_numbers(tmp_path):
    """A hundred even ranks in 20 bins: 5 each, 5 ± 2.58 √(100/20 · 19/20) = 5 ± 5.62 expected."""
    names = [f"x{n}" for n in range(8)]
    ranks = {name: EVEN for name in names} | {"x7": torch.zeros(100, dtype=torch.long)}
    figure = check(ranks, verdict="biased").plot(tmp_path / "new" / "folder" / "picture.png")
    check(ranks).plot(tmp_path / "new" / "folder" / "again.png")
    assert figure.get_suptitle() == "biased (100 replications)"
    assert figure.get_size_inches().tolist() == pytest.approx([2.6 * 6, 4.6])
    top, bottom = figure.axes[:6], figure.axes[6:]
    assert len(bottom) == 6
    assert [axis.get_title() for axis in top] == ["x7", "x6", "x5", "x4", "x3", "x2"]  # by their p-values
    assert (top[0].get_ylabel(), bottom[0].get_ylabel(), top[1].get_ylabel()) == ("replications", "ECDF − uniform", "")
    bars = [patch for patch in top[1].patches if patch.get_width() < 0.06]
    assert [bar.get_height() for bar in bars] == [5.0] * 20
    assert bars[1].get_x() == pytest.approx(0.05)
    (span,) = (patch for patch in top[1].patches if patch.get_width() > 0.06)
    half = 2.58 * math.sqrt(5 * 0.95)
    assert (span.get_y(), span.get_height()) == (pytest.approx(5 - half), pytest.approx(2 * half))
    assert top[0].get_xlim() == bottom[0].get_xlim() == (0.0, 1.0)
    band = ecdf_band(100, 99)
    curve, line = bottom[1].lines
    assert curve.get_xdata() == pytest.approx(band.points)
    assert curve.get_ydata() == pytest.approx(np.zeros(len(band.points)), abs=1e-12)  # as uniform as can be
    assert list(line.get_ydata()) == [0, 0]
    assert bottom[0].lines[0].get_ydata() == pytest.approx(1 - band.points)
    assert (line.get_linewidth(), curve.get_linewidth()) == (0.5, 1.0)
    assert (span.get_alpha(), span.get_linewidth()) == (0.2, 0.0)
    assert (bottom[1].collections[0].get_alpha(), list(bottom[1].collections[0].get_linewidth())) == (0.2, [0.0])
    with Image.open(tmp_path / "new" / "folder" / "picture.png") as picture:
        assert picture.size == (1716, 506)  # 110 points an inch
    low, high = band.limits(1 - 0.01 / 8)
    drawn = bottom[1].collections[0].get_paths()[0].get_extents()
    assert (drawn.y0, drawn.y1) == (pytest.approx((low - band.points).min()), pytest.approx((high - band.points).max()))
    few = check({"a": torch.arange(11)}, num_draws=10).plot()
    assert few.get_size_inches().tolist() == pytest.approx([7.8, 4.6])
    assert sum(patch.get_width() < 0.1 for patch in few.axes[0].patches) == 11  # no more bins than ranks
