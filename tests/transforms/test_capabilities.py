"""What bijections say of themselves, against what they do."""

import math

import pyro.distributions.transforms as pyro_transforms
import pytest
import torch

from vi_flows.diagnostics import invertibility_margin
from vi_flows.flows import FLOWS, conv_flow
from vi_flows.guides.auto_conv_flow import mixed_conv_flow
from vi_flows.kernels.activations import ACTIVATIONS
from vi_flows.transforms import Affine, Chain, FromPyro, Inverse, Revert
from vi_flows.transforms.capabilities import gains_of
from vi_flows.transforms.vector.conv_flow import ConvFlowStack


def randomize(module):
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p))
    return module.double()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("make", [ConvFlowStack, mixed_conv_flow])
def test_min_slope_is_the_least_jacobian_diagonal(make, activation):
    torch.manual_seed(0)
    flow = randomize(make(1, 1, kernel_size=1, dilations=(1,), activation=activation))
    layers = [m for m in flow.modules() if isinstance(m, ConvFlowStack) and m.spec.num_layers == 1]
    for layer in layers:
        for sign in (-1.0, 1.0):
            with torch.no_grad():
                layer.weight.fill_(1.3)
                layer.theta.fill_(sign)
            x = torch.linspace(-40, 40, 40_001, dtype=torch.float64)[:, None].requires_grad_()
            y, _ = layer.forward_and_ladj(x)
            seen = torch.autograd.grad(y.sum(), x)[0].min()
            if sign < 0:
                assert layer.min_slope() == pytest.approx(float(seen), abs=1e-4)
            assert layer.min_slope() <= float(seen) + 1e-12
    assert layers


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_diagonal_of_a_layer_is_below_the_bound(activation):
    torch.manual_seed(1)
    layer = randomize(conv_flow(3, 1, 3, (1,), activation, revert=False))
    x = 5 * torch.randn(500, 3, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: layer.forward_and_ladj(v)[0]))(x)
    assert float(jacobian.diagonal(dim1=-2, dim2=-1).min()) >= layer.min_slope() - 1e-12
    for whole in (Chain([Revert(), layer]), Inverse(layer), Chain([Inverse(Chain([layer])), Revert()])):
        assert whole.min_slope() == layer.min_slope() == invertibility_margin(whole)
        assert whole.continuous_log_det == (activation != "leaky_relu")
    with torch.no_grad():
        layer.theta[0, 0] = math.nan
    assert math.isnan(Chain([layer, conv_flow(3)]).min_slope())


@pytest.mark.parametrize("name", FLOWS)
def test_flows_say_truly_whether_they_have_an_inverse(name):
    flow = FLOWS[name]().build(2)
    try:
        flow.inverse_and_ladj(torch.zeros(1, 2))
        works = True
    except NotImplementedError:
        works = False
    assert flow.has_inverse == works


@pytest.mark.parametrize(
    "name",
    ["planar", "radial", "sylvester", "polynomial", "neural_autoregressive", "block_autoregressive", "householder",
     "affine_autoregressive", "affine_coupling", "spline", "spline_autoregressive", "spline_coupling", "batchnorm"],
)  # fmt: skip
def test_wrapped_transforms_say_truly_whether_they_have_an_inverse(name):
    flow = FromPyro(getattr(pyro_transforms, name)(4)).eval()
    try:
        flow.inverse_and_ladj(torch.zeros(1, 4))
        works = True
    except NotImplementedError:
        works = False
    assert flow.has_inverse == works


def test_compositions_and_inverses_of_wrapped_transforms_say_truly():
    affine = torch.distributions.AffineTransform(0.0, 2.0, event_dim=1)
    planar = pyro_transforms.planar(2)
    assert FromPyro(affine.inv).has_inverse
    assert FromPyro(torch.distributions.ComposeTransform([affine, affine])).has_inverse
    assert not FromPyro(torch.distributions.ComposeTransform([affine, planar])).has_inverse
    assert not Chain([Revert(), Inverse(Chain([FromPyro(planar)]))]).has_inverse


def test_a_gain_is_between_the_parameter_and_what_it_stands_for():
    torch.manual_seed(2)
    flow = mixed_conv_flow(60, 1, num_marginal_layers=0, init_scale=0.3)
    (layer,) = (m for m in flow.modules() if isinstance(m, ConvFlowStack))
    assert float(layer.effective_theta.detach().std()) == pytest.approx(0.3, rel=0.15)
    assert torch.allclose(layer.effective_theta, layer.gains["theta"] * layer.theta)
    affine = Affine(torch.zeros(3), gain=0.25)
    whole = gains_of(torch.nn.ModuleList([Chain([layer, Revert()]), affine]))
    assert whole == {id(layer.theta): 0.1, id(affine.lower): 0.25}
    assert gains_of(conv_flow(3)) == {}
