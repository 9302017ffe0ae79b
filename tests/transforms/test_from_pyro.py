"""Transforms that register nothing: what is inside them is trained, followed and moved all the same."""

from __future__ import annotations

import copy
import pickle

import pyro.distributions as dist
import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from torch import nn
from torch.distributions import AffineTransform, ComposeTransform, CorrCholeskyTransform, StickBreakingTransform
from torch.distributions.transforms import (
    AbsTransform,
    CatTransform,
    CumulativeDistributionTransform,
    ExpTransform,
    SoftmaxTransform,
    StackTransform,
)
from torch.func import functional_call, jacrev, vmap

from vi_flows.transforms import Chain, FromPyro, Revert


def _moved():
    torch.manual_seed(0)
    found = pyro_transforms.affine_autoregressive(3, hidden_dims=[8])
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.5)
    return found


def _conditional(kind):
    torch.manual_seed(0)
    family = getattr(pyro_transforms, kind)(3, context_dim=2)
    return family.condition(torch.randn(2)), family


HIDDEN = {
    "inverse": lambda: _moved().inv,
    "composition": lambda: ComposeTransform([_moved(), AffineTransform(0.5, 2.0, event_dim=1)]),
    "composition of inverses": lambda: ComposeTransform([_moved().inv]),
    "parameter": lambda: AffineTransform(nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3)), event_dim=1),
    "modules and a parameter": lambda: pyro_transforms.ComposeTransformModule(
        [_moved(), AffineTransform(nn.Parameter(torch.zeros(3)), 1.0, event_dim=1)]
    ),
    **{
        kind: lambda kind=kind: _conditional(kind)[0]
        for kind in (
            "conditional_affine_autoregressive", "conditional_affine_coupling", "conditional_spline",
            "conditional_planar", "conditional_matrix_exponential",
        )
    },
}  # fmt: skip


def _distribution(flow):
    return dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [flow])


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_inside_is_registered_and_scores_are_fresh(name):
    torch.manual_seed(1)
    flow = FromPyro(HIDDEN[name]())
    x = torch.randn(3)
    y, ladj = flow.forward_and_ladj(x)
    found = torch.autograd.grad(
        (y * torch.arange(1.0, 4.0)).sum() + ladj.sum(), [*flow.parameters()], allow_unused=True
    )
    assert sum(g is not None for g in found) > 0
    through = _distribution(Chain([flow]))
    z = through.rsample()
    before = through.log_prob(z)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3)
    if flow.has_inverse:
        after = through.log_prob(z)
        torch.testing.assert_close(after, through.log_prob(z.clone()))
        assert (after - before).abs().max() > 1e-3
    if name == "conditional_matrix_exponential":
        with pytest.raises(TypeError, match="copy or save what it was conditioned from"):
            copy.deepcopy(flow)
        return
    for other in (copy.deepcopy(flow), *([] if "conditional" in name else [pickle.loads(pickle.dumps(flow))])):
        other.load_state_dict(flow.state_dict())
        torch.testing.assert_close(other.forward_and_ladj(x), flow.forward_and_ladj(x))
        before = flow.forward_and_ladj(x)[0]
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.sub_(0.2)
        torch.testing.assert_close(flow.forward_and_ladj(x)[0], before)
        assert not torch.equal(other.forward_and_ladj(x)[0], before)


def test_every_parameter_of_what_is_inside():
    for kind in HIDDEN:
        if kind.startswith("conditional"):
            transform, family = _conditional(kind)
            assert {*map(id, FromPyro(transform).parameters())} == {*map(id, family.parameters())}
    assert len([*FromPyro(HIDDEN["parameter"]()).parameters()]) == 2
    whole = pyro_transforms.affine_autoregressive(3)
    assert [*FromPyro(whole).state_dict()] == [f"transform.{name}" for name in whole.state_dict()]


def test_loose_parameters_are_swapped_and_moved():
    flow = FromPyro(HIDDEN["parameter"]())
    values = {name: torch.full((3,), 5.0) for name, _ in flow.named_parameters()}

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = flow

        def forward(self, x):
            return self.flow.forward_and_ladj(x)[0]

    found = functional_call(Whole(), {f"flow.{name}": value for name, value in values.items()}, (torch.ones(3),))
    torch.testing.assert_close(found, torch.full((3,), 10.0))
    torch.testing.assert_close(flow.forward_and_ladj(torch.ones(3))[0].detach(), torch.ones(3))
    assert flow.double().forward_and_ladj(torch.ones(3).double())[0].dtype is torch.float64


