import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.importance import psis_diagnostic
from scipy import stats

from vi_flows.diagnostics import active_units, diagnose, effective_sample_size, invertibility_margin, psis
from vi_flows.evaluation.psis import fit_generalised_pareto
from vi_flows.flows import conditional_conv_flow, conv_flow
from vi_flows.guides import AutoConvFlow


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.7, 1.2])
def test_pareto_fit_recovers_the_law(k):
    draws = stats.genpareto(c=k, scale=2.5).rvs((3, 4000), random_state=1)
    shape, scale = fit_generalised_pareto(torch.as_tensor(draws).sort(-1).values)
    torch.testing.assert_close(shape, torch.full((3,), k, dtype=torch.float64), atol=0.07, rtol=0)
    torch.testing.assert_close(scale, torch.full((3,), 2.5, dtype=torch.float64), atol=0.25, rtol=0)


@pytest.mark.parametrize("s", [0.5, 0.7, 0.9])
def test_k_hat_of_a_narrow_gaussian_is_one_minus_its_variance(s):
    torch.manual_seed(0)
    x = s * torch.randn(50_000, 8, dtype=torch.float64)
    log_w = -0.5 * x**2 + 0.5 * (x / s) ** 2 + math.log(s)
    result = psis(log_w)
    # The tail of finite samples converges slowly, from above for k < 0.5.
    assert abs(float(result.k_hat.mean()) - (1 - s**2)) < 0.12
    if s > 0.7:
        torch.testing.assert_close(result.log_mean_weight, torch.zeros(8, dtype=torch.float64), atol=0.02, rtol=0)


def test_smoothing_keeps_order_and_columns_apart():
    torch.manual_seed(0)
    log_w = torch.randn(1000, 2, 3, dtype=torch.float64) * torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    result = psis(log_w)
    assert result.k_hat.shape == (2, 3)
    assert (result.k_hat[:, 0] < result.k_hat[:, 2]).all()
    torch.testing.assert_close(result.log_weights.logsumexp(0), torch.zeros(2, 3, dtype=torch.float64))
    assert (result.log_weights[log_w[:, 1, 2].argsort(), 1, 2].diff() >= 0).all()
    alone = psis(log_w[:, 1, 2] + 700.0)
    torch.testing.assert_close(alone.k_hat, result.k_hat[1, 2])
    torch.testing.assert_close(alone.log_mean_weight, result.log_mean_weight[1, 2] + 700)


def test_equal_weights_are_perfect_and_bad_ones_named():
    result = psis(torch.full((500,), -3.0))
    assert result.k_hat == -math.inf
    assert abs(float(result.ess) - 500) < 1e-6
    with pytest.raises(ValueError, match="NaN"):
        psis(torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match="support"):
        psis(torch.full((20,), -math.inf))


def test_effective_sample_size():
    log_w = torch.tensor([[0.0, 0.0], [0.0, -math.inf], [0.0, -math.inf]])
    torch.testing.assert_close(effective_sample_size(log_w), torch.tensor([3.0, 1.0]))


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh", "sigmoid", "softplus", "elu"])
def test_margin_is_the_least_slope(activation):
    flow = conv_flow(1, 1, 1, (1,), activation)
    with torch.no_grad():
        flow.weight.fill_(1.0)
        flow.theta.fill_(-0.8 / (0.25 if activation == "sigmoid" else 1.0))
    x = torch.linspace(-30, 30, 200_001, dtype=torch.float64).unsqueeze(-1)
    _, ladj = flow.double().requires_grad_(False).forward_and_ladj(x)
    assert abs(invertibility_margin(flow) - float(ladj.exp().min())) < 1e-4
    assert invertibility_margin(torch.nn.Linear(1, 1)) is None
    assert invertibility_margin(conv_flow(3, 1)) == 1.0
    assert invertibility_margin(conditional_conv_flow(3, 2).condition(torch.zeros(5, 2))) == 1.0


def test_active_units():
    torch.manual_seed(0)
    assert active_units(torch.randn(100, 3) * torch.tensor([1.0, 0.05, 0.5])).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="two rows"):
        active_units(torch.zeros(1, 3))


def plate_model(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def plate_guide(x, scale=None):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5 if scale is None else scale))


def test_k_hat_of_each_data_point_where_pyro_lumps_the_plate():
    pyro.set_rng_seed(0)
    x = torch.randn(50)
    scale = torch.full((50,), 0.5**0.5 * 0.95)
    scale[7] *= 0.4  # one data point's posterior is wrong: k = 1 − 0.38²
    report = diagnose(plate_model, lambda x: plate_guide(x, scale), x, num_samples=2000)
    assert report.k_hat_rows.shape == (50,)
    assert report.k_hat_rows.argmax() == 7
    assert report.k_hat_rows[7] > 0.7
    assert report.k_hat_rows.median() < 0.3
    lumped = psis_diagnostic(plate_model, lambda x: plate_guide(x, scale), x, num_particles=2000, max_plate_nesting=1)
    assert lumped > report.k_hat_rows.median()  # Pyro: one number for fifty data points
    exact = torch.distributions.Normal(0.0, 2.0**0.5).log_prob(x).sum()
    assert abs(report.log_evidence - exact) < 0.5
    assert report.active_units == {"z": (1, 1)}


def test_exact_posterior_is_ok_to_the_last_digit():
    x = torch.randn(20)
    report = diagnose(plate_model, plate_guide, x, num_samples=500)
    exact = torch.distributions.Normal(0.0, 2.0**0.5).log_prob(x).sum()
    assert report.verdict == "ok"
    assert abs(report.elbo - float(exact)) < 1e-3
    assert abs(report.gap) < 1e-3


def gaussian_and_tail(df=None):
    pyro.sample("x", dist.Normal(1.0, 2.0).expand([2]).to_event(1))


def test_verdicts_follow_the_fit(tmp_path):
    guide = AutoConvFlow(gaussian_and_tail)
    report = diagnose(gaussian_and_tail, guide)
    assert report.verdict == "ok"
    assert "ok" in str(report)
    torch.testing.assert_close(report.weighted_mean(lambda d: d["x"]), torch.ones(2), atol=0.15, rtol=0)
    with torch.no_grad():
        guide.transform[-1].log_scale.sub_(math.log(1 / 0.8))
    assert diagnose(gaussian_and_tail, guide).verdict == "use importance weights"
    with torch.no_grad():
        guide.transform[-1].log_scale.sub_(1.0)
    failed = diagnose(gaussian_and_tail, guide)
    assert failed.verdict == "don't trust"
    failed.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 1000
    state = torch.get_rng_state()
    assert diagnose(gaussian_and_tail, guide).elbo == failed.elbo
    assert torch.equal(state, torch.get_rng_state())


def test_subsampled_data_and_few_draws_are_refused():
    def model():
        with pyro.plate("rows", 10, subsample_size=5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(5))

    def guide():
        with pyro.plate("rows", 10, subsample_size=5):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="whole data"):
        diagnose(model, guide, num_samples=100)
    with pytest.raises(ValueError, match="draws"):
        diagnose(model, guide, num_samples=10)
