"""From a fitted guide into ArviZ, and importance resampling."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from scipy import stats

from vi_flows.guides import AutoConvFlow, datatree, fit
from vi_flows.guides.resampling import resampled_indices

xarray = pytest.importorskip("xarray")

Y = torch.tensor([1.0, 2.0, 3.5, 0.5])


def model(y):
    """Two latents, a plate, a deterministic value, a factor; the posterior of mu and tau is no Gaussian."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(torch.tensor(2.0)))
    pyro.deterministic("twice", 2 * mu)
    pyro.factor("nothing", 0.0 * mu)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, tau), obs=y)


@pytest.fixture(scope="module")
def result():
    guide = AutoConvFlow(model, num_blocks=1, prototype_args=(Y,))
    return fit(model, guide, Y, num_steps=20)


@pytest.fixture(scope="module")
def tree(result):
    return result.to_datatree(num_draws=500, num_chains=2)


def test_groups_and_dimensions(tree):
    assert set(tree.children) == {
        "posterior", "unconstrained_posterior", "posterior_resampled", "log_likelihood", "posterior_predictive",
        "observed_data", "sample_stats",
    }  # fmt: skip
    assert set(tree["posterior"].data_vars) == {"mu", "tau", "twice"}
    assert tree["posterior"]["mu"].sizes == {"chain": 2, "draw": 500}
    assert tree["log_likelihood"]["y"].sizes == {"chain": 2, "draw": 500, "rows": 4}
    assert tree["observed_data"]["y"].dims == ("rows",)
    assert set(tree["log_likelihood"].data_vars) == {"y"}


def test_values_are_those_of_the_model(tree):
    mu, tau = tree["posterior"]["mu"].values, tree["posterior"]["tau"].values
    assert (tree["posterior"]["twice"].values == 2 * mu).all()
    assert tree["unconstrained_posterior"]["tau"].values == pytest.approx(torch.tensor(tau).log().numpy(), abs=1e-5)
    # At one draw by hand: log N(3.5; mu, tau²), and the log joint with the log-determinant log tau.
    m, t = float(mu[1, 7]), float(tau[1, 7])
    by_hand = [-0.5 * ((y - m) / t) ** 2 - math.log(t) - 0.5 * math.log(2 * math.pi) for y in Y.tolist()]
    assert tree["log_likelihood"]["y"].values[1, 7] == pytest.approx(by_hand, rel=1e-4)
    prior = dist.Normal(0.0, 5.0).log_prob(torch.tensor(m)) + dist.HalfNormal(2.0).log_prob(torch.tensor(t))
    assert tree["sample_stats"]["lp"].values[1, 7] == pytest.approx(sum(by_hand) + float(prior) + math.log(t), rel=1e-4)
    predicted = (tree["posterior_predictive"]["y"] - tree["posterior"]["mu"]) / tree["posterior"]["tau"]
    assert abs(float(predicted.mean())) < 0.05
    assert float(predicted.std()) == pytest.approx(1.0, abs=0.05)


def test_weights_and_k_hat(tree):
    stats = tree["sample_stats"]
    weights = stats["log_weight"].values.reshape(-1)
    assert math.exp(torch.tensor(weights).logsumexp(0)) == pytest.approx(1.0)
    assert float(stats["k_hat"]) < 0.7 or float(stats["ess"]) > 500
    raw = (stats["lp"] - stats["log_q"]).values.reshape(-1)
    middle = raw.argsort()[100:700]  # beyond the smoothed tail
    assert weights[middle] - raw[middle] == pytest.approx(weights[middle[0]] - raw[middle[0]], abs=1e-4)


def test_summary_loo_and_trace_of_arviz(tree):
    stats = pytest.importorskip("arviz_stats")
    pytest.importorskip("arviz_base")
    summary = stats.summary(tree)
    assert list(summary.index) == ["mu", "tau", "twice"]
    loo = stats.loo(tree)
    assert loo.n_data_points == 4
    assert math.isfinite(loo.elpd)
    assert loo.elpd < float(tree["log_likelihood"]["y"].mean(("chain", "draw")).sum())


@pytest.mark.filterwarnings("ignore")
def test_summary_loo_and_trace_of_the_whole_arviz(tree):
    az = pytest.importorskip("arviz")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    data = tree if int(az.__version__.split(".")[0]) >= 1 else az.from_datatree(tree)
    assert list(az.summary(data).index) == ["mu", "tau", "twice"]
    assert az.loo(data) is not None
    assert az.plot_trace(data) is not None


def test_names_and_labels_can_be_given(result):
    tree = result.to_datatree(num_draws=5, num_chains=1, dims={"y": ["school"]}, coords={"school": list("abcd")})
    assert list(tree["observed_data"]["y"].coords["school"].values) == list("abcd")
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "school")
    with pytest.raises(ValueError, match=r"'y'.*2 names for 1"):
        result.to_datatree(num_draws=5, dims={"y": ["a", "b"]})


def test_models_that_vmap_cannot_follow_run_draw_by_draw(result):
    def branching(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfNormal(torch.tensor(2.0)))
        pyro.deterministic("twice", 2 * mu if mu > 0 else mu + mu)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, tau), obs=y)

    one = result.to_datatree(num_draws=20, num_chains=1)
    other = datatree(branching, result._fitted[1], (Y,), num_draws=20, num_chains=1)
    assert one["log_likelihood"]["y"].values == pytest.approx(other["log_likelihood"]["y"].values, rel=1e-5)
    assert (one["posterior"]["twice"].values == other["posterior"]["twice"].values).all()


