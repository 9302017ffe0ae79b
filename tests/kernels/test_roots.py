"""The inverse's root finder at gains that are hard for Newton's method, and where others look at its operations."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from tests.kernels.stacks import ENGINES, make_spec, use_engine
from vi_flows.kernels import ACTIVATIONS, conv_flow_forward, conv_flow_inverse
from vi_flows.kernels.activations import make_activation
from vi_flows.kernels.operands import Operands

CURVED = [name for name in ACTIVATIONS if name != "leaky_relu"]


def grid(activation):
    """Gains from just above the least one to very steep ones, against values of all sizes."""
    gains = torch.cat([
        -(1 - torch.logspace(-6, 0, 13, dtype=torch.float64)) / activation.slope_bound,
        torch.tensor([0.5, 1.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1e3, 1e4], dtype=torch.float64),
    ])  # fmt: skip
    sizes = torch.logspace(-8, 6, 200, dtype=torch.float64)
    steps = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    return torch.meshgrid(gains, torch.cat([6 * steps, 100 * steps, 1e4 * steps, sizes, -sizes]), indexing="ij")


def residual(activation, gain, v, t):
    h, _ = activation.value_and_slope(t)
    return (t + gain * h - v).abs() / (t.abs() + (gain * h).abs() + v.abs()).clamp(min=1e-300)


@pytest.mark.parametrize("name", CURVED)
@pytest.mark.parametrize("watched", [False, True])
def test_a_root_is_one(name, watched):
    """Newton's steps alone go to and fro for ever, for one at gain 10 (tanh) or from 20 on (sigmoid)."""
    activation = make_activation(name)
    gain, v = grid(activation)
    t = torch.func.vmap(activation.solve)(gain, v) if watched else activation.solve(gain, v)
    # PyTorch's softplus is linear from 20 on, and jumps there by 2e-9.
    assert residual(activation, gain, v, t).max() < (1e-10 if name == "softplus" else 2e-15)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CURVED)
def test_the_inverse_of_steep_layers(engine, name):
    spec = make_spec(1, 1, (1,), 1, name)
    x = torch.cat([torch.linspace(-6, 6, 1001, dtype=torch.float64), torch.linspace(-300, 300, 1001).double()])[:, None]
    for theta in (-1e3, -1.0, 2.0, 9.3, 20.0, 100.0, 1e3):
        numbers = (torch.tensor([[value]], dtype=torch.float64) for value in (theta, 1.0, 0.3))
        operands = Operands(x, *numbers)
        with use_engine(engine):
            y, ladj = conv_flow_forward(*operands, spec)
            back, inverse_ladj = conv_flow_inverse(y, *operands[1:], spec)
            again, _ = conv_flow_forward(back, *operands[1:], spec)
        assert ((again - y).abs() / (1 + y.abs())).max() < 1e-12
        # A relative error ε of y moves x by ε over the slope.
        assert ((back - x).abs() * ladj.exp()[:, None] / (1 + y.abs())).max() < 1e-9
        assert inverse_ladj.isfinite().all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["tanh", "elu"])
def test_a_recorded_inverse_holds_for_other_inputs(name):
    """The number of rounds that one input takes must not become part of a program."""
    spec = make_spec(1, 1, (1,), 1, name)
    parameters = [torch.tensor([[value]], dtype=torch.float64) for value in (-10.0, 1.0, 0.0)]
    y = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
    easy = torch.zeros_like(y)  # its root is found in one round: of tanh and ELU at zero
    expected = conv_flow_inverse(y, *parameters, spec)

    def inverse(v):
        return conv_flow_inverse(v, *parameters, spec)

    for recorded in (torch.jit.trace(inverse, easy, check_trace=False), make_fx(inverse)(easy)):
        for found, right in zip(recorded(y), expected, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)