def test_tensors_that_are_no_parameters_are_followed():
    loc = torch.zeros(3)
    for flow in (
        FromPyro(AffineTransform(loc, 1.0, event_dim=1)),
        FromPyro(ComposeTransform([AffineTransform(loc, 1.0, event_dim=1)])),
    ):
        through = _distribution(flow)
        z = through.rsample()
        before = through.log_prob(z)
        assert through.log_prob(z) is not None
        loc.add_(3.0)
        torch.testing.assert_close(through.log_prob(z), dist.Normal(loc, 1.0).to_event(1).log_prob(z))
        assert not torch.equal(through.log_prob(z), before)
    normal = FromPyro(CumulativeDistributionTransform(torch.distributions.Normal(loc, 1.0)))
    assert any(tensor is loc for tensor in Chain([normal])._state_tensors())


def test_what_can_not_be_followed_is_not_remembered():
    class Strange(ExpTransform):
        def __init__(self):
            super().__init__()
            self.box = type("Box", (), {"factor": 1.0})()

        def _call(self, x):
            return self.box.factor * super()._call(x)

        def _inverse(self, y):
            return super()._inverse(y / self.box.factor)

    transform = Strange()
    through = _distribution(Chain([FromPyro(transform)]))
    z = through.rsample()
    before = through.log_prob(z)
    transform.box.factor = 2.0
    assert not torch.equal(through.log_prob(z), before)


def test_shapes_are_those_of_the_transform():
    flow = FromPyro(StickBreakingTransform())
    through = dist.TransformedDistribution(dist.Normal(torch.zeros(4), 1.0).to_event(1), [Chain([flow])])
    assert through.event_shape == through.sample().shape == (5,)
    assert flow.inverse_shape((2, 5)) == (2, 4)
    with pytest.raises(ValueError, match="CorrCholeskyTransform takes 1 to 2"):
        FromPyro(CorrCholeskyTransform())
    single = dist.TransformedDistribution(dist.Normal(torch.zeros(()), 1.0), [FromPyro(AffineTransform(0.0, -2.0))])
    assert single.cdf(torch.tensor(2.0)).item() == pytest.approx(0.8413, abs=1e-4)


def _stack():
    return StackTransform([ExpTransform(), AffineTransform(0.0, 3.0)], -1)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (_stack, (5, 2)),
        (_stack, (2, 2)),
        (lambda: StackTransform([ExpTransform(), AffineTransform(0.0, 3.0)], -2), (5, 2, 3)),
        (lambda: pyro_transforms.matrix_exponential(3), (5, 2, 3)),
        (lambda: pyro_transforms.matrix_exponential(3).inv, (4, 3)),
        (lambda: pyro_transforms.batchnorm(3).eval(), (5, 2, 3)),
        (lambda: AffineTransform(torch.randn(3), torch.tensor([0.5, 2.0, -1.0])), (5, 3)),
    ],
)
def test_log_determinants_are_one_an_event(make, shape):
    """Against autograd, of the rows as they are and of events of all but the first dimension."""
    torch.manual_seed(0)
    flow, x = FromPyro(make()).double(), torch.randn(shape, dtype=torch.float64)
    y, ladj = flow.forward_and_ladj(x)
    assert ladj.shape == shape[: len(shape) - flow.event_dim]
    whole = Chain([flow], event_dim=len(shape) - 1)
    if flow.event_dim > 0 and len(shape) == 2:
        per_row = vmap(jacrev(lambda row: flow(row)))(x)
        torch.testing.assert_close(ladj, torch.linalg.slogdet(per_row)[1])
    size = x[0].numel()
    jacobian = torch.autograd.functional.jacobian(lambda rows: flow(rows).sum(0), x)  # rows don't meet
    jacobian = jacobian.movedim(len(shape) - 1, 0).reshape(len(x), size, size)
    torch.testing.assert_close(whole.forward_and_ladj(x)[1], torch.linalg.slogdet(jacobian)[1])
    back, inverse = whole.inverse_and_ladj(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse, -whole.forward_and_ladj(x)[1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: ComposeTransform([_stack(), AffineTransform(0.0, 2.0)]),
        lambda: CatTransform([_stack()], dim=-1),
        lambda: StackTransform([AffineTransform(torch.zeros(3), 2.0, event_dim=1)] * 2, -2),
    ],
)
def test_stacks_that_pytorch_adds_up_wrongly_are_refused(make):
    with pytest.raises(ValueError, match="StackTransform has a log-determinant for each entry"):
        FromPyro(make())


@pytest.mark.parametrize("make", [SoftmaxTransform, AbsTransform])
def test_what_is_no_bijection_is_refused(make):
    with pytest.raises(ValueError, match=f"{make.__name__} is no bijection"):
        FromPyro(make())


@pytest.mark.parametrize("layer", [FromPyro(ExpTransform()), Revert()])
@pytest.mark.parametrize("inverse", [False, True])
def test_what_is_no_floating_point_tensor_is_named(layer, inverse):
    run = layer.inverse_and_ladj if inverse else layer.forward_and_ladj
    with pytest.raises(ValueError, match=r"acts on dense floating-point tensors, got a torch\.int64 one"):
        run(torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="acts on tensors, got list"):
        run([1.0, 2.0])
