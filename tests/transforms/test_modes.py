"""Layers that are shared, recomputed or stood in for: their modes, averages and first batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.transforms.case import randomise
from vi_flows import flows
from vi_flows.flows import FLOWS, IAF, NICE
from vi_flows.flows.image_maf import ImageMAF
from vi_flows.nn import ResNetConditioner
from vi_flows.transforms import (
    ActNorm,
    Affine,
    AffineMap,
    Chain,
    ChannelGroups,
    Checkpointed,
    Conv1x1,
    Coupling,
    EmergingConv2d,
    FourCornerConv2d,
    ImageBatchNorm,
    ImageChain,
    OneSidedConv2d,
    PeriodicConv2d,
    Scaling,
    Squeeze,
    TriangularScale,
)  # fmt: skip


def coupling(recompute):
    layer = Coupling(ChannelGroups(2), [ResNetConditioner(1, 2, 4, 1, norm="batch")], AffineMap())
    return Checkpointed(layer) if recompute else layer


@pytest.mark.parametrize(
    ("made", "norm", "channels"),
    [
        (lambda recompute: ImageMAF(num_layers=1, hidden_dims=(8,)).build((1, 4, 4), recompute), ImageBatchNorm, 1),
        (coupling, nn.BatchNorm2d, 2),
    ],
    ids=["layer", "conditioner"],
)
def test_a_pass_that_is_computed_again_does_not_move_running_averages(made, norm, channels):
    averages = []
    for recompute in (False, True):
        torch.manual_seed(0)
        flow = made(recompute)
        x = 3 * torch.randn(64, channels, 4, 4)
        y, ladj = flow.inverse_and_ladj(x)
        (y.square().sum() - ladj.sum()).backward()
        norms = [m for m in flow.modules() if isinstance(m, norm)]
        averages.append([torch.cat([m.running_mean, m.running_var]) for m in norms])
    assert averages[0]
    for plain, again in zip(*averages, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize("flow", [NICE(2, (4,)), IAF(2, (4,))], ids=["coupling", "autoregressive"])
def test_conditioning_leaves_the_modes_of_what_is_shared(flow):
    family = flow.build(4, 3).train()
    frozen = next(m for m in family.modules() if isinstance(m, nn.Linear))
    frozen.eval()
    assert family.condition(torch.zeros(3)).training
    assert not frozen.training
    assert not family.eval().condition(torch.zeros(3)).parts[0].training


def test_actnorm_does_not_initialize_what_stands_in_for_its_parameters():
    layer = ActNorm(2).train()
    x = 3 * torch.randn(8, 2, 4, 4) + 1
    given = {name: value.detach().clone() for name, value in layer.named_parameters()}

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer.forward_and_ladj(x)[0]

    with pytest.raises(RuntimeError, match="one batch through the module itself"):
        functional_call(Whole(), {f"layer.{name}": value for name, value in given.items()}, (x,))
    assert all(not value.any() for value in given.values())
    assert not layer.initialized
    y, _ = layer.forward_and_ladj(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    assert functional_call(Whole(), {f"layer.{n}": v for n, v in given.items()}, (x,)).equal(x)


@pytest.mark.parametrize("method", ["forward_and_ladj", "inverse_and_ladj"])
@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (), (1,)])
def test_scaling_refuses_events_of_another_shape(method, shape):
    with pytest.raises(ValueError, match=r"events of shape \(4,\)"):
        getattr(Scaling((4,)), method)(torch.zeros(shape))


def test_an_empty_batch_of_a_periodic_convolution():
    x, ladj = PeriodicConv2d(2).inverse_and_ladj(torch.zeros(0, 2, 4, 4))
    assert x.shape == (0, 2, 4, 4)
    assert ladj.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4,), (1, 4)])
def test_all_derivatives_of_a_triangular_scales_inverse(dtype, shape):
    torch.manual_seed(0)
    flow, y = randomise(TriangularScale(4), 0.7).to(dtype), torch.randn(shape, dtype=dtype)

    def score(y):
        z, ladj = flow.inverse_and_ladj(y)
        return z.square().sum() + ladj.sum()

    expected = torch.autograd.functional.hessian(score, y)
    torch.testing.assert_close(torch.func.hessian(score)(y).detach(), expected)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(score))(y).detach(), expected)
    torch.testing.assert_close(torch.func.jacfwd(score)(y), torch.func.grad(score)(y))


FAMILIES = {
    "ConvFlow": lambda: flows.conditional_conv_flow(2, 3),
    "autoregressive": lambda: flows.IAF(1).build(2, 3),
    "parametric": lambda: flows.Planar(1).build(2, 3),
    "coupling": lambda: flows.RealNVP(1).build(2, 3),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_context_is_refused_by_its_name(name):
    family = FAMILIES[name]()
    for context, found in ((torch.tensor(1.0), "no"), (torch.zeros(5, 2), "2"), (torch.zeros(3, 0), "0")):
        with pytest.raises(ValueError, match=rf"^context has {found} entries a row, expected 3: it is a tensor of \("):
            family.condition(context)
    for context in ([1.0, 2.0, 3.0], None):
        with pytest.raises(TypeError, match=r"context must be of type Tensor, got .*; torch\.as_tensor makes one"):
            family.condition(context)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_hot_classes_are_a_context(name, dtype):
    torch.manual_seed(0)
    family, x = randomise(FAMILIES[name](), 0.5).to(dtype), torch.randn(2, 2, dtype=dtype)
    classes = torch.tensor([[0, 1, 0], [1, 0, 0]])
    for context in (classes, classes.bool()):
        found = family.condition(context).forward_and_ladj(x)
        torch.testing.assert_close(found, family.condition(classes.to(dtype)).forward_and_ladj(x))


@pytest.mark.parametrize(("call", "words"), [
    (lambda: flows.conv_flow(2.0), "input_dim must be a whole number, got 2.0"),
    (lambda: flows.conv_flow(2, kernel_size=2.5), "kernel_size must be a whole number, got 2.5"),
    (lambda: flows.conditional_conv_flow(2, 3).condition(torch.tensor(1.0)), "no entries a row, expected 3"),
    (lambda: Coupling(ChannelGroups(4), [nn.Identity()], AffineMap()).inverse_and_ladj(
        torch.zeros(2, 6, 2, 2)
    ), "images of 4 channels"),
])  # fmt: skip
def test_refusals_name_the_thing(call, words):
    with pytest.raises(ValueError, match=words):
        call()


WIDE = torch.float64


NETWORKS = ("iaf", "maf", "spline", "nice", "real_nvp", "nsf")


@pytest.mark.parametrize("name", sorted(set(FLOWS) - set(NETWORKS)))
@pytest.mark.parametrize("way", ["forward_and_ladj", "inverse_and_ladj"])
def test_flows_without_networks_compute_in_the_wider_type(name, way):
    torch.manual_seed(0)
    flow, x = randomise(FLOWS[name]().build(3), 0.2), torch.randn(5, 3, dtype=WIDE)
    found = getattr(flow, way)(x)
    torch.testing.assert_close(found, getattr(flow.double(), way)(x))
    torch.testing.assert_close(getattr(flow, way)(x.float()), getattr(flow, way)(x.float().double()))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", ["forward_and_ladj", "inverse_and_ladj"])
def test_flows_with_networks_refuse_another_type(name, way):
    torch.manual_seed(0)
    flow, x = randomise(FLOWS[name]().build(3), 0.2), torch.randn(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert getattr(flow, way)(x.bfloat16())[0].isfinite().all()
        with pytest.raises(ValueError, match=r"parameters of torch\.float32 and got a tensor of torch\.float64"):
            getattr(flow, way)(x.double())  # which autocast leaves as it is
    with pytest.raises(ValueError, match=r"parameters of torch\.float64 and got a tensor of torch\.float32"):
        getattr(flow.double(), way)(x)


@pytest.mark.parametrize("kind", ["full", "low_rank"])
def test_products_with_another_type_are_refused(kind):
    for layer in (Affine(torch.zeros(3), kind=kind), TriangularScale(3), Chain([Affine(torch.zeros(3), kind=kind)])):
        for way in (layer.forward_and_ladj, layer.inverse_and_ladj):
            with pytest.raises(ValueError, match=r"parameters of torch\.float32 and got a tensor of torch\.float64"):
                way(torch.zeros(2, 3, dtype=WIDE))


@pytest.mark.parametrize(
    "make",
    [
        Conv1x1, OneSidedConv2d, EmergingConv2d, FourCornerConv2d, PeriodicConv2d,
        lambda channels: ImageChain([ActNorm(channels), Conv1x1(channels)]),
    ],
)  # fmt: skip
def test_convolutions_of_another_type_are_refused(make):
    layer = make(4).eval()
    for way in (layer.forward_and_ladj, layer.inverse_and_ladj):
        with pytest.raises(ValueError, match=r"parameters of torch\.float32 and got a tensor of torch\.float64"):
            way(torch.rand(2, 4, 6, 6, dtype=WIDE))
        assert way(torch.rand(2, 4, 6, 6))[0].isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_context_of_a_wider_type_is_refused_and_of_a_narrower_one_is_taken(name):
    torch.manual_seed(0)
    family, context = randomise(FAMILIES[name](), 0.5), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"^context is of torch\.float64 and the parameters of \w+ of torch\.float32"):
        family.condition(context.double())
    x = torch.randn(4, 2, dtype=WIDE)
    found = family.double().condition(context).forward_and_ladj(x)
    torch.testing.assert_close(found, family.condition(context.double()).forward_and_ladj(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", [*sorted(FLOWS), "image_chain"])
def test_what_is_no_tensor_of_floating_point_numbers_is_refused(name):
    flow = ImageChain([Squeeze()]) if name == "image_chain" else FLOWS[name]().build(2)
    for way in (flow.forward_and_ladj, flow.inverse_and_ladj):
        with pytest.raises(TypeError, match=r"acts on tensors, got list; torch\.as_tensor makes one"):
            way([[1.0, 2.0]])
        for value, kind in ((torch.ones(4, 4, 2, dtype=torch.long), "int64"), (torch.ones(4, 4, 2) + 0j, "complex64")):
            with pytest.raises(ValueError, match=f"acts on dense floating-point tensors, got a torch.{kind} one"):
                way(value)


@pytest.mark.parametrize("name", ["coupling", "parametric"])
def test_families_and_their_bijections_compile_into_one_graph(name):
    torch.manual_seed(0)
    family = randomise(FAMILIES[name](), 0.2)

    def run(context, x):
        return family.condition(context).forward_and_ladj(x)

    context, x = torch.randn(4, 3), torch.randn(4, 2)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(context, x), run(context, x))
