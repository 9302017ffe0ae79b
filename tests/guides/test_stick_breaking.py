"""A simplex with PyTorch's coordinates and all digits of its small parts."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import StickBreakingTransform, biject_to, constraints

from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, fit
from vi_flows.guides.stick_breaking import StickBreaking, to_support


@pytest.mark.parametrize("shape", [(1,), (4,), (3, 2, 5)])
def test_the_map_is_pytorchs(shape: tuple[int, ...]) -> None:
    x = 2 * torch.randn(shape, dtype=torch.float64)
    ours, theirs = StickBreaking(), StickBreakingTransform()
    y = ours(x)
    torch.testing.assert_close(y, theirs(x))
    torch.testing.assert_close(y.sum(-1), torch.ones(shape[:-1], dtype=torch.float64))
    torch.testing.assert_close(ours.log_abs_det_jacobian(x, y), theirs.log_abs_det_jacobian(x, theirs(x)))
    torch.testing.assert_close(ours.inv(y), x)


def test_the_log_determinant_is_the_jacobians() -> None:
    x = torch.randn(4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: StickBreaking()(x)[:-1], x)
    torch.testing.assert_close(StickBreaking().log_abs_det_jacobian(x, StickBreaking()(x)), torch.logdet(jacobian))


def test_small_parts_keep_their_digits() -> None:
    """``(1 − y₁) / y₁ = 2 e⁻³⁰``, in halves, and ``2/3 e⁻⁸⁰``: single precision has them, PyTorch's map does not."""
    x = torch.tensor([[30.0, 0.0], [0.0, 80.0], [-60.0, 25.0]])
    y = StickBreaking()(x)
    small = torch.tensor([y[0, 1], y[0, 2], y[1, 2]]).double().log()
    expected = math.log(2) - torch.tensor([30 + math.log(2), 30 + math.log(2), 80 + math.log(3)]).double()
    torch.testing.assert_close(small, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(StickBreaking().inv(y), x, rtol=1e-5, atol=1e-4)
    assert (StickBreaking()(torch.tensor([500.0, -500.0])) >= torch.finfo(torch.float32).tiny).all()


def test_supports_and_their_batches() -> None:
    x = torch.randn(5, 3, 2)
    for support, dims in ((constraints.simplex, 0), (constraints.independent(constraints.simplex, 2), 2)):
        transform = to_support(support)
        assert transform.codomain.event_dim == 1 + dims
        assert transform.log_abs_det_jacobian(x, transform(x)).shape == (5, 3)[: 2 - dims]
        torch.testing.assert_close(transform(x), biject_to(support)(x))
    assert isinstance(to_support(constraints.simplex), StickBreaking)
    assert to_support(constraints.positive) == biject_to(constraints.positive)


@pytest.mark.parametrize("prior", [(3.0, 0.1), (3.0, 5.0, 0.1), (0.1, 3.0, 4.0)])
def test_the_evidence_of_a_sparse_prior(prior: tuple[float, ...]) -> None:
    """A fifth of the mass has a last part of less than 6e-8, which is where PyTorch's map ends."""

    def model() -> None:
        pyro.sample("parts", dist.Dirichlet(torch.tensor(prior)))

    pyro.set_rng_seed(0)
    guide = AutoConvFlow(model)
    fit(model, guide, progress=False)
    found = diagnose(model, guide)
    assert found.log_evidence == pytest.approx(0.0, abs=0.03)
    assert found.verdict != "don't trust"
    draws = guide.sample_posterior(4000)["parts"][:, prior.index(0.1)].double()
    rest = sum(prior) - 0.1
    below = torch.distributions.Beta(0.1, rest).sample((200_000,)) < 1e-8
    assert (draws < 1e-8).double().mean().item() == pytest.approx(below.double().mean().item(), abs=0.03)
