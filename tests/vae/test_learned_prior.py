"""A prior that is a flow of N(0, I): its density by hand, by quadrature and by Pyro, and its gradients."""

from __future__ import annotations

import math

import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.func import functional_call

from vi_flows.autoregressive.config import Residual
from vi_flows.flows import FLOWS, MAF, NSF, ConvFlow, RealNVP, VectorFlow
from vi_flows.training.stacked_layers import stack_modules
from vi_flows.vae import GenerativeModel, LatentChain, VAEConfig, build_pixel_vae, build_vae

SMOOTH = {name: kind() for name, kind in FLOWS.items()} | {"conv_flow": ConvFlow(kernel_size=2, activation="tanh")}
NARROW = {"maf": MAF(2, (6,)), "real_nvp": RealNVP(2, (6,)), "nsf": NSF(2, (6,)), "conv_flow": SMOOTH["conv_flow"]}
"""So few units that random weights leave the density within reach of a grid."""


def model_with(prior: VectorFlow, dim: int) -> GenerativeModel:
    """A model of random weights, in float64."""
    torch.manual_seed(2)
    model = GenerativeModel(5, (dim,), ((4,),), prior_flow=prior.build(dim)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


class _Stretch(nn.Module):
    """Nets of an affine coupling: shift by 2 and stretch by exp(2 tanh(g/2)) with g = 2 artanh(ln 3 / 2), by 3."""

    def forward(self, x: Tensor) -> Tensor:
        """``(…, 1)`` to ``(…, 2)``."""
        maps = torch.tensor([2.0, 2 * math.atanh(math.log(3) / 2)], dtype=x.dtype)
        return maps.expand(*x.shape[:-1], 2)


def test_the_density_by_hand() -> None:
    """z = (ε₁, 3 (ε₂ + 2)): N(1; 0, 1) N(9; 6, 9) = exp(−1) / (2π · 3)."""
    model = GenerativeModel(5, (2,), ((4,),), prior_flow=RealNVP(1, (3,)).build(2)).double()
    model.prior_flow.parts[0].conditioners[0] = _Stretch()
    z = torch.tensor([[1.0, 9.0]], dtype=torch.float64)
    assert model.log_prior([z]).item() == pytest.approx(-1 - math.log(6 * math.pi))
    torch.manual_seed(0)
    (draws,) = model.sample_latents(40_000)
    assert draws.mean(0).tolist() == pytest.approx([0, 6], abs=0.06)
    assert draws.std(0).tolist() == pytest.approx([1, 3], abs=0.05)


def test_it_starts_at_the_standard_normal() -> None:
    model = build_vae(VAEConfig(latent_dims=(3,), hidden_dims=((4,),), prior=MAF()), 5).model
    z = torch.randn(7, 3)
    assert torch.allclose(model.log_prior([z]), MultivariateNormal(torch.zeros(3), torch.eye(3)).log_prob(z))


@pytest.mark.parametrize("prior", NARROW)
@torch.no_grad()
def test_the_density_integrates_to_one_and_is_that_of_the_draws(prior: str) -> None:
    model = model_with(NARROW[prior], 2)
    line = torch.linspace(-12, 12, 361, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    density = model.log_prior([grid]).exp() * (line[1] - line[0]) ** 2
    assert density.sum().item() == pytest.approx(1, abs=2e-3)
    torch.manual_seed(0)
    (draws,) = model.sample_latents(20_000)
    mean = (density.unsqueeze(-1) * grid).sum(0)
    spread = (density.unsqueeze(-1) * grid.square()).sum(0) - mean.square()
    assert ((draws.mean(0) - mean) / spread.sqrt()).abs().max() < 4 / math.sqrt(20_000)
    assert (draws.var(0) / spread - 1).abs().max() < 0.08
    # What else tells the two apart: E log p of the draws, which is minus the entropy.
    entropy = -(density * model.log_prior([grid])).sum()
    assert model.log_prior([draws]).mean().item() == pytest.approx(-entropy.item(), abs=0.04)


@pytest.mark.parametrize("prior", SMOOTH)
def test_gradients_of_every_flow_in_its_weights_and_in_the_latent(prior: str) -> None:
    model = model_with(SMOOTH[prior], 3)
    names = [name for name, _ in model.named_parameters() if name.startswith("prior_flow")]
    weights = [model.get_parameter(name).detach().clone().requires_grad_() for name in names]
    z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    class Prior(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = model

        def forward(self, z: Tensor) -> Tensor:
            return self.chain.log_prior([z])

    def log_prior(z: Tensor, *weights: Tensor) -> Tensor:
        return functional_call(Prior(), {f"chain.{n}": w for n, w in zip(names, weights, strict=True)}, (z,))

    assert torch.autograd.gradcheck(log_prior, (z, *weights), fast_mode=True)


@pytest.mark.parametrize("architecture", ["g1", "g2"])
def test_the_pyro_model_draws_and_scores_it(architecture: str) -> None:
    sizes = {"g1": ((3,), ((4,),)), "g2": ((3, 2), ((4,), (4,)))}[architecture]
    torch.manual_seed(0)
    vae = build_vae(VAEConfig(architecture, *sizes, prior=MAF(2, (6,))), 5).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    torch.manual_seed(1)
    trace = poutine.trace(vae.model).get_trace(size=6)
    trace.compute_log_prob()
    drawn = [trace.nodes[name]["value"] for name in vae.model.latent_names]
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(drawn, vae.model.sample_latents(6), strict=True))
    total = sum(trace.nodes[name]["log_prob"] for name in vae.model.latent_names)
    assert torch.allclose(total, vae.model.log_prior([z.detach().clone() for z in drawn]))
    # The flow is on the top latent, and on it alone.
    base = vae.model.prior_flow.inverse_and_ladj(drawn[0])[0]
    torch.manual_seed(1)
    assert torch.allclose(base, torch.randn(6, 3, dtype=torch.float64))
    assert vae.sample(4).shape == (4, 5)


def test_a_pixel_decoder_can_have_one_too() -> None:
    config = VAEConfig(latent_dims=(2,), hidden_dims=((4,),), prior=RealNVP(2, (3,)))
    vae = build_pixel_vae(config, Residual(width=4, num_blocks=1, first_kernel=3), (1, 4, 4))
    assert isinstance(vae.model, LatentChain)
    assert vae.model.prior_flow is not None
    vae.log_weight_terms(torch.bernoulli(torch.rand(3, 16)), 2).log_weights().mean().backward()
    assert all(parameter.grad is not None for parameter in vae.model.prior_flow.parameters())


def test_what_is_refused() -> None:
    """Where the density jumps, gradients through the draws would miss the jumps."""
    with pytest.raises(ValueError, match="a prior's flow needs an inverse and a continuous log-determinant"):
        build_vae(VAEConfig(prior=ConvFlow()), 5)
    with pytest.raises(ValueError, match="rank is for flows with a context"):
        VAEConfig(prior=ConvFlow(activation="tanh", rank=3))
    with pytest.raises(ValueError, match="prior must be"):
        VAEConfig(prior="maf")


def test_seeds_of_a_coupling_prior_are_not_stacked() -> None:
    """The coupling folds the members' dimension into its rows."""
    config = VAEConfig(latent_dims=(4,), hidden_dims=((6,),), prior=RealNVP(2, (3,)))
    vaes = [build_vae(config, 5) for _ in range(3)]
    stack = stack_modules(vaes)
    with pytest.raises(ValueError, match="seeds of it can't be stacked"):
        stack.log_weight_terms(torch.bernoulli(torch.rand(6, 3, 5)), 1)