def test_what_cannot_be_laid_out_is_refused():
    def subsampled(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("rows", len(y), subsample_size=2) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    with pytest.raises(ValueError, match="whole data"):
        datatree(subsampled, AutoConvFlow(subsampled, num_blocks=1, prototype_args=(Y,)), (Y,))
    with pytest.raises(TypeError, match="AutoNormal"):
        datatree(model, pyro.infer.autoguide.AutoNormal(model), (Y,))


def test_resampling_takes_draws_as_often_as_their_weights_say():
    torch.manual_seed(0)
    log_weights = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    counts = torch.bincount(resampled_indices(log_weights, 1000), minlength=4)
    assert (counts - torch.tensor([100, 200, 300, 400])).abs().max() <= 1
    order = resampled_indices(log_weights, 1000)
    assert not torch.equal(order, order.sort().values)


def test_resampled_draws_follow_the_posterior():
    def wide():
        pyro.sample("x", dist.Normal(3.0, 1.0))

    torch.manual_seed(0)
    guide = AutoConvFlow(
        wide,
        num_blocks=1,
        init_scale=1.5,
        init_loc_fn=pyro.infer.autoguide.init_to_value(values={"x": torch.tensor(2.0)}),
    )
    assert abs(guide.sample_posterior(4000)["x"].mean() - 2) < 0.15
    draws = guide.resample(4000)["x"]
    assert draws.shape == (4000,)
    assert abs(draws.mean() - 3) < 0.06
    assert abs(draws.std() - 1) < 0.06
    with pytest.raises(ValueError, match="num_samples"):
        guide.resample(0)


def test_resampling_on_a_part_of_the_data_is_refused():
    """Weights from a minibatch of 20 gave 1.11 ± 0.11 in place of 0.98 ± 0.07."""
    y = 1 + torch.randn(200, generator=torch.Generator().manual_seed(1))

    def model(y, size=None):
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pyro.plate("d", 200, subsample_size=size) as i:
            pyro.sample("y", dist.Normal(b, 1.0), obs=y[i])

    guide = AutoConvFlow(model, num_blocks=1, prototype_args=(y,))
    with pytest.raises(ValueError, match="plate 'd', 20 of 200: resample on the whole data"):
        guide.resample(100, y, 20)
    draws = guide.resample(4000, y)["b"]
    precision = 200 + 1e-2
    assert abs(float(draws.mean()) - float(y.sum()) / precision) < 5 * precision**-0.5 / 4000**0.5
    assert float(draws.std()) == pytest.approx(precision**-0.5, rel=0.1)


def test_a_narrow_guide_is_warned_of():
    def model():
        pyro.sample("x", dist.StudentT(2.0))

    torch.manual_seed(0)
    guide = AutoConvFlow(model, num_blocks=1, init_scale=0.4)
    with pytest.warns(UserWarning, match="k-hat"):
        guide.resample(100)


def test_log_likelihoods_are_computed_in_double_precision():
    """In single precision PyTorch's are off by up to 16 nats."""
    counts = torch.tensor([1.2e6, 1.3e6])

    def trials():
        p = pyro.sample("p", dist.Beta(1.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("rows", 2):
            pyro.sample("y", dist.Binomial(torch.tensor(1e7), p), obs=counts)

    guide = AutoConvFlow(trials, num_blocks=1)
    tree = fit(trials, guide, num_steps=20).to_datatree(num_draws=50)
    p = tree["posterior"]["p"].values.astype("float64")
    wanted = stats.binom.logpmf(counts.numpy(), 10_000_000, p)
    assert tree["log_likelihood"]["y"].values == pytest.approx(wanted, abs=1e-6)
    ladj = np.log(p * (1 - p)).sum(-1)  # of the maps from log-odds
    assert tree["sample_stats"]["lp"].values == pytest.approx(wanted.sum(-1) + ladj, abs=1e-3)  # p is rounded


def test_reparametrised_sites_are_in_the_posterior_and_are_no_data():
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 4):
            theta = pyro.sample("theta", dist.Normal(mu, 0.5))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=Y)

    program = poutine.reparam(model, {"theta": LocScaleReparam(0.0)})
    guide = AutoConvFlow(program, num_blocks=1)
    tree = datatree(program, guide, num_draws=20, num_chains=1)
    assert set(tree["observed_data"].data_vars) == set(tree["log_likelihood"].data_vars) == {"y"}
    assert set(tree["posterior_predictive"].data_vars) == {"y"}
    posterior = tree["posterior"]
    assert posterior["theta"].dims == ("chain", "draw", "n")
    exact = posterior["mu"].values[..., None] + 0.5 * posterior["theta_decentered"].values
    np.testing.assert_allclose(posterior["theta"].values, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("batch", "event"), [((), 0), ((1, 2), 0), ((1, 2), 1)])
def test_a_data_set_drawn_anew_has_the_shape_of_the_observed_one(batch, event):
    y = torch.linspace(0.0, 2.0, 10).reshape(5, 2) if batch else torch.linspace(0.0, 2.0, 10)

    def wide():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu.expand(batch), 1.0).to_event(event), obs=y)

    tree = datatree(wide, AutoConvFlow(wide, num_blocks=1), num_draws=250)
    predicted = tree["posterior_predictive"]["y"].values
    assert predicted.shape == (4, 250, *y.shape)
    noise = (predicted.reshape(4, 250, 10) - tree["posterior"]["mu"].values[..., None]).reshape(1000, 10)
    assert noise.std() == pytest.approx(1.0, abs=0.03)
    assert np.abs(np.corrcoef(noise.T) - np.eye(10)).max() < 0.2
