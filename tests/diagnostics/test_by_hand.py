"""The verdict, its words and what it rests on, on numbers worked out by hand."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from PIL import Image
from torch.distributions import Independent, MultivariateNormal, Normal

from vi_flows.diagnostics import diagnose, elsewhere
from vi_flows.diagnostics.diagnose import _moments, _short
from vi_flows.diagnostics.elsewhere import missed_mass
from vi_flows.diagnostics.report import Diagnosis, _share
from vi_flows.diagnostics.verdict import judge
from vi_flows.evaluation.psis import PSIS, psis, usable_k_hat
from vi_flows.guides.resampling import resampled_indices
from vi_flows.guides.start.ascent import FAR, ascend, between, overdispersed


def weights(k_hat, share, num_samples=4000):
    k, ess = torch.as_tensor(k_hat, dtype=torch.float64), torch.as_tensor(share, dtype=torch.float64) * num_samples
    return PSIS(torch.zeros(num_samples), k, ess, torch.zeros(()))


MOVED = {"a": torch.tensor([0.02, -0.11]), "b": torch.tensor(0.0)}
STILL = {"a": torch.tensor([0.02, -0.09]), "b": torch.tensor(0.0)}
SAME = {"a": torch.tensor([1.0, 1.09]), "b": torch.tensor(0.92)}
WIDER = {"a": torch.tensor([1.0, 1.11]), "b": torch.tensor(1.0)}
NARROWER = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor(0.90)}


@pytest.mark.parametrize(
    ("k_hat", "share", "shift", "ratio", "verdict"),
    [
        (0.3, 0.6, STILL, SAME, "ok"),
        (0.5, 0.5, STILL, SAME, "ok"),
        (0.3, 0.49, STILL, SAME, "use importance weights"),
        (0.3, 0.6, MOVED, SAME, "use importance weights"),  # by more than a tenth of a standard deviation
        (0.3, 0.6, STILL, WIDER, "use importance weights"),  # by more than a tenth
        (0.3, 0.6, STILL, NARROWER, "use importance weights"),
        (0.3, 0.6, None, None, "ok"),
        (0.6, 0.89, STILL, SAME, "use importance weights"),
        (0.6, 0.9, STILL, SAME, "ok"),
        (0.7, 0.9, STILL, SAME, "ok"),
        (0.7, 0.3, STILL, SAME, "use importance weights"),
        (0.71, 0.89, STILL, SAME, "don't trust"),
        (0.71, 0.9, STILL, SAME, "use importance weights"),  # nearly equal weights
        (0.99, 0.9, STILL, SAME, "use importance weights"),
        (1.0, 0.9, STILL, SAME, "don't trust"),  # weights without a mean, and no chain
        (1.0, 0.98, STILL, SAME, "ok"),  # that is the shape of next to nothing
        (0.71, 0.9, MOVED, SAME, "don't trust"),
        (0.71, 0.9, None, None, "don't trust"),
        (math.nan, 0.9, STILL, SAME, "don't trust"),
        (-math.inf, 1.0, STILL, SAME, "ok"),
    ],
)
def test_the_verdict_at_its_thresholds(k_hat, share, shift, ratio, verdict):
    found, reason = judge(weights(k_hat, share), None, shift, ratio, None, 4000)
    assert found == verdict
    assert f"k-hat {k_hat:.2f}, ESS {share:.0%}" in reason


@pytest.mark.parametrize(("num_samples", "usable"), [
    (100, 0.5), (500, 0.6294882), (1000, 2 / 3), (2154, 0.69999), (2155, 0.7), (100_000, 0.7)])  # fmt: skip
def test_fewer_draws_need_lighter_tails(num_samples, usable):
    """min(1 − 1 / log10 S, 0.7), by hand: log10 500 = 2.69897."""
    assert usable_k_hat(num_samples) == pytest.approx(usable, abs=1e-5)
    inside, beyond = (weights(usable + by, 0.6, num_samples) for by in (-0.01, 0.01))
    moments = {"x": torch.tensor(0.3)}, {"x": torch.tensor(1.2)}
    assert judge(inside, None, *moments, None, num_samples)[0] == "use importance weights"
    assert judge(beyond, None, *moments, None, num_samples)[0] == "don't trust"
    of_rows = [weights(torch.full((40,), usable + by), torch.full((40,), 0.6), num_samples) for by in (-0.01, 0.01)]
    verdicts = [judge(inside, rows, None, None, None, num_samples)[0] for rows in of_rows]
    assert verdicts == ["ok" if usable == 0.5 else "use importance weights", "don't trust"]


def test_resampling_warns_from_the_same_shape_on():
    log_weights = torch.distributions.Pareto(1.0, 1 / 0.7).icdf((torch.arange(500.0) + 0.5) / 500).log()
    assert 0.63 < float(psis(log_weights).k_hat) < 0.7
    with pytest.warns(UserWarning, match=r"above 0\.63"):
        resampled_indices(log_weights, 10)


@pytest.mark.parametrize(
    ("bad", "verdict"), [(5, "ok"), (6, "don't trust")]  # of 101 data points: 5 % are 5 of the 100 steps between them
)  # fmt: skip
def test_the_verdict_of_data_points_lets_one_in_twenty_be_bad(bad, verdict):
    k = torch.full((101,), 0.4)
    k[:bad] = 0.9
    rows = weights(k, torch.full((101,), 0.7))
    found, reason = judge(weights(3.0, 0.0), rows, None, None, None, 4000)
    assert found == verdict
    assert "mean ESS 70%" in reason
    unknown = weights(torch.full((101,), math.nan), torch.full((101,), 0.7))
    assert judge(weights(3.0, 0.0), unknown, None, None, None, 4000)[0] == "don't trust"


def report(**changes):
    values = {
        "verdict": "ok", "reason": "good", "num_samples": 400, "elbo": -3.25, "elbo_se": 0.0125, "log_evidence": -3.0,
        "gap": 0.25, "k_hat": 0.126, "ess": 312.4, "k_hat_rows": None, "ess_rows": None, "shift": None,
        "sd_ratio": None, "invertibility_margin": None, "active_units": None, "log_weights": torch.zeros(4),
        "draws": None, "weights": torch.tensor([0.1, 0.2, 0.3, 0.4]), "elsewhere": "not looked",
        "chains": None,
    }  # fmt: skip
    return Diagnosis(**{**values, **changes})


def test_the_report_in_words():
    assert str(report()).splitlines() == [
        "verdict       ok: good",
        "ELBO          -3.250 ± 0.013 nats (400 draws)",
        "log evidence  -3.000   gap 0.250 nats",
        "k-hat         0.13 joint (below 0.5 good, above 0.62 useless)",
        "ESS           312 of 400",
        "elsewhere     a mode that no draw reached can't be seen from here",
    ]
    zeros = torch.tensor([0.0, -math.inf, 0.0, -math.inf])
    lines = str(report(elbo=-math.inf, elbo_se=math.nan, log_weights=zeros)).splitlines()
    assert lines[1] == "ELBO          -inf: the model gives 50% of the draws no density"
    shift = {name: torch.tensor([0.01, size]) for name, size in (("a", -0.5), ("b", 0.2), ("c", 0.3), ("d", 0.1))}
    lines = str(report(shift=shift, sd_ratio={"a": torch.tensor([0.5, 1.0]), "b": torch.tensor(2.0)},
                       invertibility_margin=0.0512, elsewhere="nothing")).splitlines()  # fmt: skip
    assert lines[5:] == [
        "weighting     moves means by at most: a 0.50 sd, c 0.30 sd, b 0.20 sd",
        "              sd of the draws / weighted sd: 0.50…2.00",
        "margin        smallest slope of a ConvFlow layer 5.1e-02",
        "elsewhere     paths from far outside found no other mode",
    ]
    rows = {"k_hat_rows": torch.tensor([0.2, 0.6, 0.8, math.nan]), "ess_rows": torch.tensor([1.0, 2.0, 3.0, 6.0])}
    lines = str(report(**rows, active_units={"z": (3, 5), "w": (1, 1)}, elsewhere="far away")).splitlines()
    assert lines[5:] == [
        "data points   4: k-hat median 0.60, above 0.5 50.0%, above 0.62 25.0%; mean ESS 3",
        "active units  z 3 of 5, w 1 of 1",
        "elsewhere     far away",
    ]


def test_the_report_in_pictures(tmp_path):
    log_w = torch.tensor([-4.0, -3.0, -3.0, -math.inf])
    figure = report(log_weights=log_w, k_hat_rows=torch.tensor([0.8, 0.2]), ess_rows=torch.ones(2)).plot()
    left, right = figure.axes
    assert figure.get_size_inches().tolist() == pytest.approx([9.0, 3.2])
    assert (left.get_title(), right.get_xlabel()) == ("ok: k-hat 0.13", "data points, sorted")
    assert len(left.patches) == 60
    assert [list(line.get_xdata()) for line in left.lines] == [[0, 0]]
    assert [line.get_linewidth() for line in (*left.lines, *right.lines[1:])] == [1.0, 0.8, 0.8]
    assert right.lines[0].get_markersize() == 3
    assert sum(bar.get_height() for bar in left.patches) == 3  # what is not finite has no place
    assert left.patches[0].get_x() == pytest.approx(-1.0)
    assert [line.get_ydata().tolist() if hasattr(line.get_ydata(), "tolist") else line.get_ydata()
            for line in right.lines] == [
        [pytest.approx(0.2), pytest.approx(0.8)], [0.5, 0.5], [pytest.approx(0.61569, abs=1e-5)] * 2]  # fmt: skip
    shift = {"a": torch.tensor([0.1, 0.2]), "b": torch.tensor(-0.3)}
    empty = report().plot().axes[1]
    assert not empty.axison
    _, right = report(shift=shift).plot(tmp_path / "sub" / "deeper" / "report.png").axes
    assert [list(line.get_xdata()) for line in right.lines] == [[0, 0], [1], [0, 1]]
    assert [label.get_text() for label in right.get_xticklabels()] == ["a", "b"]
    assert (tmp_path / "sub" / "deeper" / "report.png").stat().st_size > 1000
    assert [line.get_linewidth() for line in right.lines[2:]] == [0.8]
    assert [line.get_markersize() for line in right.lines[:2]] == [14, 14]
    assert [label.get_rotation() for label in right.get_xticklabels()] == [30, 30]
    with Image.open(tmp_path / "sub" / "deeper" / "report.png") as picture:
        assert picture.size == (990, 352)  # 110 points an inch
    report(shift=shift).plot(tmp_path / "sub" / "again.png")  # into the same folder
    assert "tensor" not in repr(
        report(shift=shift, sd_ratio=shift, draws=shift, k_hat_rows=torch.ones(1), ess_rows=torch.ones(1))
    )


def test_means_by_the_weights():
    draws = {"x": torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 10.0]])}
    assert report(draws=draws).weighted_mean(lambda d: d["x"]).tolist() == pytest.approx([3.0, 4.0])
    assert report(draws=draws).weighted_mean(lambda d: d["x"][:, 0]).item() == pytest.approx(3.0)
    # The weights are 0.1, 0.2, 0.3 and 0.4: of conditions and counts, too.
    assert report(draws=draws).weighted_mean(lambda d: d["x"][:, 0] > 2).item() == pytest.approx(0.7)
    assert report(draws=draws).weighted_mean(lambda d: d["x"].long()).tolist() == pytest.approx([3.0, 4.0])
    with pytest.raises(RuntimeError, match="no joint draws"):
        report().weighted_mean(lambda d: d["x"])


def test_what_weighting_moves_by_hand():
    """Draws 0, 2, 4 (mean 2, s = 2) with weights ¼, ¼, ½: mean 2.5, variance ¼ 6.25 + ¼ 0.25 + ½ 2.25 = 2.75."""
    w = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    x = torch.tensor([0.0, 2.0, 4.0])
    shift, ratio = _moments({"x": x, "same": torch.ones(3, 2), "none": torch.ones(3, 0)}, w)
    assert set(shift) == {"x", "same"}
    assert shift["x"].item() == pytest.approx(0.25)
    assert ratio["x"].item() == pytest.approx(2 / math.sqrt(2.75))
    assert shift["same"].tolist() == [0, 0]
    assert ratio["same"].tolist() == [1, 1]
    assert shift["x"].shape == ()


def test_coordinates_that_are_fixed_have_no_shift_by_rounding():
    """The first entry of a Cholesky factor is 1; weights that add to 1 − 10⁻¹⁶ made 10²⁸⁴ standard deviations of it."""
    x = torch.stack([torch.ones(2000), torch.full((2000,), 0.1), torch.zeros(2000), torch.linspace(-1, 1, 2000)], -1)
    for seed in range(20):
        w = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).softmax(0)
        shift, ratio = _moments({"L": x}, w)
        assert shift["L"][:3].tolist() == [0, 0, 0]
        assert ratio["L"][:3].tolist() == [1, 1, 1]
        assert shift["L"][3] != 0


def test_small_parts():
    assert _share(torch.tensor([0.5, 0.6, math.nan, 0.4]), 0.5) == 0.25
    assert _short(torch.tensor(1.23456)) == "1.23"
    assert _short(torch.tensor([1.0, 2.0, 3.0])) == "[1, 2, 3]"
    assert _short(torch.tensor([1.0, 2.0, 3.0, 4.0])) == "[1, 2, 3, …]"
    defaults = {n: p.default for n, p in inspect.signature(diagnose).parameters.items() if p.default is not p.empty}
    assert defaults == {"num_samples": 4000, "num_paths": 200, "num_chains": 500, "seed": 0, "model_kwargs": None}


# Elsewhere ----------------------------------------------------------------------------------------------------------

ROOT = torch.tensor([[2.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
CENTER = torch.tensor([3.0, -1.0], dtype=torch.float64)


@pytest.mark.parametrize(("number", "each"), [(40, 4), (31, 4), (10, 1), (1, 1)])
def test_the_starts_of_the_paths(number, each):
    u = overdispersed(2, number, CENTER, ROOT, torch.Generator().manual_seed(3))
    noise = torch.randn(4 * each, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    scales = {1: [10**0.25, 10**0.75, 10**1.25, 10**1.75], 4: [10 ** ((i + 0.5) / 8) for i in range(16)]}[each]
    far = torch.tensor(scales, dtype=torch.float64)[:, None] * noise
    assert u.shape == (8 * each + 2 * each + 1, 2)
    torch.testing.assert_close(u[: 4 * each], far)
    torch.testing.assert_close(u[4 * each : 8 * each], -far)
    places = CENTER + u @ ROOT.T
    torch.testing.assert_close(places[-1], -CENTER)
    near = places[8 * each : -1]
    assert (near.abs() <= 2).all()
    if each == 4:
        assert near.min() < -1.0
        assert near.max() > 1.0


def test_starts_between_modes_have_their_mean_and_spread():
    """Scales from 0.5 to 5, of a covariance that gets its mean spread in the directions without modes."""
    tops = torch.tensor([[4.0, 1.0, 0.0], [-2.0, 1.0, 0.0]], dtype=torch.float64)
    u = between(tops, 4, torch.Generator().manual_seed(3))
    noise = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    scales = 0.5 * torch.tensor([10**0.125, 10**0.375, 10**0.625, 10**0.875], dtype=torch.float64)
    spread = torch.tensor([12.0, 3.0, 3.0], dtype=torch.float64).sqrt()
    torch.testing.assert_close(u, torch.tensor([1.0, 1.0, 0.0]).double() + scales[:, None] * spread * noise)


def test_paths_climb_to_the_mode_of_their_slope():
    def two(u):
        return torch.logaddexp(-0.5 * (u - 4).square().sum(-1), -2.0 * (u + 4).square().sum(-1))

    ends = ascend(two, torch.tensor([[40.0, 30.0], [-6.0, -4.0], [5.0, 4.0]], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([[4.0, 4.0], [-4.0, -4.0], [4.0, 4.0]]).double(), atol=2e-2, rtol=0)
    start = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert torch.equal(ascend(two, start, num_steps=0), start)


def mixture(share, place, sd):
    """``(1 − share) N(0, I) + share N(place, sd² I)`` on the plane, normalised."""
    home = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    away = MultivariateNormal(torch.tensor(place).double(), sd**2 * torch.eye(2).double())
    return lambda x: torch.logaddexp(
        math.log(1 - share) + home.log_prob(x.double()), math.log(share) + away.log_prob(x.double())
    )


@pytest.mark.parametrize(("share", "place", "sd"), [(0.3, (9.0, 12.0), 0.5), (0.8, (-15.0, 0.0), 2.0)])
def test_the_mass_of_a_mode_that_was_missed(share, place, sd):
    """The guide is N(0, I) and has all but the other component: evidence 1 − share, and 15 sd between the two."""
    torch.manual_seed(0)
    guide = Independent(Normal(torch.zeros(2, dtype=torch.float64), 1.0), 1)
    x = guide.sample(torch.Size([4000]))
    found = missed_mass(mixture(share, place, sd), guide.log_prob, x, math.log(1 - share))
    assert found.share == pytest.approx(share, abs=0.03)
    assert found.distance == pytest.approx(15.0, rel=0.05)
    assert found.latent.tolist() == pytest.approx(place, abs=0.05)
    again = missed_mass(mixture(share, place, sd), guide.log_prob, x, math.log(1 - share))
    assert again.share == found.share
    assert missed_mass(mixture(share, place, sd), guide.log_prob, x, math.log(1 - share), num_paths=0) is None


def test_nothing_is_missed_where_the_guide_is_right_or_there_are_too_many_dimensions():
    torch.manual_seed(0)
    guide = Independent(Normal(torch.zeros(2, dtype=torch.float64), 1.0), 1)
    x = guide.sample(torch.Size([2000]))
    assert missed_mass(guide.log_prob, guide.log_prob, x, 0.0) is None
    many = Independent(Normal(torch.zeros(elsewhere.MAX_DIM + 1), 1.0), 1)
    assert elsewhere.MAX_DIM == 200
    assert missed_mass(many.log_prob, many.log_prob, many.sample(torch.Size([300])), 0.0) is None
    assert (elsewhere.MISSED_RATIO, FAR, elsewhere.MAX_MODES) == (10.0, (1.0, 100.0), 12)
