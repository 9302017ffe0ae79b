"""Which plates bounds share: sites of model and guide in different ones, and values that are only noted."""

from __future__ import annotations

import math
import warnings
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

from vi_flows.diagnostics import diagnose
from vi_flows.evaluation import estimate_nll, pyro_log_weights
from vi_flows.objectives import ELBO, IWAE, DReG, RenyiBound

SD = 0.7


pytestmark = pytest.mark.usefixtures("double_precision")


def flat(m):
    """Latents in a plate, one observation of their sum outside of it."""

    def guide():
        with pyro.plate("n", len(m)):
            pyro.sample("z", dist.Normal(m, SD))

    def model():
        with pyro.plate("n", len(m)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 0.5), obs=torch.tensor(2.0))

    return model, guide, torch.tensor([2.0])


def nested(m):
    """Latents in two plates, an observation for each row of the outer one."""
    x = torch.linspace(-1.0, 2.0, len(m))[:, None]

    def guide():
        with pyro.plate("b", m.shape[0], dim=-2), pyro.plate("a", m.shape[1], dim=-1):
            pyro.sample("z", dist.Normal(m, SD))

    def model():
        with pyro.plate("b", m.shape[0], dim=-2):
            with pyro.plate("a", m.shape[1], dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 0.5), obs=x)

    return model, guide, x[:, 0]


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize(
    ("program", "shape", "particles"),
    [(flat, (4,), 4), (flat, (3,), 4), (nested, (3, 3), 3), (nested, (2, 3), 4), (nested, (3, 2), 2)],
)
def test_dreg_where_the_guides_sites_share_more_plates_than_the_models(program, shape, particles, vectorize):
    """Tucker et al. (2019), eq. 8, on the same draws: ``Σ ŵ² ∂log w/∂z ∂z/∂m``, an outer row by itself."""
    m = torch.linspace(-0.5, 1.0, torch.Size(shape).numel()).reshape(shape).requires_grad_()
    model, guide, x = program(m)
    pyro.set_rng_seed(1)
    noise = torch.stack([torch.normal(torch.zeros(shape), 1.0) for _ in range(particles)])
    if vectorize:
        pyro.set_rng_seed(1)
        noise = torch.normal(torch.zeros(particles, *shape), 1.0)
    z = (m.detach() + SD * noise).requires_grad_()
    ratio = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(m.detach(), SD).log_prob(z)
    if program is flat:
        log_w = ratio.sum(-1, keepdim=True) + dist.Normal(z.sum(-1, keepdim=True), 0.5).log_prob(x)  # (P, 1)
    else:
        log_w = ratio.sum(-1) + dist.Normal(z.sum(-1), 0.5).log_prob(x)  # (P, B)
    (grad_z,) = torch.autograd.grad(log_w.sum(), z)
    weight = log_w.detach().softmax(0)[..., None] if program is nested else log_w.detach().softmax(0)
    expected = -(weight.square() * grad_z).sum(0)
    pyro.set_rng_seed(1)
    loss = DReG(particles, vectorize_particles=vectorize, max_plate_nesting=len(shape))
    value = loss.differentiable_loss(model, guide)
    assert value.item() == pytest.approx(-float((log_w.detach().logsumexp(0) - math.log(particles)).sum()))
    torch.testing.assert_close(torch.autograd.grad(value, m)[0], expected)


@pytest.mark.parametrize("particles", [1, 3])
def test_dreg_of_a_single_number(particles):
    """Also by Pyro's own guides."""

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    loss = SVI(model, AutoNormal(model), Adam({"lr": 0.01}), DReG(particles)).step()
    assert 0 < loss < 10


DATA = torch.linspace(-2.0, 2.0, 8)


def rows(noted, batch=None):
    def model():
        s = torch.tensor(0.5)
        if noted:
            pyro.deterministic("sigma", 2 * s)
        with pyro.plate("n", 8, subsample_size=batch) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if noted:
                pyro.deterministic("twice", 2 * z)
            pyro.sample("x", dist.Normal(z, s), obs=DATA[index])

    return model


def guide():
    with pyro.plate("n", 8):
        pyro.sample("z", dist.Normal(torch.full((8,), 0.1), 1.0))


def guide_of_a_part():
    with pyro.plate("n", 8, subsample_size=4):
        pyro.sample("z", dist.Normal(torch.full((4,), 0.1), 1.0))


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("loss", [ELBO, IWAE, DReG, lambda n, **o: RenyiBound(0.5, n, **o)])
@pytest.mark.parametrize(("batch", "q"), [(None, guide), (4, guide_of_a_part)])
def test_a_value_that_is_noted_changes_no_bound(loss, batch, q, vectorize):
    found = []
    for noted in (False, True):
        pyro.set_rng_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found.append(loss(5, vectorize_particles=vectorize, max_plate_nesting=1).loss(rows(noted, batch), q))
    assert found[0] == found[1]


@pytest.mark.parametrize("vectorize", [False, True])
def test_weights_keep_their_rows_where_a_value_is_noted(vectorize):
    found = []
    for noted in (False, True):
        pyro.set_rng_seed(0)
        bound = IWAE(5, vectorize_particles=vectorize, max_plate_nesting=1)
        weights = bound.log_weights(rows(noted), guide)
        assert weights.dims == ((-2, -1) if vectorize else (-1,))
        found.append(weights.log_weights())
    assert found[0].shape == (5, 8)
    assert torch.equal(*found)


def test_a_value_that_is_noted_changes_no_evidence_of_rows():
    def model(x, noted):
        if noted:
            pyro.deterministic("half", torch.tensor(0.5))
        with pyro.plate("n", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def q(x, noted):
        with pyro.plate("n", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.5))

    found = []
    for noted in (False, True):
        weights = pyro_log_weights(partial(model, noted=noted), partial(q, noted=noted))
        report = diagnose(model, q, DATA, noted, num_samples=1000)
        found.append((estimate_nll(weights, DATA, 200).nll.tolist(), report.log_evidence, len(report.k_hat_rows)))
    assert found[0] == found[1]
    exact = dist.Normal(0.0, 1.25**0.5).log_prob(DATA).sum()
    assert found[0][1] == pytest.approx(float(exact), abs=0.05)


def test_what_couples_the_rows_of_a_minibatch_is_said():
    def model():
        pyro.factor("penalty", torch.tensor(-1.0))
        rows(False, 4)()

    with pytest.warns(UserWarning, match=r"sites outside of them \(latents, observations, `pyro.factor`\)"):
        IWAE(3).loss(model, guide_of_a_part)


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("loss", [ELBO, IWAE])
def test_the_bound_of_a_program_without_sites_is_zero(loss, vectorize):
    assert loss(3, vectorize_particles=vectorize, max_plate_nesting=0).loss(lambda: None, lambda: None) == 0


@pytest.mark.parametrize("wrong", ["0.5", None, [0.5]])
def test_settings_that_are_no_numbers_are_named(wrong):
    with pytest.raises(TypeError, match="alpha must be of type int or float, got"):
        RenyiBound(wrong)
    with pytest.raises(TypeError, match="kl_weight must be of type int or float, got"):
        ELBO(kl_weight=wrong)
    assert RenyiBound(np.float32(0.5)).alpha == 0.5
    assert ELBO(kl_weight=np.float32(0.5)).kl_weight == 0.5
