"""What makes image flows faster changes none of their results: merged layers, and the layout of memory."""

from __future__ import annotations

import pytest
import torch

from tests.transforms.case import randomise
from tests.transforms.image_cases import SmoothConv, coupling
from vi_flows.flows.image_steps import Emerging, Glow
from vi_flows.nn import ConvConditioner, GatedConditioner, ResNetConditioner
from vi_flows.nn.image import channels_last, squash
from vi_flows.transforms import ActNorm, AffineMap, Chain, ChannelGroups, Conv1x1, ImageChain


def layers(channels=4, data_init=False):
    return [
        ActNorm(channels, data_init), Conv1x1(channels), ActNorm(channels, data_init),
        coupling(ChannelGroups(channels), channels, AffineMap(), SmoothConv), Conv1x1(channels),
    ]  # fmt: skip


def twins(**options):
    """The same layers in a chain that merges and in one that does not."""
    merged = ImageChain(layers(**options)).double()
    plain = Chain(layers(**options)).double()
    randomise(merged, 0.5)
    plain.load_state_dict(merged.state_dict())  # the names of the parameters are the same
    return merged, plain


@pytest.mark.parametrize("way", ["forward_and_ladj", "inverse_and_ladj"])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_merged_layers_are_the_layers_one_after_the_other(way, batch):
    merged, plain = twins()
    results = []
    for flow in (merged, plain):
        torch.manual_seed(1)
        x = torch.randn(*batch, 4, 3, 5, dtype=torch.float64, requires_grad=True)
        y, ladj = getattr(flow, way)(x)
        (y.sin().sum() + (ladj * torch.arange(1.0, 1 + ladj.numel()).reshape(ladj.shape)).sum()).backward()
        results.append((y.detach(), ladj.detach(), x.grad, *(p.grad for p in flow.parameters())))
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-11)


def test_merged_layers_compute_one_convolution(monkeypatch):
    calls = []
    original = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *a, **k: calls.append(a[1].shape) or original(*a, **k))
    twins()[0].forward_and_ladj(torch.randn(2, 4, 3, 3, dtype=torch.float64))
    # Three layers in one, the two convolutions of the coupling's network, and the last layer.
    assert calls == [(4, 4, 1, 1), (3, 2, 3, 3), (4, 3, 1, 1), (4, 4, 1, 1)]


def test_merged_actnorms_start_from_what_reaches_each_of_them():
    merged, plain = (ImageChain(layers(data_init=True)), Chain(layers(data_init=True)))
    plain.load_state_dict(merged.state_dict())
    x = 3 + 2 * torch.randn(64, 4, 4, 4)
    for flow in (merged, plain):
        flow.eval().forward_and_ladj(x)  # not in training mode: nothing starts
        assert not flow[0].initialized
        assert flow[0].waits is False
        flow.train().forward_and_ladj(x[:0])
        assert flow[0].waits
        flow.forward_and_ladj(x)
        assert not flow[0].waits
    for mine, reference in zip(merged.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)
    third = Chain(list(merged.parts)[:3]).forward_and_ladj(x)[0]
    torch.testing.assert_close(third.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)


def test_merged_layers_refuse_other_images():
    with pytest.raises(ValueError, match="ActNorm acts on images of 4 channels"):
        twins()[0].forward_and_ladj(torch.zeros(2, 3, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize("flow", [Glow(num_levels=2, num_steps=2, width=4), Emerging(num_levels=1, width=4)])
def test_the_names_of_a_flows_parameters_are_those_of_before(flow):
    names = list(flow.build((1, 8, 8)).state_dict())
    first = "bijection.levels.0.parts.1.parts"
    assert [name for name in names if name.startswith(f"{first}.0.")] == [
        f"{first}.0.bias", f"{first}.0.log_scale", f"{first}.0.initialized",
    ]  # fmt: skip
    assert f"{first}.1.weight.log_diagonal" in names


NETWORKS = [
    lambda n_in: ConvConditioner(n_in, 4, 6), lambda n_in: ResNetConditioner(n_in, 4, 6, 2),
    lambda n_in: GatedConditioner(n_in, 4, 6, 2), lambda n_in: ResNetConditioner(n_in, 4, 8, 1, norm="group"),
]  # fmt: skip


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize(("n_in", "size"), [(1, 6), (3, 7), (3, 4)])
def test_the_layout_of_memory_changes_no_result(make, n_in, size):
    network = randomise(make(n_in).double(), 0.5)
    x = torch.randn(3, n_in, size, size + 1, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, size, size + 1, dtype=torch.float64)
    y = network(x)
    plain = torch.nn.Sequential.forward(network, squash(x).contiguous())
    assert y.is_contiguous()
    torch.testing.assert_close(y, plain)
    inputs = [x, *network.parameters()]
    mine, reference = (torch.autograd.grad((out * weight).sum(), inputs) for out in (y, plain))
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a, b)


def test_where_the_channels_are_innermost():
    for channels in (1, 3):
        image = channels_last(torch.randn(2, channels, 6, 6))
        assert image.stride() == (36 * channels, 1, 6 * channels, channels)
    image = torch.randn(2, 3, 4, 4)
    assert channels_last(image) is image
    assert channels_last(torch.randn(0, 3, 6, 6)).shape == (0, 3, 6, 6)
    network = randomise(ConvConditioner(2, 3, 5), 0.5)
    images = torch.randn(4, 2, 2, 6, 6)
    torch.testing.assert_close(torch.func.vmap(network)(images), torch.stack([network(part) for part in images]))
