"""What a diagnosis makes of weights and draws that are written down."""

from __future__ import annotations

import importlib
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from vi_flows.diagnostics import diagnose, psis
from vi_flows.diagnostics.chains import Moved
from vi_flows.diagnostics.diagnose import _row_means
from vi_flows.diagnostics.elsewhere import Missed
from vi_flows.guides.pairs import Draws, Weighed

HERE = importlib.import_module("vi_flows.diagnostics.diagnose")  # the room shows the function under this name
LOG_W = torch.linspace(-1.0, 1.0, 200, dtype=torch.float64) - 5.0


@pytest.fixture
def weighed(monkeypatch):
    """Sets what the pair of any model and guide finds, and tells how many draws it was asked for."""
    asked = []

    def set_to(found):
        class Stub:
            def weigh(self, num_samples):
                asked.append(num_samples)
                return found

        monkeypatch.setattr(HERE, "pair_of", lambda *_: Stub())
        return asked

    return set_to


def nothing(*_, **__):
    """Neither a model nor a guide."""


def level(x):
    """A density that is the same everywhere."""
    return torch.zeros(len(x))


def test_figures_of_joint_weights(weighed):
    asked = weighed(Weighed(LOG_W))
    found = diagnose(nothing, nothing, num_samples=200)
    assert asked == [200]
    assert found.num_samples == 200
    assert found.elbo == pytest.approx(-5.0)
    # 200 equal steps from −1 to 1: variance 4/12 · 200 · 201 / 199² with n − 1.
    assert found.elbo_se == pytest.approx(math.sqrt(200 * 201 / 199**2 / 3) / math.sqrt(200), rel=1e-9)
    smoothed = psis(LOG_W)
    assert found.log_evidence == pytest.approx(float(smoothed.log_mean_weight))
    assert found.log_evidence == pytest.approx(-5.0 + math.log(math.sinh(1.0)), abs=0.01)  # ∫ eᵗ dt / 2 from −1 to 1
    assert found.gap == pytest.approx(found.log_evidence + 5.0)
    assert (found.k_hat, found.ess) == (pytest.approx(float(smoothed.k_hat)), pytest.approx(float(smoothed.ess)))
    assert torch.equal(found.log_weights, LOG_W)
    torch.testing.assert_close(found.weights, smoothed.log_weights.exp())
    assert found.weights.sum().item() == pytest.approx(1.0)
    nowhere = (found.k_hat_rows, found.ess_rows, found.shift, found.sd_ratio, found.draws, found.chains)
    assert nowhere == (None,) * 6
    assert (found.invertibility_margin, found.active_units, found.elsewhere) == (None, None, "not looked")
    with_zero = torch.cat([LOG_W[:-1], torch.tensor([-math.inf], dtype=torch.float64)])
    weighed(Weighed(with_zero))
    found = diagnose(nothing, nothing, num_samples=200)
    assert found.elbo == -math.inf
    assert math.isnan(found.elbo_se)
    weighed(Weighed(torch.where(torch.arange(200) % 100 == 0, 50 * LOG_W, -math.inf)))
    found = diagnose(nothing, nothing, num_samples=200)
    assert found.verdict != "ok"
    assert "; the model gives 99% of the draws no density (beyond a bound that the support" in found.reason


def test_figures_of_rows(weighed):
    """Three data points with weights of their own: the joint is their sum, evidences add."""
    rows = torch.stack([LOG_W, LOG_W.flip(0) + 1.0, 0.1 * LOG_W], 1)
    weighed(Weighed(rows))

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Delta(torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 4.0]]), event_dim=1))

    found = diagnose(nothing, guide, num_samples=200)
    assert found.elbo == pytest.approx(-5.0 - 4.0 - 0.5)
    torch.testing.assert_close(found.log_weights, rows.sum(1))
    by_row = psis(rows)
    assert found.log_evidence == pytest.approx(float(by_row.log_mean_weight.sum()))
    torch.testing.assert_close(found.k_hat_rows, by_row.k_hat)
    torch.testing.assert_close(found.ess_rows, by_row.ess)
    assert found.k_hat == pytest.approx(float(psis(rows.sum(1)).k_hat))
    assert found.active_units == {"z": (1, 2)}
    assert found.draws is None


