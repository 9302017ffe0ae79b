"""The convolution turned round: exact density, and a sampler that solves nothing."""

from __future__ import annotations

import pytest
import torch

from tests.transforms.case import randomise
from vi_flows.distributions import ImageDensity
from vi_flows.flows.image_steps import InverseFlow
from vi_flows.transforms import OneSidedConv2d
from vi_flows.transforms.image import inv_conv


@pytest.fixture
def flow():
    torch.manual_seed(0)
    built = InverseFlow(num_levels=1, num_steps=2, width=4).build((1, 6, 6)).double()
    randomise(built, 0.2)
    return built.eval()


def test_its_log_determinant_is_that_of_its_jacobian(flow):
    z = torch.randn(1, 6, 6, dtype=torch.float64)
    x, ladj = flow.forward_and_ladj(z)
    jacobian = torch.autograd.functional.jacobian(lambda value: flow.forward_and_ladj(value)[0], z).reshape(36, 36)
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian)[1])
    back, inverse_ladj = flow.inverse_and_ladj(x)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(inverse_ladj, -ladj)


def test_the_density_has_exact_gradients_through_the_solved_rows(flow):
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    convolutions = [module for module in flow.modules() if isinstance(module, OneSidedConv2d)]
    assert len(convolutions) == 2

    [name] = [n for n, p in flow.named_parameters() if p is convolutions[0].taps]

    class Pass(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = flow

        def forward(self, value):
            return self.flow.inverse_and_ladj(value)

    module = Pass()

    def by_taps(taps):
        z, ladj = torch.func.functional_call(module, {f"flow.{name}": taps}, (x,))
        return ladj - 0.5 * z.square().flatten(1).sum(1)

    assert torch.autograd.gradcheck(by_taps, convolutions[0].taps.detach().clone().requires_grad_(), atol=1e-6)


def test_samples_are_plain_convolutions_and_scores_are_solved(flow, monkeypatch):
    solved = []
    original = inv_conv.OneSidedConv2d._solver_for
    monkeypatch.setattr(inv_conv.OneSidedConv2d, "_solver_for", lambda self, y: solved.append(1) or original(self, y))
    density = ImageDensity(flow, (1, 6, 6)).double()
    images = density.sample(3)
    assert not solved
    density.bits_per_dim(images)
    assert len(solved) == 2
