"""A VAE with an image flow as its likelihood, trained by Pyro's SVI."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.distributions.transforms import planar
from pyro.infer import SVI, RenyiELBO, Trace_ELBO

from tests.image.small_flows import images, small_flow
from vi_flows import conditional_conv_flow, conv_flow
from vi_flows.data import load
from vi_flows.distributions.image import ImageDensity
from vi_flows.transforms import Chain, FromPyro
from vi_flows.vae.flow_likelihood import FlowLikelihoodVAE


def make(**options):
    torch.manual_seed(0)
    density = ImageDensity(small_flow("inv_conv3x3"), (1, 8, 8), num_levels=17)
    return FlowLikelihoodVAE(density, 4, (32,), **options)


def test_training_through_pyro_lowers_the_bound_on_digits():
    pyro.clear_param_store()
    data = load("digits")
    x = data.images("train")
    vae = with_flows()
    vae.initialize(x[:256])
    before = vae.bits_per_dim(x[:200]).mean()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
    for step in range(60):
        svi.step(x[torch.arange(100) + 10 * step], dataset_size=len(x))
    after = vae.bits_per_dim(x[:200]).mean()
    assert after < before
    assert all(p.grad is None or p.grad.isfinite().all() for p in vae.parameters())
    changed = [not torch.equal(a, b) for a, b in zip(vae.parameters(), with_flows().parameters(), strict=True)]
    assert sum(changed) > len(changed) // 2
    drawn = vae.sample(7, temperature=0.8)
    assert drawn.shape == (7, 1, 8, 8)
    assert ((drawn >= 0) & (drawn <= 16) & (drawn == drawn.round())).all()


def with_flows():
    return make(prior_flow=conv_flow(4, 1, activation="tanh"), posterior_flow=conditional_conv_flow(4, 32, 1))


@pytest.mark.parametrize("elbo", [Trace_ELBO, RenyiELBO])
def test_vectorised_particles_agree_with_the_direct_bound(elbo):
    pyro.clear_param_store()
    vae = make(posterior_flow=conv_flow(4, 1)).eval()
    # Pyro's RenyiELBO weighs all rows of a batch together: compare it on one.
    x = images(1 if elbo is RenyiELBO else 6, 1, 8, 8, levels=17)
    particles = 400
    options = {"alpha": 0} if elbo is RenyiELBO else {}
    estimator = elbo(num_particles=particles, vectorize_particles=True, max_plate_nesting=1, **options)
    torch.manual_seed(1)
    traced = estimator.loss(vae.model, vae.guide, x)
    torch.manual_seed(2)
    if elbo is Trace_ELBO:
        bits = torch.stack([vae.bits_per_dim(x) for _ in range(particles)]).mean(0)
    else:
        bits = vae.bits_per_dim(x, particles)
    nats = bits.sum().item() * 64 * math.log(2)
    assert traced == pytest.approx(nats, rel=1e-2)


def test_generates_without_data():
    pyro.clear_param_store()
    vae = make()
    assert vae.model(size=3).shape == (3, 1, 8, 8)


def test_a_second_one_is_trained_in_full_beside_the_first():
    pyro.clear_param_store()
    x = images(6, 1, 8, 8, levels=17)
    for _ in range(2):
        vae = make()
        before = [p.detach().clone() for p in vae.parameters()]
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
        for _ in range(2):  # in the first step the zeros of last layers hide what is before them
            svi.step(x)
        moved = {n: not torch.equal(a, b) for a, (n, b) in zip(before, vae.named_parameters(), strict=True)}
        for part in ("density", "decoder", "head", "encoder"):
            assert any(moved[name] for name in moved if name.startswith(part)), part


def test_a_prior_whose_density_jumps_or_has_no_inverse_is_refused():
    for flow in (conv_flow(4), Chain([FromPyro(planar(4))])):
        with pytest.raises(ValueError, match="a prior's flow needs an inverse and a continuous log-determinant"):
            make(prior_flow=flow)


def test_images_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"expected images of \(1, 8, 8\), got a tensor of \(5, 1, 9, 9\)"):
        make().bits_per_dim(torch.zeros(5, 1, 9, 9), 3)
