"""Image bijections for the registry: small shapes, even and odd, few channels and many."""

from __future__ import annotations

import torch

from tests.transforms.case import Case, randomise
from vi_flows.nn import ConvConditioner, MLPConditioner, ResNetConditioner
from vi_flows.transforms import (
    ActNorm,
    AdditiveMap,
    AffineMap,
    Bijection,
    Chain,
    ChannelGroups,
    ChannelPermutation,
    Checkerboard,
    Checkpointed,
    CircularConv,
    ConditionalCheckpointed,
    ConditionalCoupling,
    Conv1x1,
    ConvMap,
    Coupling,
    EmergingConv2d,
    FourCornerConv2d,
    ImageBatchNorm,
    ImageChain,
    Inverse,
    MConvMap,
    MixtureMap,
    MultiScale,
    OneSidedConv2d,
    PeriodicConv2d,
    PixelSpline,
    Scaling,
    SplineMap,
    SplitPrior,
    Squeeze,
)
from vi_flows.transforms.coupling import Partition
from vi_flows.transforms.coupling_maps import CouplingMap
from vi_flows.transforms.image.reshaped import ConditionalReshaped
from vi_flows.transforms.vector.diagonal import DiagonalFamily
from vi_flows.transforms.vector.parametric import ConditionalParametric


