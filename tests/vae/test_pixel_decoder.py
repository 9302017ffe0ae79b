"""VAEs with autoregressive decoders: densities against enumeration, Pyro's own training, and the use of the latent."""

from __future__ import annotations

import itertools
import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO

from vi_flows.autoregressive.config import Gated, Made, Residual, Row
from vi_flows.evaluation import estimate_nll
from vi_flows.flows import FLOWS
from vi_flows.vae import VAEConfig, build_pixel_vae, evaluate_vae, latent_use, others_of

SHAPE = (1, 3, 3)
ALL = torch.tensor(list(itertools.product([0.0, 1.0], repeat=9)))
DECODERS = {
    "pixel_cnn": Residual(width=4, num_blocks=1, first_kernel=3),
    "gated": Gated(width=4, num_layers=1, first_kernel=3),
    "made": Made(hidden_dims=(16,)),
    "made-masks": Made(hidden_dims=(16,), num_masks=2),
    "made-networks": Made(hidden_dims=(16,), num_networks=2),
    "row": Row(width=4, num_layers=1, first_kernel=3),
}


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()


def small(decoder="pixel_cnn", architecture="g1", scale=0.5, **options):
    torch.manual_seed(0)
    sizes = {"g1": ((2,), ((8,),)), "g2": ((2, 3), ((6,), (8,)))}[architecture]
    vae = build_pixel_vae(VAEConfig(architecture, *sizes, **options), DECODERS[decoder], SHAPE)
    with torch.no_grad():
        for p in vae.model.parameters():
            p.normal_().mul_(scale)
    return vae.double().eval()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("architecture", ["g1", "g2"])
def test_the_likelihood_sums_to_one_and_follows_the_latent(decoder, architecture):
    vae = small(decoder, architecture)
    z = torch.randn(4, vae.model.latent_dims[-1], dtype=torch.float64)
    log_p = vae.model.likelihood(z.unsqueeze(1)).log_prob(ALL.double())
    assert log_p.shape == (4, 512)
    assert log_p.logsumexp(1).abs().max() < 1e-10
    assert (log_p[0] - log_p[1]).abs().max() > 0.05


def test_every_network_of_a_decoder_is_trained():
    """The likelihood is the mixture, so that the setting has its effect here too."""
    vae = small("made-networks")
    x = ALL[[0, 100, 511]].double()
    vae.model.likelihood(torch.zeros(3, 2, dtype=torch.float64)).log_prob(x).sum().backward()
    assert all(p.grad is not None for p in vae.model.decoder.parameters())


def test_a_value_that_is_not_binary_is_refused():
    vae = small()
    with pytest.raises(ValueError, match="support"):
        vae.model.likelihood(torch.zeros(1, 2, dtype=torch.float64), True).log_prob(torch.full((1, 9), 0.5))


def test_rows_that_are_not_binary_have_no_weights():
    vae = small()
    evaluated = (lambda x: latent_use(vae, x, x), lambda x: evaluate_vae(vae, x, 5))
    for call in (vae.log_weight_terms, vae.reconstruct, *evaluated):
        with pytest.raises(ValueError, match="rows must be zeros and ones, the pixels of the decoder"):
            call(ALL[:3] / 2 + 0.25)
    assert latent_use(vae, ALL[:3].bool(), ALL[1:4].bool()).kl.isfinite().all()


@pytest.mark.parametrize("architecture", ["g1", "g2"])
def test_direct_weights_are_those_of_the_pyro_programs(architecture):
    vae = small(architecture=architecture, flow=FLOWS["planar"](num_layers=2))
    x = ALL[torch.randint(512, (5,))].double()
    pyro.set_rng_seed(1)
    loss = Trace_ELBO().loss(vae.model, vae.guide, x)
    pyro.set_rng_seed(1)
    assert -vae.log_weight_terms(x).log_weights().sum().item() == pytest.approx(loss, rel=1e-9)


