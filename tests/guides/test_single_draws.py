"""Pyro's own guides of models that were written for single draws: run draw by draw, not mixed up."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from vi_flows.diagnostics import diagnose
from vi_flows.guides import fit
from vi_flows.guides.at_once import run_at_once

Y = torch.tensor([1.0, 2.0, -0.5, 0.3])
X = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0], [2.0, 0.0, 1.0], [0.3, 0.3, 0.3]])


def by_matrix():
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(X @ b, 1.0).to_event(1), obs=Y)


def by_sum():
    """With particles on the left, the sum is over them, too, and nothing fails."""
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(b.sum(), 1.0), obs=torch.tensor(1.0))


def without_plates():
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0))
    pyro.sample("y", dist.Normal(b, 1.0), obs=Y[:3])


@pytest.mark.parametrize(("model", "evidence"), [
    (by_matrix, float(dist.MultivariateNormal(torch.zeros(4), X @ X.T + torch.eye(4)).log_prob(Y))),
    (by_sum, float(dist.Normal(0.0, 2.0).log_prob(torch.tensor(1.0))))])  # fmt: skip
def test_pyros_guides_of_models_for_single_draws(model, evidence):
    pyro.clear_param_store()
    guide = AutoMultivariateNormal(model, init_scale=0.7)
    pyro.set_rng_seed(0)
    fit(model, guide, num_steps=150, num_particles=4, learning_rate=0.03)
    report = diagnose(model, guide, num_samples=400)
    assert report.elbo < evidence + 0.05
    assert report.log_evidence == pytest.approx(evidence, abs=0.15)


def test_pyro_refuses_a_batch_without_a_plate_by_name():
    with pytest.raises(ValueError, match='site "b"'):
        fit(without_plates, AutoMultivariateNormal(without_plates), num_steps=2)


def rows_of(shared, coupled, y, size=None):
    """Rows with one vector of latents, which ``shared`` adds up, and where ``coupled`` an observation of its own."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("d", len(y), subsample_size=size) as i:
        pyro.sample("y", dist.Normal(shared(z), 1.0), obs=y[i])
    if coupled:
        pyro.sample("extra", dist.Normal(shared(z), 1.0), obs=torch.tensor(3.0))


@pytest.mark.parametrize("size", [None, 30, 5])
@pytest.mark.parametrize("coupled", [False, True])
def test_one_pass_is_compared_with_single_runs_on_the_same_rows(size, coupled):
    """On a part of the data, a sum over particles went unseen: the fit's mean was 0.36 in place of 2.80."""
    y = 3 + torch.randn(40, generator=torch.Generator().manual_seed(1))
    for shared, at_once in ((lambda z: z.sum(-1), True), (lambda z: z.sum(), False)):
        model = partial(rows_of, shared, coupled)
        guide = AutoNormal(model)
        guide(y, size)
        assert run_at_once(model, guide, (y, size), {}) is at_once


@pytest.mark.parametrize("size", [None, 5])
def test_latents_of_a_row_are_compared_on_their_rows(size):
    y = torch.randn(40, generator=torch.Generator().manual_seed(1))

    def guide(y, size):
        with pyro.plate("d", 40, subsample_size=size) as i:
            pyro.sample("z", dist.Normal(y[i] / 2, 0.7))

    for wrong in (False, True):

        def model(y, size, wrong=wrong):
            with pyro.plate("d", 40, subsample_size=size) as i:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("y", dist.Normal(z.sum() if wrong else z, 1.0), obs=y[i])

        assert run_at_once(model, guide, (y, size), {}) is not wrong