def joint(**changes):
    """Two hundred draws of one latent number, evenly from −2 to 2."""
    x = torch.linspace(-2.0, 2.0, 200, dtype=torch.float64)[:, None]
    values = {
        "latents": x, "log_density": level, "log_q": None, "at_once": False,
        "constrain": lambda x: {"a": 3 * x[..., 0]}, "unresolved": lambda x: {},
    }  # fmt: skip
    return Weighed(0.01 * LOG_W, Draws(**{**values, **changes}))


def test_draws_are_weighed_and_neither_chains_nor_paths_run_where_they_cant(weighed):
    weighed(joint())
    found = diagnose(nothing, nothing, num_samples=200)
    torch.testing.assert_close(found.draws["a"], 3 * torch.linspace(-2.0, 2.0, 200, dtype=torch.float64))
    w, a = found.weights, found.draws["a"]
    assert found.shift["a"].item() == pytest.approx(float((w * a).sum() / a.std()), rel=1e-6)
    assert found.sd_ratio["a"].item() == pytest.approx(1.0, abs=0.02)
    assert (found.chains, found.elsewhere, found.verdict) == (None, "not looked", "ok")


def test_chains_start_at_the_first_draws(weighed, monkeypatch):
    seen = []

    def moved(density, x, constrain, num_transitions, num_discarded):
        seen.append(x)
        assert (num_transitions, num_discarded) == (8, 0)
        return Moved(0.5, 0.0, "a", 0.9)

    monkeypatch.setattr(HERE, "moved_by_chains", moved)
    weighed(joint(at_once=True))
    found = diagnose(nothing, nothing, num_samples=200, num_chains=30)
    assert found.chains == Moved(0.5, 0.0, "a", 0.9)
    assert found.verdict != "ok"
    assert torch.equal(seen[0], joint().draws.latents[:30])
    assert diagnose(nothing, nothing, num_samples=200, num_chains=1).chains is not None
    assert diagnose(nothing, nothing, num_samples=200, num_chains=0).chains is None
    for dim, known in ((200, True), (201, False)):
        weighed(joint(at_once=True, latents=torch.zeros(200, dim, dtype=torch.float64), constrain=lambda x: {"a": x}))
        assert (diagnose(nothing, nothing, num_samples=200).chains is not None) == known


@pytest.mark.parametrize(
    ("num_samples", "starts", "moves"),
    [
        (200, [(0, 30), (30, 150)], [0.5, 0.4]),  # four times as many of the others say the same
        (200, [(0, 30), (30, 150)], [0.5, 0.0]),  # or not
        (200, [(0, 30)], [0.0]),
        (200, [(0, 90), (90, 200)], [0.5, 0.4]),  # as many as there are
        (200, [(0, 101)], [0.5]),  # fewer than before say nothing
    ],
)
def test_an_alarm_of_chains_is_heard_if_others_repeat_it(weighed, monkeypatch, num_samples, starts, moves):
    seen = []

    def moved(density, x, constrain, num_transitions, num_discarded):
        seen.append(x)
        return Moved(moves[len(seen) - 1], 0.0, "a", 0.9)

    monkeypatch.setattr(HERE, "moved_by_chains", moved)
    weighed(joint(at_once=True))
    found = diagnose(nothing, nothing, num_samples=num_samples, num_chains=starts[0][1])
    assert (found.verdict == "ok") == (moves[-1] == 0)
    assert found.chains.shift == moves[-1]
    latents = joint().draws.latents
    assert [x.tolist() for x in seen] == [latents[first:last].tolist() for first, last in starts]


def test_a_site_too_coarse_for_its_draws_is_told_from_one_per_cent_on(weighed):
    for share, told in ((0.0099, False), (0.01, True)):
        weighed(joint(unresolved=lambda x, share=share: {"b": 0.0, "a": share}))
        found = diagnose(nothing, nothing, num_samples=200)
        assert (found.verdict == "don't trust") == told
        if told:
            assert found.reason.startswith("1% of the draws of 'a' are so near a bound that float64 has no numbers")