def test_importance_sampling_finds_the_evidence_of_a_quadrature():
    vae = small(scale=0.8)
    x = ALL[[0, 100, 511]].double()
    axis = torch.linspace(-6, 6, 121, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_p = vae.model.likelihood(grid.unsqueeze(1)).log_prob(x) - 0.5 * (grid**2).sum(1, keepdim=True)
    exact = log_p.logsumexp(0) - math.log(2 * math.pi) + 2 * math.log(0.1)
    found = estimate_nll(lambda rows, n: vae.log_weight_terms(rows, n).log_weights(), x, 4000, progress=False)
    assert (found.nll + exact).abs().max() < 0.05


@pytest.mark.parametrize(("first_kernel", "least", "most"), [(1, 1.1, 3.0), (3, 0.4, 1.1)])
def test_svi_trains_it_and_the_latent_carries_what_the_decoder_does_not_see(first_kernel, least, most):
    """One row of three is lit, 1.10 nats. A decoder without neighbours leaves all to the latent; one that sees the
    pixel to the left needs no more than a hint for the first of a row."""
    torch.manual_seed(0)
    lit = torch.eye(3).repeat_interleave(20, 0)
    data = lit.unsqueeze(-1).expand(-1, 3, 3).reshape(60, 9)
    decoder = Residual(width=8, num_blocks=0, first_kernel=first_kernel)
    vae = build_pixel_vae(VAEConfig("g1", (2,), ((16,),)), decoder, SHAPE)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 5e-3}), Trace_ELBO())
    for _ in range(150):
        svi.step(data)
    found = latent_use(vae, data, data.roll(20, 0))  # another row is lit
    assert 1.0 < (found.kl + found.reconstruction).mean() < 2.2  # 5.7 where nothing is learnt but the mean
    assert least < found.kl.mean() < most
    assert (found.reconstruction_of_others - found.reconstruction).mean() > 3
    alike = latent_use(vae, data, data)  # the same images in other draws of their latents
    assert abs(float((alike.reconstruction_of_others - alike.reconstruction).mean())) < 0.5


def test_every_row_has_another_one_wherever_it_stands():
    """In a file with one class after the other, most of the others are of another class."""
    for size in (2, 3, 500):
        order = others_of(torch.arange(size))
        assert sorted(order.tolist()) == list(range(size))
        assert not bool((order == torch.arange(size)).any())
    classes = torch.arange(10).repeat_interleave(50)
    assert float((others_of(classes) == classes).double().mean()) == pytest.approx(49 / 499, abs=0.05)
    assert torch.equal(others_of(classes, 3), others_of(classes, 3))
    assert not torch.equal(others_of(classes, 3), others_of(classes, 4))


def test_predictive_draws_binary_rows_and_the_vae_shows_draws():
    vae = small()
    assert set(Predictive(vae.model, num_samples=3)(size=4)["x"].unique().tolist()) <= {0.0, 1.0}
    assert set(vae.sample(6).unique().tolist()) <= {0.0, 1.0}
    assert vae.reconstruct(ALL[:4].double()).shape == (4, 9)


def test_refusals():
    with pytest.raises(ValueError, match="another image"):
        others_of(ALL[:1].double())
    with pytest.raises(ValueError, match="3 rows and 2 others"):
        latent_use(small(), ALL[:3].double(), ALL[:2].double())
    with pytest.raises(ValueError, match="latent_dims"):
        build_pixel_vae(VAEConfig("g2", (2,)), DECODERS["made"], SHAPE)


def test_the_memory_of_a_point():
    """9 pixels: what any latent chain takes, and 3 numbers a pixel for each channel of the decoder's convolutions."""
    vae = small("pixel_cnn")
    channels = sum(m.out_channels for m in vae.model.decoder.modules() if isinstance(m, torch.nn.Conv2d))
    widths = sum(m.out_features for m in vae.model.modules() if isinstance(m, torch.nn.Linear))
    assert channels >= 3 * 4  # the first layer, a block and the head
    assert vae.model.numbers_a_point == 5 * 9 + 3 * widths + 12 * 2 + 3 * 9 * channels
