"""The VAEs' layers and heads against shapes and densities worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from vi_flows.flows import ConvFlow
from vi_flows.nn import GaussianHead
from vi_flows.vae import AmortizedGuide, GenerativeModel, VAEConfig, build_vae


def linear_shapes(module):
    """(inputs, outputs) of the linear layers."""
    return [(layer.in_features, layer.out_features) for layer in module.modules() if isinstance(layer, nn.Linear)]


def test_the_encoder_mirrors_the_decoder():
    vae = build_vae(VAEConfig(latent_dims=(4,), hidden_dims=((30, 20),)), 64)
    assert linear_shapes(vae.model) == [(4, 30), (30, 20), (20, 64)]
    assert linear_shapes(vae.guide) == [(64, 20), (20, 30), (30, 8)]


def test_the_encoder_of_two_latents_mirrors_the_decoder():
    """z1 (3) → 11, 12 → z2 (5) → 13, 14 → x (64); each head has a mean and a log-variance."""
    vae = build_vae(VAEConfig("g2", latent_dims=(3, 5), hidden_dims=((11, 12), (13, 14)), num_extra_layers=1), 64)
    assert linear_shapes(vae.model.networks) == [(3, 11), (11, 12), (5, 13), (13, 14)]
    assert linear_shapes(vae.model.heads) == [(12, 10)]
    assert linear_shapes(vae.guide.networks) == [(5, 12), (12, 11), (11, 3), (64, 14), (14, 13), (13, 5)]
    assert linear_shapes(vae.guide.heads) == [(3, 6), (5, 10)]


def test_a_larger_encoder_leaves_the_decoder_as_it_is():
    """z1 (3) → 11 → z2 (5) → 13 → x (64), and upwards x → 40, 30 → z2 → 20 → z1: lists go from the latent downwards."""
    small = VAEConfig("g2", latent_dims=(3, 5), hidden_dims=((11,), (13,)), flow=ConvFlow(rank=None, kernel_size=2))
    vae = build_vae(replace(small, encoder_dims=((20,), (30, 40))), 64)
    assert linear_shapes(vae.model) == [(3, 11), (5, 13), (11, 10), (13, 64)]
    assert linear_shapes(vae.guide.networks) == [(5, 20), (64, 40), (40, 30)]
    assert linear_shapes(vae.guide.heads) == [(20, 6), (30, 10)]
    # the flows' parameters come from the encoder's last layer
    assert [shape[0] for shape in linear_shapes(vae.guide.flows)] == [20, 30]
    with pytest.raises(ValueError, match="g2 has 2 latents, got encoder_dims"):
        build_vae(replace(small, encoder_dims=((20,),)), 64)
    with pytest.raises(ValueError, match="encoder_dims must name at least one size"):
        VAEConfig(encoder_dims=())
    with pytest.raises(ValueError, match=r"g1 has 1 latents, got hidden_dims=\(\(3,\), \(4,\)\)"):
        build_vae(VAEConfig(hidden_dims=((3,), (4,))), 64)
    for name in ("hidden_dims", "encoder_dims"):
        with pytest.raises(ValueError, match=f"{name} must name at least one width below each latent"):
            VAEConfig("g2", **{name: ((3,), ())})


def with_log_variance_of_nine(head):
    """Mean 1 and log-variance ln 9 whatever the input."""
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.copy_(torch.tensor([1.0, math.log(9.0)]))


def test_the_head_gives_a_log_variance():
    """ln 9 is a scale of 3, not of 9."""
    head = GaussianHead(2, 1)
    with_log_variance_of_nine(head)
    loc, log_scale = head(torch.randn(5, 2))
    assert loc.flatten().tolist() == [1.0] * 5
    assert log_scale.exp().flatten().tolist() == pytest.approx([3.0] * 5)


def test_prior_and_posterior_have_the_variance_of_their_heads():
    """log N(4; 1, 9) = −ln(2π)/2 − ln 3 − 1/2 = −2.5175508."""
    guide = AmortizedGuide(6, (1,), ((3,),))
    with_log_variance_of_nine(guide.heads[0])
    model = GenerativeModel(6, (2, 1), ((3,), (3,)))
    with_log_variance_of_nine(model.heads[0])
    point = torch.full((2, 1), 4.0)
    for density in (guide.posterior(0, torch.rand(2, 6)), model.prior(1, torch.randn(2, 2))):
        assert density.log_prob(point).tolist() == pytest.approx([-2.5175508] * 2, abs=1e-6)
        assert density.variance.flatten().tolist() == pytest.approx([9.0] * 2, rel=1e-6)