def test_values_that_are_rounded_are_told_from_a_quarter_of_their_spread_on(weighed):
    """The draws have a spread of 1.1575 in x; near 2⁵³ double precision knows whole numbers only, in steps of 2."""
    for scale, told in ((8.0, False), (6.0, True)):
        weighed(joint(constrain=lambda x, scale=scale: {"b": x[..., 0], "a": 2.0**53 + scale * x[..., 0]}))
        found = diagnose(nothing, nothing, num_samples=200)
        assert (found.verdict == "don't trust") == told
        if told:
            assert found.reason.startswith("the numbers that float64 has for 'a' lie 0.29 of its standard deviations")


@pytest.mark.parametrize(
    ("place", "mass", "said"),
    [
        (6.0, 0.001, ""),  # the variance 4/3 grows by 36 · 0.001 less 0.1 % of itself: by 2.6 %, the sd by 1.3 %
        (60.0, 0.001, "0.05 sd and its spread by 91%"),  # the variance by 3.6, to 3.67 times what it was
        (30.0, 0.0004, "0.01 sd and its spread by 13%"),
        (30.0, 0.00025, ""),  # 8 %
    ],
)
def test_a_light_mode_is_told_where_it_moves_what_the_draws_say(weighed, monkeypatch, place, mass, said):
    """200 draws, evenly from −2 to 2, have a mean of 0 and a variance of 1.347; a = 3 x, so b = x is the same in sd."""

    def missed(density, log_q, x, evidence, num_paths, hints=()):
        around = torch.full((4, 1), place).double()
        return Missed(mass, 1, mass, 9.0, around[0], around, torch.full((4,), mass / 4).double())

    monkeypatch.setattr(HERE, "missed_mass", missed)
    weighed(joint(log_q=nothing))
    found = diagnose(nothing, nothing, num_samples=200)
    if said:
        assert found.verdict == "don't trust"
        assert found.reason.endswith(
            f"{100 * mass:.1g}% of the mass (a = {3 * place:.3g}); with it 'a' moves by {said}"
        )
    else:
        assert (found.verdict, found.elsewhere) == ("ok", "nothing")


@pytest.mark.parametrize("far", [1e4, math.inf])
def test_a_light_mode_changes_no_sd_of_draws_that_have_none(weighed, monkeypatch, far):
    """Draws of a Cauchy law, by its quantiles, and a mode beyond: values count as no further than twice the 99 %."""

    def missed(density, log_q, x, evidence, num_paths, hints=()):
        around = torch.full((4, 1), 6.0).double()
        return Missed(0.001, 1, 0.001, 9.0, around[0], around, torch.full((4,), 0.00025).double())

    def cauchy(x):
        return {"a": torch.where(x[..., 0].abs() < 2.001, torch.tan(math.pi * x[..., 0] / 4.02), far)}

    monkeypatch.setattr(HERE, "missed_mass", missed)
    weighed(joint(log_q=nothing, constrain=cauchy))
    found = diagnose(nothing, nothing, num_samples=200)
    assert found.heavy_tails["a"] > 0.5
    assert found.elsewhere == "nothing"


def test_a_site_that_never_varies_is_not_moved():
    one = torch.ones(1).double()
    missed = Missed(0.001, 1, 0.001, 9.0, one, one[None], 0.001 * one)
    draws = {"first": torch.ones(3, 2), "x": torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, -1.0]]).double()}
    moved = missed.moves(draws, {"first": torch.ones(1, 2), "x": torch.tensor([[1.0, 100.0]]).double()})
    assert set(moved) == {"x"}
    # Mean 0.1 / 1.001, variance (2/3 + 10) / 1.001 less the mean's square: sds of the draws are √(2/3).
    assert moved["x"][0] == pytest.approx(0.1 / 1.001 / math.sqrt(2 / 3))
    variance = (2 / 3 + 10) / 1.001 - (0.1 / 1.001) ** 2
    assert moved["x"][1] == pytest.approx(0.5 * math.log(variance / (2 / 3)))


