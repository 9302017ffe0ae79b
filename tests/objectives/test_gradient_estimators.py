"""Path gradients against their definitions, and the Rényi bound against the bounds it interpolates."""

import math

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from vi_flows.flows import repeat_pyro
from vi_flows.guides import AutoConvFlow, AutoFlow
from vi_flows.objectives import ELBO, IWAE, DReG, RenyiBound, StickingTheLanding

X = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double():
    pyro.clear_param_store()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Prior(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.4))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.7))
        self.log_scale = nn.Parameter(torch.tensor(-0.2))


class Guide(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.encoder.slope * x, self.encoder.log_scale.exp()))


def make():
    prior, guide = Prior(), Guide(Encoder())

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(prior.shift, 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    return model, guide, prior


def by_hand(prior, guide, noise, dreg):
    """The gradients from their formulas: noise (K, N)."""
    e = guide.encoder
    z = e.slope * X + e.log_scale.exp() * noise

    def log_w(z, shift, slope, log_scale):
        return (
            dist.Normal(shift, 1.0).log_prob(z)
            + dist.Normal(z, 0.8).log_prob(X)
            - dist.Normal(slope * X, log_scale.exp()).log_prob(z)
        )

    path = log_w(z, prior.shift.detach(), e.slope.detach(), e.log_scale.detach())
    whole = log_w(z.detach(), prior.shift, e.slope.detach(), e.log_scale.detach())
    share = torch.softmax(path, 0).detach() if dreg else torch.full_like(path, 1 / len(path)).detach()
    guide_loss = -((share**2 if dreg else share) * path).sum()
    model_loss = -(share * whole).sum()
    return (
        *torch.autograd.grad(guide_loss, [e.slope, e.log_scale]),
        *torch.autograd.grad(model_loss, [prior.shift]),
    )


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("dreg", [False, True])
def test_gradients_are_the_published_ones(dreg, vectorize):
    model, guide, prior = make()
    loss = (DReG if dreg else StickingTheLanding)(4, vectorize_particles=vectorize, max_plate_nesting=1)
    pyro.set_rng_seed(3)
    value = loss.differentiable_loss(model, guide, X)
    value.backward()
    found = (guide.encoder.slope.grad, guide.encoder.log_scale.grad, prior.shift.grad)
    pyro.set_rng_seed(3)
    noise = torch.stack([torch.normal(torch.zeros(3), torch.ones(3)) for _ in range(4)]) if not vectorize else (
        torch.normal(torch.zeros(4, 3), torch.ones(4, 3)))  # fmt: skip
    for a, b in zip(found, by_hand(prior, guide, noise, dreg), strict=True):
        torch.testing.assert_close(a, b)
    pyro.set_rng_seed(3)
    plain = (IWAE if dreg else ELBO)(4, vectorize_particles=vectorize, max_plate_nesting=1)
    torch.testing.assert_close(value.detach(), plain.differentiable_loss(model, guide, X).detach())


def test_dreg_under_a_kl_weight_has_the_mean_gradient_of_the_bent_bound():
    """4000 rows of the same observation a draw, the same draws for both estimators."""
    model, guide, _prior = make()
    x = torch.full((4000,), 1.3)
    differences = []
    for seed in range(20):
        found = []
        for kind in (DReG, IWAE):
            pyro.set_rng_seed(seed)
            loss = kind(3, 0.4, vectorize_particles=True, max_plate_nesting=1).differentiable_loss(model, guide, x)
            parameters = [guide.encoder.slope, guide.encoder.log_scale]
            found.append(torch.stack(torch.autograd.grad(loss, parameters)) / len(x))
        differences.append(found[0] - found[1])
    differences = torch.stack(differences)
    error = differences.std(0) / len(differences) ** 0.5
    assert (differences.mean(0).abs() < 4 * error).all()
    assert (error < 0.01).all()


def test_functions_with_param_statements():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("z", dist.Normal(loc, pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)))

    StickingTheLanding(8, max_plate_nesting=0).loss_and_grads(model, guide)
    for name in ("loc", "scale"):  # the guide is exact: not one draw has a gradient
        assert abs(float(pyro.get_param_store().get_param(name).unconstrained().grad)) < 1e-12


def gaussian():
    loc = torch.tensor([3.0, -2.0])
    tril = torch.tensor([[2.0, 0.0], [1.5, 0.3]])
    pyro.sample("x", dist.MultivariateNormal(loc, scale_tril=tril))


@pytest.mark.parametrize("loss", [StickingTheLanding, DReG])
def test_flow_guides_at_the_exact_posterior_have_no_gradient(loss):
    guide = AutoConvFlow(gaussian, mixing=False).double()  # starts at a Gaussian; the mixed flow only near one
    with torch.no_grad():
        guide.transform[-1].set_gaussian(torch.tensor([3.0, -2.0]), torch.tensor([[4.0, 3.0], [3.0, 2.34]]))
    loss(3, vectorize_particles=True, max_plate_nesting=0).differentiable_loss(gaussian, guide).backward()
    norms = [float(p.grad.abs().max()) for p in guide.parameters() if p.grad is not None]
    assert norms
    assert max(norms) < 1e-8
    guide.zero_grad()
    ELBO(3, vectorize_particles=True, max_plate_nesting=0).differentiable_loss(gaussian, guide).backward()
    assert max(float(p.grad.abs().max()) for p in guide.parameters() if p.grad is not None) > 1e-3
    assert SVI(gaussian, guide, pyro.optim.Adam({"lr": 0.01}), loss(2)).step() < 1e-6


def test_flows_without_an_inverse_are_named():
    guide = AutoFlow(gaussian, lambda dim: repeat_pyro(lambda: pyro_transforms.planar(dim), 8))
    with pytest.raises(NotImplementedError, match="inverse"):
        StickingTheLanding(max_plate_nesting=0).differentiable_loss(gaussian, guide)


def test_renyi_interpolates():
    model, guide, _ = make()

    def value(loss):
        pyro.set_rng_seed(1)
        return loss.loss(model, guide, X)

    options = {"vectorize_particles": True, "max_plate_nesting": 1}
    assert math.isclose(value(RenyiBound(0.0, 6, **options)), value(IWAE(6, **options)), rel_tol=1e-12)
    assert math.isclose(value(RenyiBound(1 - 1e-7, 6, **options)), value(ELBO(6, **options)), rel_tol=1e-5)
    low, middle, high = (value(RenyiBound(a, 6, **options)) for a in (-1.0, 0.3, 0.9))
    assert low < middle < high
    with pytest.raises(ValueError, match="alpha"):
        RenyiBound(1.0)


def test_renyi_and_dreg_refuse_coupled_minibatches():
    y = torch.arange(20.0)

    def model(size):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 20, subsample_size=size) as i:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])

    def guide(size):
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    for loss in (RenyiBound(0.5, 2), DReG(2)):
        with pytest.raises(ValueError, match="rows"):
            loss.loss(model, guide, 5)