class SmoothConv(torch.nn.Sequential):
    """A conditioner without kinks, so that finite differences apply."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            torch.nn.Conv2d(in_channels, 3, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(3, out_channels, 1)
        )


def coupling(partition: Partition, channels: int, coupling_map: CouplingMap, net: type = SmoothConv) -> Coupling:
    networks = [
        net(partition.known_channels(channels, m), coupling_map.num_maps * partition.group_channels(channels, m))
        for m in range(1, partition.num_groups)
    ]
    return Coupling(partition, networks, coupling_map)


def _batch_norm() -> Bijection:
    layer = ImageBatchNorm(3)
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2.0)
    return layer.eval()


def _conditional() -> Bijection:
    partition, change = ChannelGroups(4), AffineMap()
    family = ConditionalCoupling(partition, [SmoothConv(2 + 1, 4)], change, context_channels=1)
    randomise(family, 0.5)
    return family.requires_grad_(False).condition(torch.randn(1, 3, 2))


def _conditional_reshaped() -> Bijection:
    family = ConditionalCheckpointed(ConditionalReshaped(ConditionalParametric(DiagonalFamily(6), 2), (6,)))
    randomise(family, 0.5)
    return family.requires_grad_(False).condition(torch.randn(2))


def _multi_scale() -> Bijection:
    """Two levels on 4 × 4 pixels with a learned prior at the split."""
    first = Chain([Squeeze(), ActNorm(4, data_init=False), coupling(ChannelGroups(4), 4, AffineMap())])
    second = Chain([Squeeze(), Conv1x1(8), coupling(ChannelGroups(8, swap=True), 8, AffineMap())])
    return MultiScale((1, 4, 4), [first, second], [SplitPrior(4, SmoothConv(2, 4))])


def _coupling(partition: Partition, channels: int, coupling_map: CouplingMap, shape: tuple[int, int]) -> Case:
    return Case(lambda: coupling(partition, channels, coupling_map), (channels, *shape))


def _wide(net: torch.nn.Module, channels: int, shape: tuple[int, int]) -> Case:
    return Case(lambda: Coupling(ChannelGroups(channels), [net()], AffineMap()), (channels, *shape), 0.2, smooth=False)


IMAGE_CASES: dict[str, Case] = {
    "squeeze": Case(Squeeze, (2, 4, 6)),
    "squeeze_by_three": Case(lambda: Squeeze(3), (1, 6, 3)),
    "unsqueeze": Case(lambda: Inverse(Squeeze()), (4, 2, 3)),
    "channel_permutation": Case(lambda: ChannelPermutation([2, 0, 1]), (3, 2, 3)),
    "image_chain": Case(
        lambda: ImageChain([ActNorm(4, False), Conv1x1(4), coupling(ChannelGroups(4), 4, AffineMap())]), (4, 2, 3)
    ),
    "act_norm": Case(lambda: ActNorm(3, data_init=False), (3, 2, 3)),
    "batch_norm": Case(_batch_norm, (3, 2, 3)),
    "scaling": Case(lambda: Scaling((2, 3, 2)), (2, 3, 2)),
    "conv1x1": Case(lambda: Conv1x1(4), (4, 2, 3)),
    "circular_conv_1d_even": Case(lambda: CircularConv((2, 6)), (2, 6)),
    "circular_conv_1d_odd": Case(lambda: CircularConv((2, 5)), (2, 5)),
    "circular_conv_even_odd": Case(lambda: CircularConv((2, 4, 3)), (2, 4, 3)),
    "circular_conv_odd_even": Case(lambda: CircularConv((1, 3, 4)), (1, 3, 4)),
    "circular_conv_one_pixel": Case(lambda: CircularConv((3, 1, 1)), (3, 1, 1)),
    "circular_conv_kernel": Case(lambda: CircularConv((2, 4, 3), "kernel"), (2, 4, 3), scale=0.1),
    "symmetric_conv_1d": Case(lambda: CircularConv((2, 5), "cosine"), (2, 5)),
    "symmetric_conv": Case(lambda: CircularConv((2, 4, 3), "cosine"), (2, 4, 3)),
    **{
        f"one_sided_conv_{corner}_{'masked' if masked else 'full'}": Case(
            lambda corner=corner, masked=masked: OneSidedConv2d(2, 3, corner, masked), (2, 4, 3), scale=0.2
        )
        for corner in ("top_left", "top_right", "bottom_left", "bottom_right")
        for masked in (True, False)
    },
    "one_sided_conv_many_channels": Case(lambda: OneSidedConv2d(8, 3), (8, 3, 3), scale=0.1),
    "one_sided_conv_turned_round": Case(lambda: Inverse(OneSidedConv2d(2, 3, masked=True)), (2, 4, 3), scale=0.2),
    "one_sided_conv_2x2": Case(lambda: OneSidedConv2d(2, 2), (2, 3, 3), scale=0.2),
    "one_sided_conv_5x5_small_image": Case(lambda: OneSidedConv2d(2, 5), (2, 3, 2), scale=0.2),
    "emerging_conv": Case(lambda: EmergingConv2d(2), (2, 3, 4), scale=0.2),
    "coupling_additive": _coupling(ChannelGroups(3), 3, AdditiveMap(), (2, 3)),
    "coupling_affine_exp": _coupling(ChannelGroups(3, swap=True), 3, AffineMap("exp"), (2, 3)),
    "coupling_affine_tanh": _coupling(ChannelGroups(4), 4, AffineMap("tanh"), (2, 2)),
    "coupling_conv": _coupling(ChannelGroups(2), 2, ConvMap(), (3, 4)),
    "coupling_mconv": _coupling(ChannelGroups(4), 4, MConvMap(), (3, 3)),
    "coupling_mconv_cosine": _coupling(ChannelGroups(2), 2, MConvMap("tanh", "cosine"), (3, 4)),
    "checkerboard_affine_odd": _coupling(Checkerboard(0), 2, AffineMap(), (3, 3)),
    "checkerboard_affine_even": _coupling(Checkerboard(1), 1, AffineMap(), (3, 4)),
    "checkerboard_mconv": _coupling(Checkerboard(1), 1, MConvMap(), (3, 4)),
    "checkerboard_mconv_square": _coupling(Checkerboard(0), 2, MConvMap("exp"), (4, 4)),
    "quad_coupling_affine": _coupling(ChannelGroups(4, 4), 4, AffineMap(), (2, 2)),
    "quad_coupling_swapped": _coupling(ChannelGroups(8, 4, swap=True), 8, AffineMap("exp"), (1, 2)),
    "quad_coupling_mconv": _coupling(ChannelGroups(4, 4), 4, MConvMap(), (2, 3)),
    "coupling_mixture": _coupling(ChannelGroups(4), 4, MixtureMap(3), (2, 2)),
    "quad_coupling_mixture": _coupling(ChannelGroups(4, 4), 4, MixtureMap(2), (1, 2)),
    "coupling_spline": _coupling(ChannelGroups(4), 4, SplineMap(4, 3.0), (2, 2)),
    "checkerboard_spline": _coupling(Checkerboard(1), 1, SplineMap(3, 2.0), (3, 3)),
    "pixel_spline": Case(lambda: PixelSpline(2, 5, 2.0), (2, 3, 2)),
    "periodic_conv": Case(lambda: PeriodicConv2d(2), (2, 4, 3)),
    "periodic_conv_as_large_as_the_image": Case(lambda: PeriodicConv2d(3, 3), (3, 3, 4)),
    "four_corner_conv": Case(lambda: FourCornerConv2d(8), (8, 3, 2), scale=0.2),
    "coupling_conv_net": _wide(lambda: ConvConditioner(2, 4, 8), 4, (3, 3)),
    "coupling_res_net": _wide(lambda: ResNetConditioner(2, 4, 8, 2), 4, (3, 3)),
    "coupling_res_net_group_norm": _wide(lambda: ResNetConditioner(2, 4, 8, 1, "group"), 4, (3, 3)),
    "coupling_mlp": _wide(lambda: MLPConditioner((2, 3, 2), 4, (10, 10)), 4, (3, 2)),
    "conditional_coupling": Case(_conditional, (4, 3, 2)),
    "conditional_reshaped": Case(_conditional_reshaped, (1, 3, 2), moves=False),
    "multi_scale": Case(_multi_scale, (1, 4, 4)),
    "checkpointed": Case(lambda: Checkpointed(coupling(ChannelGroups(4), 4, AffineMap())), (4, 2, 2)),
}
