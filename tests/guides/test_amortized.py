import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList
from pyro.optim import Adam
from torch.distributions import constraints

from tests.guides.models import hierarchical
from vi_flows.guides import AmortizedFlowGuide, AutoConvFlow


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def randomise(module, scale=0.3):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    return module


def test_rows_have_posteriors_of_their_own_and_any_batch_shape():
    guide = randomise(AmortizedFlowGuide(4, 3))
    data = torch.randn(6, 4)
    q = guide(data)
    assert q.batch_shape == (6,)
    assert q.event_shape == (3,)
    z = q.rsample((5,))
    assert z.shape == (5, 6, 3)
    log_prob = q.log_prob(z.clone())
    torch.testing.assert_close(guide(data[2]).log_prob(z[:, 2].clone()), log_prob[:, 2], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(guide(data[3]).log_prob(z[:, 2].clone()), log_prob[:, 2])
    (-log_prob.mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in guide.parameters())


@pytest.mark.parametrize("support", [constraints.real, constraints.positive, constraints.unit_interval])
def test_scalar_sites_integrate_to_one(support):
    guide = randomise(AmortizedFlowGuide(2, 1, scalar=True, support=support), 0.1).double()
    q = guide(torch.randn(3, 2, dtype=torch.float64))
    assert q.event_shape == ()
    if support is constraints.real:
        x = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    elif support is constraints.positive:
        x = torch.linspace(1e-9, 60, 400_001, dtype=torch.float64)
    else:
        x = torch.linspace(1e-9, 1 - 1e-9, 40_001, dtype=torch.float64)
    mass = torch.trapezoid(q.log_prob(x[:, None]).exp(), x, dim=0)
    torch.testing.assert_close(mass, torch.ones(3, dtype=torch.float64), atol=2e-3, rtol=0)


def test_options_are_checked():
    with pytest.raises(ValueError, match="scalar"):
        AmortizedFlowGuide(2, 3, scalar=True)
    with pytest.raises(ValueError, match="at least 1"):
        AmortizedFlowGuide(0, 3)
    with pytest.raises(ValueError, match="rows of 4"):
        AmortizedFlowGuide(4, 3)(torch.zeros(2, 5))


def combined(y):
    """The flow on the global latent; the local one in the plate that both share."""
    local = AmortizedFlowGuide(1, 1, scalar=True)

    def plates(y, size=None):
        return pyro.plate("rows", len(y), subsample_size=size)

    guide = AutoGuideList(hierarchical, create_plates=plates)

    def local_guide(y, size=None):
        pyro.module("local", local)
        with guide.plates["rows"] as i:
            return {"z": pyro.sample("z", local(y[i].unsqueeze(-1) / 10))}

    guide.append(AutoConvFlow(poutine.block(hierarchical, hide=["z"]), prototype_args=(y,)))
    guide.append(local_guide)
    return guide


def test_minibatches_of_changing_size_beside_a_global_flow():
    y = torch.arange(20.0)
    guide = combined(y)
    svi = SVI(hierarchical, guide, Adam({"lr": 0.01}), Trace_ELBO())
    for size in (5, 8, 3, 20):
        assert svi.step(y, size) < 1e9
    assert SVI(hierarchical, guide, Adam({"lr": 0.01}), RenyiELBO(num_particles=2)).step(y, 5) < 1e9
    assert guide(y, 7)["z"].shape == (7,)


@pytest.mark.slow
def test_local_means_are_right_where_stock_learns_minibatch_places():
    pyro.set_rng_seed(1)
    y = torch.arange(20.0) * 3  # with noise 0.1 the local means are the data
    guide = combined(y)
    svi = SVI(hierarchical, guide, Adam({"lr": 0.02}), Trace_ELBO())
    for step in range(3000):
        svi.step(y, (5, 8)[step % 2])
    with torch.no_grad():
        mean = torch.stack([guide(y)["z"] for _ in range(50)]).mean(0)
    assert (mean - y).abs().max() < 3.0
