"""The conditioner with attention: every pixel sees every other, and knows where it is."""

from __future__ import annotations

import math

import pytest
import torch

from tests.transforms.case import randomise
from vi_flows.nn import AttentionConditioner
from vi_flows.nn.attention import PixelAttention, positions


def test_positions_by_hand():
    found = positions(2, 3, 8, torch.zeros(1, dtype=torch.float64))
    assert found.shape == (6, 8)
    # The last pixel is at (1, 2); the frequencies are 1 and 100^(−1/2).
    expected = [f(place * rate) for rate in (1.0, 0.1) for place in (1, 2) for f in (math.sin, math.cos)]
    torch.testing.assert_close(found[5], torch.tensor(expected, dtype=torch.float64))
    assert positions(2, 3, 5, found).shape == (6, 5)
    assert len(positions(5, 7, 4, found).unique(dim=0)) == 35


def test_attention_is_the_softmax_average_of_the_values():
    """One head of three channels, against the formula written out pixel by pixel."""
    layer = randomise(PixelAttention(3).double(), 0.7)
    assert layer.num_heads == 1
    h = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    pixels = torch.nn.functional.layer_norm(h[0].flatten(1).mT, (3,), layer.norm.weight, layer.norm.bias)
    q, k, v = ((pixels + positions(2, 2, 3, h)) @ layer.inward.weight.mT + layer.inward.bias).chunk(3, -1)
    for i in range(4):
        weights = torch.stack([(q[i] @ k[j] / math.sqrt(3)).exp() for j in range(4)])
        average = sum(weights[j] / weights.sum() * v[j] for j in range(4))
        a, b = (layer.outward.weight @ average + layer.outward.bias).chunk(2)
        torch.testing.assert_close(layer(h)[0, :, i // 2, i % 2], h[0, :, i // 2, i % 2] + a * b.sigmoid())


def test_every_pixel_sees_every_pixel_and_its_own_place():
    network = randomise(AttentionConditioner(2, 3, 8).double(), 0.5)
    x = torch.randn(1, 2, 7, 8, dtype=torch.float64)
    seen = torch.autograd.functional.jacobian(lambda image: network(image)[0, :, 0, 0].sum(), x)
    assert (seen != 0).all()
    assert not torch.allclose(network(x.roll(1, -1))[..., 3:5], network(x).roll(1, -1)[..., 3:5])
    assert network(x[:0]).shape == (0, 3, 7, 8)
    assert network(1e6 * x).abs().max() < 1e3  # the input is squashed


def test_it_starts_at_zero_and_has_exact_gradients():
    network = AttentionConditioner(1, 2, 4, num_blocks=2)
    assert not network(torch.randn(2, 1, 4, 4)).any()
    layer = randomise(PixelAttention(4).double(), 0.5)
    assert torch.autograd.gradcheck(layer, torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True))
    with pytest.raises(ValueError, match="sizes must be at least 1"):
        AttentionConditioner(1, 2, 0)
