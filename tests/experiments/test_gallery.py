"""The gallery's comparison on a posterior whose truth is known, and its reference sampler."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from experiments.amortized_hierarchical import exact_posterior
from experiments.gallery import bnn, common, logistic, nile, rats
from experiments.gallery.__main__ import Gallery
from experiments.gallery.common import Budget, Posterior, errors
from experiments.gallery.reference import Coordinates, Reference, nuts, summarise
from vi_flows.records import Record


def correlated(scale):
    """Two Gaussians of correlation 0.9, one of them in other units, and a positive scalar."""
    a = pyro.sample("a", dist.Normal(300.0, 100.0))
    pyro.sample("b", dist.Normal(0.009 * (a - 300.0), scale))
    pyro.sample("c", dist.Gamma(4.0, 2.0))


SCALE = torch.tensor(0.19**0.5)
TRUTH = {"a": (300.0, 100.0), "b": (0.0, 1.0), "c": (2.0, 1.0)}


def quantities(draws):
    return {name: draws[name] for name in "abc"}


def exact():
    means, sds = ({k: v[i] for k, v in TRUTH.items()} for i in (0, 1))
    return Reference("exact", means, sds, 1, 1, 1.0, 1.0)


@pytest.mark.parametrize("precondition", [True, False])
def test_coordinates_hold_the_models_density(precondition):
    pyro.set_rng_seed(0)
    c = Coordinates(correlated, (SCALE,), precondition)
    z = torch.randn(6, 3)
    sites = c.sites(z)
    x = c.loc + z @ c.scale.T
    log_c = c.unpack(x)["c"]
    expected = torch.stack([
        dist.Normal(300.0, 100.0).log_prob(sites["a"]),
        dist.Normal(0.009 * (sites["a"] - 300.0), SCALE).log_prob(sites["b"]),
        dist.Gamma(4.0, 2.0).log_prob(sites["c"]) + log_c,
    ]).sum(0)  # fmt: skip
    found = -torch.stack([c.potential({"z": row}) for row in z])
    # Up to one constant.
    torch.testing.assert_close(found - found[0], expected - expected[0], rtol=1e-4, atol=1e-3)


def test_nuts_finds_a_known_posterior():
    reference = nuts(correlated, (SCALE,), quantities, num_draws=150, warmup=80, num_chains=2)
    assert reference.max_r_hat < 1.1
    assert reference.min_ess > 40
    for name, (mean, sd) in TRUTH.items():
        assert abs(reference.mean[name] - mean) < 0.4 * sd
        assert 0.7 < reference.sd[name] / sd < 1.35


def test_summary_sees_chains_that_disagree():
    torch.manual_seed(0)
    good = torch.randn(4, 200, dtype=torch.float64)
    assert summarise("x", {"a": good}).max_r_hat < 1.05
    assert summarise("x", {"a": good + torch.arange(4)[:, None]}).max_r_hat > 1.5
    with pytest.raises(ValueError, match="equal"):
        summarise("x", {"a": torch.ones(4, 200)})


def test_errors_are_in_reference_units():
    draws = {"a": torch.tensor([300.0, 500.0]), "b": torch.tensor([-1.0, 1.0]), "c": torch.tensor([2.0, 2.0])}
    found = errors(draws, exact())
    assert (found["max_mean_error_sd"], found["at"]) == (1.0, "a")
    assert (found["min_sd_ratio"], found["min_at"]) == (0.0, "c")
    assert abs(found["max_sd_ratio"] - 2**0.5) < 1e-4


def test_record_says_all_of_its_making(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    posterior = Posterior("toy", "a toy", correlated, (SCALE,), quantities, exact)
    budget = Budget(num_steps=4, num_particles=250, num_draws=50)
    Gallery(guides=("AutoConvFlow", "AutoNormal"), budget=budget).run_posterior(posterior)
    written = Record.read(posterior.path)
    record = written.figures
    assert (written.kind, written.label) == ("gallery", "a toy")
    assert [row["guide"] for row in record["rows"]] == ["AutoNormal", "AutoConvFlow"]
    for row in record["rows"]:
        assert {"revision", "torch", "device", "settings", "seconds", "verdict", "k_hat", "elbo"} <= set(row)
        assert row["settings"]["seed"] == 0
    assert len(record["rows"][0]["elbo_by_learning_rate"]) == 2
    record["reference"]["mean"]["a"] = -1e6
    written.write(posterior.path, overwrite=True)
    Gallery(guides=("AutoConvFlow",), keep=True, budget=budget).run_posterior(posterior)
    again = Record.read(posterior.path).figures
    assert again["rows"][0] == record["rows"][0]
    assert again["rows"][1]["max_mean_error_sd"] > 1e3  # the kept truth was used
    assert "AutoConvFlow" in capsys.readouterr().out
    with pytest.raises(ValueError, match="unknown: nowhere"):
        Gallery(names=("nowhere",)).run()


def test_a_guide_that_diverges_is_a_row(monkeypatch):
    def diverge(*args, **kwargs):
        raise RuntimeError("a hundred steps in a row had no finite loss and gradient")

    monkeypatch.setattr(common, "fit", diverge)
    posterior = Posterior("toy", "a toy", correlated, (SCALE,), quantities, exact)
    row = common.run_guide(posterior, "AutoNormal", exact(), Budget(num_steps=1))
    assert row["verdict"] == "diverged"
    assert row["elbo_by_learning_rate"] == {"0.01": None, "0.1": None}
    assert "diverged" in common.describe(row)


@pytest.mark.parametrize("module", [logistic, nile, rats, bnn])
def test_programs_run_and_give_scalars(module):
    args = module.load()
    pyro.set_rng_seed(0)
    trace = pyro.poutine.trace(module.model).get_trace(*args)
    assert torch.isfinite(trace.log_prob_sum())
    draws = {
        name: site["value"].expand(7, *site["value"].shape)
        for name, site in trace.iter_stochastic_nodes()
    }  # fmt: skip
    assert all(value.shape == (7,) for value in module.quantities(draws).values())
    assert module.posterior().name == module.__name__.rsplit(".", 1)[1]


def test_exact_hierarchical_posterior_by_importance_sampling():
    torch.manual_seed(0)
    x = 2.0 + 1.5 * torch.randn(30, 1) + torch.randn(30, 5)
    exact = exact_posterior(x)
    mu = exact.mean["mu"] + 2 * exact.sd["mu"] * torch.randn(100_000, dtype=torch.float64)
    tau = (exact.mean["tau"] + 2 * exact.sd["tau"] * torch.randn(100_000, dtype=torch.float64)).abs()
    proposal = (
        dist.Normal(exact.mean["mu"], 2 * exact.sd["mu"]).log_prob(mu)
        + torch.logaddexp(
            dist.Normal(exact.mean["tau"], 2 * exact.sd["tau"]).log_prob(tau),
            dist.Normal(exact.mean["tau"], 2 * exact.sd["tau"]).log_prob(-tau),
        )
    )  # fmt: skip
    spread = (tau.square() + 0.2).sqrt()
    likelihood = dist.Normal(mu[:, None], spread[:, None]).log_prob(x.double().mean(-1)).sum(-1)
    prior = dist.Normal(0.0, 5.0).log_prob(mu) + dist.HalfNormal(5.0).log_prob(tau)
    weight = torch.softmax(prior + likelihood - proposal, 0)
    shrink = (tau.square() / (tau.square() + 0.2))[:, None]
    z = mu[:, None] + shrink * (x.double().mean(-1) - mu[:, None]) + (shrink * 0.2).sqrt() * torch.randn(100_000, 30)
    for name, value in (("mu", mu[:, None]), ("tau", tau[:, None]), ("z", z)):
        mean = (weight[:, None] * value).sum(0)
        sd = (weight[:, None] * (value - mean).square()).sum(0).sqrt()
        assert ((mean - exact.mean[name]).abs() / exact.sd[name]).max() < 0.05, name
        assert (sd / exact.sd[name] - 1).abs().max() < 0.05, name
