"""The truths of ``experiments/high_dimension`` in few dimensions, by other ways, and its table."""

import pyro
import pytest
import torch

from experiments import high_dimension
from vi_flows.guides.log_joint import LogJoint
from vi_flows.records import Record, provenance


def test_the_autoregression_is_stationary():
    target = high_dimension.ar1(4, 0.9)
    x = torch.tensor([0.3, -1.0, 0.5, 2.0])
    normal = torch.distributions.Normal
    # Step by step: unit variance first, then innovations of variance 1 − 0.9².
    wanted = normal(0.0, 1.0).log_prob(x[0]) + normal(0.9 * x[:-1], 0.19**0.5).log_prob(x[1:]).sum()
    assert LogJoint(target.model)({"x": x[None]}).item() == pytest.approx(wanted.item(), abs=1e-4)
    mean, sd, evidence = target.truth()
    assert (mean.tolist(), sd.tolist(), evidence) == ([0.0] * 4, [1.0] * 4, 0.0)


def test_the_regression_has_its_evidence():
    target = high_dimension.regression(12, 3)
    mean, sd, evidence = target.truth()
    # The posterior's density from the joint one: at the mean, and one sd from it along each axis for its precision.
    points = torch.cat([mean[None], mean + torch.eye(3).double() * sd])
    joint = LogJoint(target.model)({"x": points.float()}).double()
    with pyro.poutine.block():
        hessian = torch.autograd.functional.hessian(lambda b: LogJoint(target.model)({"x": b[None]})[0], mean.float())
    precision = -hessian.double()
    torch.testing.assert_close(torch.linalg.inv(precision).diagonal().sqrt(), sd, rtol=1e-4, atol=0)
    posterior = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    torch.testing.assert_close(
        joint - posterior.log_prob(points), torch.full((4,), evidence).double(), rtol=0, atol=2e-3
    )


def test_hamiltonian_moments_are_those_of_quadrature():
    generator = torch.Generator().manual_seed(1)
    x = torch.tensor([[1.0, 0.0], [0.5, 1.0], [-1.0, 2.0], [2.0, 1.0], [1.5, -1.0], [0.3, 0.3]])
    y = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    grid = torch.linspace(-6, 6, 601, dtype=torch.float64)
    b = torch.cartesian_prod(grid, grid)
    logits = b @ x.double().T
    log_p = -0.5 * b.square().sum(-1) + (y * logits - torch.nn.functional.softplus(logits)).sum(-1)
    weights = torch.softmax(log_p, 0)
    mean = weights @ b
    sd = (weights @ (b - mean).square()).sqrt()
    found_mean, found_sd = high_dimension.hamiltonian(x, y, generator, chains=400, draws=60)
    torch.testing.assert_close(found_mean, mean, rtol=0, atol=0.03)
    torch.testing.assert_close(found_sd, sd, rtol=0.03, atol=0)


def test_the_table_shows_failures(monkeypatch, tmp_path):
    monkeypatch.setattr(high_dimension, "RESULTS", tmp_path)
    good = {
        "method": "AutoConvFlow", "cpu_seconds": 4.2, "peak_mb": 541, "elbo": 0.001, "gap": -0.001,
        "largest_mean_error": 0.026, "least_sd_ratio": 0.9889, "largest_sd_ratio": 1.0132,
    }  # fmt: skip
    rows = [good, {"method": "AutoMultivariateNormal", "failed": "over 900 s of CPU time"}]
    Record(
        kind="high_dimension", key="ar1", label="ar1", settings={}, figures={"rows": rows}, provenance=provenance()
    ).write(tmp_path / "ar1.json")
    lines = high_dimension.table().splitlines()
    assert lines[2] == "| ar1 | AutoConvFlow | 4 | 541 | 0.00 | -0.00 | 0.03 | 0.99 – 1.01 |"
    assert "over 900 s of CPU time" in lines[3]
    assert len(lines) == 4
