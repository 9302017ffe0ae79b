"""Path gradients against their definitions, and the Rényi bound against the bounds it interpolates."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import nn
from torch.distributions import AffineTransform, ComposeTransform

from vi_flows.distributions import FlowNormal
from vi_flows.flows import conv_flow, repeat_pyro
from vi_flows.guides import AutoConvFlow, AutoFlow
from vi_flows.objectives import ELBO, IWAE, DReG, RenyiBound, StickingTheLanding
from vi_flows.objectives.traced import TracedWeights
from vi_flows.transforms import Affine, Chain, FromPyro

X = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)


pytestmark = pytest.mark.usefixtures("double_precision")


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


def closure_over(guide):
    def program(x):
        pyro.module("encoder", guide.encoder)
        guide.forward(x)

    return program


WRITTEN = {
    "closure": lambda guide: lambda x: guide.forward(x),
    "pyro_module": closure_over,
    "method": lambda guide: guide.forward,
    "partial": lambda guide: partial(guide.forward),
    "handled": lambda guide: poutine.scale(poutine.block(guide, hide=["nothing"]), scale=1.0),
}


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("loss", [StickingTheLanding, DReG])
@pytest.mark.parametrize("written", WRITTEN)
def test_path_gradients_do_not_depend_on_how_a_guide_is_written(written, loss, vectorize):
    """That of a module is the published one, as above."""
    model, guide, prior = make()
    found = []
    for program in (guide, WRITTEN[written](guide)):
        guide.zero_grad()
        prior.zero_grad()
        pyro.set_rng_seed(0)
        loss(5, vectorize_particles=vectorize, max_plate_nesting=1).loss_and_grads(model, program, X)
        found.append([p.grad.clone() for p in (*guide.encoder.parameters(), *prior.parameters())])
    assert all(grad.abs() > 1e-3 for grad in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=0)


def test_path_gradients_of_latents_that_depend_on_each_other():
    """Of a flow in a closure: ``q(a) q(b | a)``, by hand with detached parameters."""
    flow = Affine(torch.zeros(1), init_scale=0.5, kind="diagonal")
    slope = torch.tensor(0.6, requires_grad=True)

    def model():
        a = pyro.sample("a", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("b", dist.Normal(a, 2.0).to_event(1))

    def guide():
        a = pyro.sample("a", dist.TransformedDistribution(dist.Normal(torch.zeros(1), 1.0).to_event(1), [flow]))
        pyro.sample("b", dist.Normal(slope * a, 0.7).to_event(1))

    pyro.set_rng_seed(3)
    StickingTheLanding(max_plate_nesting=0).loss_and_grads(model, guide)
    pyro.set_rng_seed(3)
    trace = poutine.trace(guide).get_trace()
    a, b = trace.nodes["a"]["value"], trace.nodes["b"]["value"]
    loc, scale = flow.loc.detach(), flow.log_scale.detach().exp()
    log_q = dist.Normal(loc, scale).log_prob(a) + dist.Normal(slope.detach() * a, 0.7).log_prob(b)
    log_p = dist.Normal(0.0, 1.0).log_prob(a) + dist.Normal(a, 2.0).log_prob(b)
    parameters = [flow.loc, flow.log_scale, slope]
    expected = torch.autograd.grad((log_q - log_p).sum(), parameters)
    for parameter, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", [StickingTheLanding, DReG])
def test_flows_whose_log_determinant_jumps_are_refused(loss):
    flow = conv_flow(2)

    def guide():
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        pyro.sample("x", dist.TransformedDistribution(base, [flow]).mask(True))

    with pytest.raises(ValueError, match="at guide site 'x' jumps"):
        loss(2).loss_and_grads(gaussian, guide)
    with pytest.raises(ValueError, match="jumps"):
        loss(2).loss_and_grads(gaussian, lambda: pyro.sample("x", FlowNormal(torch.zeros(2), torch.zeros(2), flow)))
    loss(2).loss_and_grads(gaussian, AutoFlow(gaussian, lambda dim: conv_flow(dim, activation="tanh")))


@pytest.mark.parametrize(
    ("within", "jumping"),
    [
        (lambda flow: [ComposeTransform([flow, AffineTransform(0.0, 2.0)])], "ConvFlowStack"),
        (lambda flow: [AffineTransform(0.0, 2.0), flow.inv], "ConvFlowStack"),
        (lambda flow: [pyro_transforms.ComposeTransformModule([flow])], "ConvFlowStack"),
        (lambda flow: [FromPyro(ComposeTransform([flow]))], "FromPyro"),
        (lambda flow: [pyro_transforms.LeakyReLUTransform()], "LeakyReLUTransform"),
        (lambda flow: [Chain([FromPyro(pyro_transforms.LeakyReLUTransform())], event_dim=1)], "Chain"),
    ],
)
def test_jumps_within_compositions_of_pytorch_are_found(within, jumping):
    def guide(activation):
        base = dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1)
        return pyro.sample("x", dist.TransformedDistribution(base, within(conv_flow(2, activation=activation))))

    with pytest.raises(ValueError, match=f"of the {jumping} at guide site 'x' jumps"):
        StickingTheLanding(2).loss_and_grads(gaussian, partial(guide, "leaky_relu"))
    if "ReLU" not in jumping and jumping != "Chain":
        StickingTheLanding(2).loss_and_grads(gaussian, partial(guide, "tanh"))


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


def test_a_loop_over_a_part_of_the_rows_is_coupled():
    """No dimension keeps its rows apart: with their ``N/B`` inside of the logarithm, the bound was 8 nats too high."""
    y = torch.ones(20)

    def model():
        for i in pyro.plate("rows", 20, subsample_size=2):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"y_{i}", dist.Normal(z, 1.0), obs=y[i])

    def guide():
        for i in pyro.plate("rows", 20, subsample_size=2):
            pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))

    for loss in (RenyiBound(0.5, 2), DReG(2)):
        with pytest.raises(ValueError, match="loop over a plate"):
            loss.loss(model, guide)
    with pytest.warns(UserWarning, match="loop over a plate"):
        value = [(pyro.set_rng_seed(0), IWAE(5).loss(model, guide))[1] for _ in range(1)]
    pyro.set_rng_seed(0)
    assert math.isclose(value[0], ELBO(5).loss(model, guide), rel_tol=1e-12)


@pytest.mark.parametrize("alpha", [1 - 1e-3, 1 - 1e-9, 1 + 1e-9, 1 - 1e-13])
def test_renyi_near_the_elbo_keeps_its_digits(alpha):
    """In single precision, too: (1/p) log mean exp(p w) is the mean of w plus p/2 times its variance, to p²."""
    w = torch.tensor([-100.2, -103.0, -98.4, -101.7, -99.1, -102.2], dtype=torch.float32)
    weights = TracedWeights(w, torch.zeros_like(w), torch.zeros_like(w), 1.0, (), ())
    value = RenyiBound(alpha, 6).bound(weights, 1.0)
    expected = float(w.double().mean() + (1 - alpha) / 2 * w.double().var(correction=0))
    assert math.isclose(float(value), expected, abs_tol=3e-5)


@pytest.mark.parametrize("alpha", [0.995, 1.005])
def test_renyi_of_far_weights_near_the_elbo(alpha):
    w = torch.tensor([-1e5, -3.0, 2e4, 0.0], requires_grad=True)
    value = RenyiBound(alpha, 4).bound(TracedWeights(w, 0 * w.detach(), 0 * w.detach(), 1.0, (), ()), 1.0)
    p = 1 - alpha
    torch.testing.assert_close(value, (torch.logsumexp(p * w, 0) - math.log(4)) / p, rtol=1e-9, atol=0)
    (grad,) = torch.autograd.grad(value, w)
    torch.testing.assert_close(grad, torch.softmax(p * w, 0).detach(), rtol=1e-9, atol=1e-30)


@pytest.mark.parametrize("kl_weight", [math.nan, math.inf, -0.1])
def test_a_kl_weight_is_a_finite_number(kl_weight):
    with pytest.raises(ValueError, match="kl_weight must be at least 0 and finite"):
        IWAE(2, kl_weight=kl_weight)
    assert IWAE(np.int64(2)).num_particles == 2
