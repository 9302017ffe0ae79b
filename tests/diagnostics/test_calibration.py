"""Calibration checks: bands of literal width, right and wrong posteriors of a Gaussian, fits of guides."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import binom, kstest

from vi_flows.diagnostics.calibration import JOINT, expected_coverage, simulation_based_calibration
from vi_flows.diagnostics.uniformity import Band
from vi_flows.flows import Spline
from vi_flows.guides import AutoConvFlow, AutoFlow
from vi_flows.guides.amortize import AmortizedFit, AmortizedPosterior
from vi_flows.transforms import Chain


def pair():
    """θ ~ N(0, I), x | θ ~ N(Σ θ, 1/4): the two entries of the posterior have a correlation of −0.94."""
    theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(theta.sum(-1), 0.25), obs=torch.tensor(0.0))


def normal():
    """θ ~ N(0, 1), x | θ ~ N(θ, 1): the posterior is N(x/2, 1/2)."""
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(theta, 1.0), obs=torch.tensor(0.0))


def answer(factor=1.0, shift=0.0, slope=0.5):
    """An amortised posterior of ``normal`` set by hand: N(slope x + shift sd, (factor sd)²), sd = √½."""
    estimator = AmortizedPosterior(normal, flow=Spline(num_layers=1), hidden_dims=(2,))
    for parameter in estimator.parameters():
        torch.nn.init.zeros_(parameter)
    estimator.regression.fill_(slope)
    estimator.of_parameters.loc.fill_(shift * 0.5**0.5)
    estimator.of_parameters.scale.fill_(factor * 0.5**0.5)
    estimator.network.head.bias.data[1] = 0.0  # log scale
    return AmortizedFit(estimator, 0.0, 0, 0, "no further gain", 0, 0.0, [], [])


def test_a_right_posterior_is_calibrated():
    check = expected_coverage(answer(), num_replications=2000)
    assert check.verdict == "calibrated", check
    for level in (0.5, 0.9):
        for share in check.coverage(level).values():
            assert share == pytest.approx(level, abs=0.03)
    for ranks in check.ranks.values():
        assert kstest((ranks.numpy() + 0.5) / 201, "uniform").pvalue > 1e-3
    assert "calibrated" in str(check)


@pytest.mark.parametrize(("options", "verdict", "covered"), [
    # Central 90 % intervals of a Gaussian whose sd is half (twice) of what it should be: 2 Φ(1.645/2) − 1 …
    ({"factor": 0.5}, "over-confident", 0.589),
    ({"factor": 2.0}, "under-confident", 0.9990),
    # … and Φ(1.645 − 1) − Φ(−1.645 − 1) where it is one sd off.
    ({"shift": 1.0}, "biased", 0.7364)])  # fmt: skip
def test_wrong_posteriors_are_told_with_their_coverage(options, verdict, covered):
    check = expected_coverage(answer(**options), num_replications=2000)
    assert check.verdict in (verdict, "over-confident")
    assert check.coverage(0.9)["theta"] == pytest.approx(covered, abs=0.03)
    assert check.coverage(0.9)[JOINT] == pytest.approx(covered, abs=0.03)
    assert check.p_values["theta"] < 1e-3
    assert (check.asymmetry["theta"] < 1e-3) == (verdict == "biased")
    if verdict != "biased":
        assert check.verdict == verdict


def test_a_bias_is_told_with_its_side():
    check = simulation_based_calibration(normal, _Shifted, num_replications=40, fit_options={"num_steps": 1})
    assert check.verdict == "biased"
    assert "'theta' lie above the truth" in check.reason


class _Shifted(AutoFlow):
    """Two sds too high, whatever the fit does."""

    def __init__(self, model):
        super().__init__(model, lambda dim: Chain([]))

    def sample_posterior(self, num_samples, *args, **kwargs):
        return {n: v + 2 * 0.5**0.5 for n, v in super().sample_posterior(num_samples, *args, **kwargs).items()}


def test_fits_of_a_guide():
    options = {"num_replications": 20, "num_draws": 100, "fit_options": {"num_steps": 1}}

    def gaussian(model):
        return AutoFlow(model, lambda dim: Chain([]))

    right = simulation_based_calibration(pair, gaussian, **options)
    assert right.verdict == "calibrated", right
    assert set(right.ranks) == {"theta[0]", "theta[1]", "joint density", "log joint"}

    wrong = simulation_based_calibration(pair, _Narrow, num_replications=40, fit_options={"num_steps": 1})
    assert wrong.verdict == "over-confident", wrong
    # 2 Φ(0.3 · 1.645) − 1 = 0.378; four standard errors of 80 replications that go in pairs.
    covered = wrong.coverage(0.9)
    assert (covered["theta[0]"] + covered["theta[1]"]) / 2 == pytest.approx(0.378, abs=0.25)


class _Narrow(AutoFlow):
    """The posterior with sds of three tenths."""

    def __init__(self, model):
        super().__init__(model, lambda dim: Chain([]))

    def sample_posterior(self, num_samples, *args, **kwargs):
        draws = super().sample_posterior(num_samples, *args, **kwargs)
        return {n: v.mean(0) + 0.3 * (v - v.mean(0)) for n, v in draws.items()}


class _Prior(AutoFlow):
    """Never looks at the data: right on average over them, for every parameter."""

    def __init__(self, model):
        super().__init__(model, lambda dim: Chain([]), warm_start=False)

    def sample_posterior(self, num_samples, *args, **kwargs):
        return {"theta": torch.randn(num_samples)}


def test_the_prior_is_no_posterior():
    check = simulation_based_calibration(normal, _Prior, num_replications=60, fit_options={"num_steps": 1})
    assert check.p_values["theta"] > 0.01
    assert check.verdict == "not calibrated"
    assert "fit the data less" in check.reason


def test_bands_hold_all_over_as_often_as_they_say():
    band = Band(50, 99)
    low, high = band.limits(0.95)
    generator = np.random.default_rng(1)
    inside = []
    for _ in range(2000):
        share = band.counts(generator.integers(0, 100, 50)) / 50
        inside.append(bool(((share >= low) & (share <= high)).all()))
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)
    # Pointwise limits are narrower: all over they hold much less often.
    assert np.all(low <= binom.ppf(0.025, 50, band.points) / 50)
    p_values = [band.p_value(generator.integers(0, 100, 50)) for _ in range(1000)]
    for level in (0.01, 0.1, 0.5):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=0.04)
    assert band.p_value(np.zeros(50, dtype=int)) < 1e-20
    assert np.all(band.limits(0.9999)[1] >= band.limits(0.99)[1])


def test_counts_are_of_ranks_at_or_below_points():
    band = Band(4, 3)
    assert band.points.tolist() == [0.25, 0.5, 0.75]
    assert band.counts(np.array([0, 1, 1, 3])).tolist() == [1, 3, 3]


def test_the_picture_and_refusals(tmp_path):
    check = expected_coverage(answer(factor=0.5), num_replications=100)
    figure = check.plot(tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").stat().st_size > 5000
    assert len(figure.axes) == 4
    with pytest.raises(ValueError, match="20 replications"):
        expected_coverage(answer(), num_replications=5)
    with pytest.raises(ValueError, match="level"):
        check.coverage(1.5)

    def computed():
        pyro.deterministic("x", pyro.sample("theta", dist.Normal(0.0, 1.0)))

    with pytest.raises(ValueError, match=r"'x' is computed.*fit_amortized"):
        simulation_based_calibration(computed, AutoConvFlow, data="x")


def test_discrete_latents_are_summed_out_and_not_ranked():
    def mixture():
        w = pyro.sample("w", dist.Beta(2.0, 2.0))
        with pyro.plate("n", 10):
            k = pyro.sample("k", dist.Bernoulli(w))
            pyro.sample("x", dist.Normal(6 * k - 3, 1.0), obs=torch.zeros(10))

    check = simulation_based_calibration(mixture, AutoConvFlow, num_replications=20, num_draws=100, progress=False)
    assert check.verdict == "calibrated"
    assert not any(name.startswith("k") for name in check.ranks)
    assert "w" in check.ranks
