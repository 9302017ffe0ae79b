"""A step of any objective leaves every parameter a trainable leaf, for every flow there is."""

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from torch import nn

from tests.transforms.cases import SMALL_FLOWS
from vi_flows.flows import FLOWS, repeat_pyro
from vi_flows.guides import AutoFlow, fit
from vi_flows.objectives import DIRECT_OBJECTIVES, ELBO, IWAE, DReG, StickingTheLanding
from vi_flows.objectives.path_gradient import with_detached_parameters
from vi_flows.vae import VAEConfig, build_vae


def model():
    pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))


MAKERS = {name: kind().build for name, kind in FLOWS.items()} | {
    "pyro_planar": lambda dim: repeat_pyro(lambda: pyro_transforms.planar(dim), 2),
    "pyro_spline": lambda dim: repeat_pyro(lambda: pyro_transforms.spline_autoregressive(dim), 2),
}
"""Our flows, and two of Pyro's: one without an inverse, one whose layers share modules."""


def one_fit(guide):
    fit(model, guide, num_steps=1, num_particles=4)


def one_step(objective):
    def step(guide):
        objective(num_particles=2).loss_and_grads(model, guide)

    return step


STEPS = {"fit": one_fit} | {o.__name__: one_step(o) for o in (ELBO, IWAE, StickingTheLanding, DReG)}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("step", STEPS)
def test_trainable_parameters_are_what_they_were(name, step):
    pyro.clear_param_store()
    guide = AutoFlow(model, MAKERS[name])
    guide()
    before = {n: (id(p), p.requires_grad) for n, p in guide.named_parameters(remove_duplicate=False)}
    for _ in range(2):
        if name == "pyro_planar" and step in ("StickingTheLanding", "DReG"):
            with pytest.raises(NotImplementedError, match="inverse"):
                STEPS[step](guide)
        elif name == "conv_flow" and step in ("StickingTheLanding", "DReG"):  # its leaky ReLU
            with pytest.raises(ValueError, match=r"'_AutoFlow.*_latent' jumps"):
                STEPS[step](guide)
        else:
            STEPS[step](guide)
    after = {n: (id(p), p.requires_grad) for n, p in guide.named_parameters(remove_duplicate=False)}
    assert after == before
    assert all(p.is_leaf and isinstance(p, nn.Parameter) for p in guide.parameters())
    assert any(trainable for _, trainable in after.values())


@pytest.mark.parametrize("name", SMALL_FLOWS)
@pytest.mark.parametrize("amortized", [False, True])
def test_trainable_parameters_of_a_vae_are_what_they_were(name, amortized):
    """After a step of each objective of the direct path, one after the other."""
    vae = build_vae(VAEConfig(latent_dims=(4,), hidden_dims=((5,),), flow=SMALL_FLOWS[name], amortized=amortized), 6)
    optimizer = torch.optim.SGD(vae.parameters(), lr=1e-3)
    before = {n: (id(p), p.requires_grad) for n, p in vae.named_parameters(remove_duplicate=False)}
    for objective in DIRECT_OBJECTIVES.values():
        optimizer.zero_grad()
        objective.row_bounds(vae, torch.ones(3, 6), 2, 0.5)[0].sum().backward()
        optimizer.step()
        after = {n: (id(p), p.requires_grad) for n, p in vae.named_parameters(remove_duplicate=False)}
        assert after == before
        assert all(p.is_leaf and isinstance(p, nn.Parameter) for p in vae.parameters())
    assert all(trainable for _, trainable in before.values())


def test_shared_modules_and_parameters_are_detached_wherever_used():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.second = self.first
            self.third = nn.Linear(2, 2)
            self.third.weight = self.first.weight
            self.alias = self.third.bias

    module = Shared()
    x = torch.randn(3, 2, requires_grad=True)
    y = with_detached_parameters(module, lambda: module.third(module.second(module.first(x))) + module.alias)
    y.sum().backward()
    assert x.grad is not None
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