@pytest.mark.parametrize(
    ("share", "together", "told"),
    [
        (None, None, ""), (0.0099, 0.0099, ""), (0.01, 0.01, "a path"), (0.3, 0.31, "a path"), (0.008, 0.04, "paths"),
        (0.3, 0.4, "paths"),
    ],
)  # fmt: skip
def test_modes_are_told_from_one_per_cent_of_the_mass_on(weighed, monkeypatch, share, together, told):
    seen = []

    def missed(density, log_q, x, evidence, num_paths, hints=()):
        seen.append((evidence, num_paths))
        none = torch.zeros(0, 1).double(), torch.zeros(0).double()
        return None if share is None else Missed(share, 5, together, 12.4, torch.tensor([1.5]), *none)

    monkeypatch.setattr(HERE, "missed_mass", missed)
    weighed(joint(log_q=nothing))
    found = diagnose(nothing, nothing, num_samples=200, num_paths=7)
    assert seen == [(pytest.approx(found.log_evidence), 7)]
    if told:
        assert (found.verdict, found.reason) == ("don't trust", found.elsewhere)
        words = {
            "a path": "a path from elsewhere found a mode that no draw of the guide reached, 12 sd away and with about "
            f"{share:.0%} of the mass (a = 4.5)",
            "paths": "paths from elsewhere found 5 places that no draw of the guide reached, with about "
            f"{together:.0%} of the mass together, the heaviest 12 sd away (a = 4.5)",
        }
        assert found.reason == words[told]
    else:
        assert (found.verdict, found.elsewhere) == ("ok", "nothing")
    assert diagnose(nothing, nothing, num_samples=200, num_paths=0).elsewhere == "not looked"
    assert diagnose(nothing, nothing, num_samples=200, num_paths=1).elsewhere != "not looked"
    bad = joint(log_q=nothing)
    weighed(Weighed(50 * LOG_W, bad.draws))
    assert diagnose(nothing, nothing, num_samples=200).elsewhere == "not looked"  # it is not trusted anyway
    for dim, known in ((200, True), (201, False)):
        x = torch.zeros(200, dim, dtype=torch.float64)
        weighed(joint(log_q=nothing, latents=x, constrain=lambda x: {"a": x[..., 0]}))
        assert (diagnose(nothing, nothing, num_samples=200).elsewhere != "not looked") == known


def test_a_tail_needs_a_hundred_draws(weighed):
    weighed(Weighed(LOG_W[:100]))
    assert diagnose(nothing, nothing, num_samples=100).num_samples == 100
    with pytest.raises(ValueError, match="judged from 99 draws; use at least 100"):
        diagnose(nothing, nothing, num_samples=99)


def test_active_units_come_from_the_means_over_a_hundred_draws():
    """Sites of one value a row; in the second column sds of 0.09, below a variance of 0.01, and 0.11, above it."""
    runs = []

    def guide(spread, rows=4):
        runs.append(1)
        sign = torch.tensor([1.0, -1.0]).repeat(rows // 2) if rows > 1 else torch.ones(1)
        noise = 10.0 if len(runs) % 2 else -10.0  # the mean is without it
        with pyro.plate("data", rows):
            pyro.sample("z", dist.Delta(torch.stack([sign + noise, spread * sign], 1), event_dim=1))
            pyro.sample("scalar", dist.Delta(sign))
            pyro.sample("count", dist.Poisson(torch.ones(rows)).mask(False), infer={"is_auxiliary": True})
        pyro.sample("elsewhere", dist.Delta(torch.zeros(7)).to_event(1))

    root = math.sqrt(3 / 4)  # the variance of ±s in four rows is 4 s²/3
    assert _row_means(guide, (0.09 * root,), {}, 4) == {"z": (1, 2), "scalar": (1, 1)}
    assert len(runs) == 100
    assert _row_means(guide, (0.11 * root,), {}, 4) == {"z": (2, 2), "scalar": (1, 1)}
    assert _row_means(guide, (1.0,), {"rows": 1}, 1) is None
    assert _row_means(guide, (1.0,), {}, 5) is None  # no site has a value a row
