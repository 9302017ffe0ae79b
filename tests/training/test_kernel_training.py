"""Training does not depend on the kernel that evaluates the flow."""

from __future__ import annotations

import pytest
import torch

from vi_flows.flows import ConvFlow
from vi_flows.kernels import active_kernel, use_kernel
from vi_flows.objectives import elbo_bound
from vi_flows.vae import VAEConfig, build_vae


def losses(kernel, amortized, steps=100):
    with use_kernel(kernel):
        torch.manual_seed(0)
        vae = build_vae(VAEConfig(latent_dims=(8,), hidden_dims=((16,),), flow=ConvFlow(2), amortized=amortized), 20)
        x = torch.bernoulli(torch.rand(50, 20))
        optimizer = torch.optim.Adam(vae.parameters(), lr=5e-3)
        values = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = -elbo_bound(vae.log_weight_terms(x)).mean()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
    return values


@pytest.mark.parametrize("amortized", [False, True])
def test_the_first_hundred_losses_are_the_same_with_every_kernel(amortized):
    expected = losses("reference", amortized)
    assert expected[-1] < expected[0]
    for kernel in {"torch", active_kernel()}:
        assert losses(kernel, amortized) == pytest.approx(expected, rel=2e-4)
