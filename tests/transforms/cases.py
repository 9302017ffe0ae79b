"""The one registry of bijection cases: a new layer is one entry here and gets every test of the contract."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions.transforms as pyro_transforms
import torch
from torch import Tensor
from torch.distributions import Transform

from tests.transforms.case import Case, randomise
from tests.transforms.image_cases import IMAGE_CASES
from vi_flows import flows
from vi_flows.flows import FLOWS, IAF, MAF, NICE, NSF, ConvFlow, Planar, Radial, RealNVP, Spline, Sylvester, VectorFlow
from vi_flows.transforms import (
    Affine,
    Bijection,
    Chain,
    ConditionalChain,
    ConvBlock,
    FromPyro,
    Inverse,
    QuadraticTails,
    Revert,
    TriangularScale,
)
from vi_flows.transforms import ConvFlow as ConvFlowLayer


def _conditioned(dim: int, **options: object) -> Bijection:
    family = flows.conditional_conv_flow(dim, 3, **options)
    randomise(family, 0.5)
    return family.requires_grad_(False).condition(torch.randn(3))  # without a graph: it can be copied


def _conditional_chain() -> Bijection:
    family = ConditionalChain([flows.conditional_conv_flow(4, 3), Revert(), ConvFlowLayer(4, 2, 1)])
    randomise(family, 0.5)
    return family.requires_grad_(False).condition(torch.randn(3))  # without a graph: it can be copied


def _conv(activation: str) -> Case:
    return Case(lambda: ConvFlowLayer(7, 3, 2, activation), (7,), extreme=True)


SMALL_FLOWS: dict[str, VectorFlow] = {
    **{name: kind() for name, kind in FLOWS.items()},
    "conv_flow": ConvFlow(2, kernel_size=2, dilations=(1, 2), activation="tanh"),
    "planar": Planar(3),
    "radial": Radial(3),
    "sylvester": Sylvester(2, rank=2, num_reflections=2),
    "sylvester_householder": Sylvester(1, rank=4, num_reflections=2),
    "iaf": IAF(2, (4,)),
    "maf": MAF(2, (4,)),
    "spline": Spline(1, (3,), num_bins=2),
    "nice": NICE(2, (4,)),
    "real_nvp": RealNVP(2, (4,)),
    "nsf": NSF(2, (3,), num_bins=3),
}
"""Every flow of the registry, at settings that are quick to check."""


def _flow(flow: VectorFlow, amortized: bool = False) -> Case:
    # Splines of steep splines are beyond float32: their parameters are kept smaller.
    scale = 0.2 if isinstance(flow, Spline | NSF) else 0.5

    def conditioned() -> Bijection:
        family = randomise(flow.build(4, 3), scale)
        return family.requires_grad_(False).condition(torch.randn(3))  # without a graph: it can be copied

    if amortized:
        return Case(conditioned, (4,), scale=scale, moves=False)
    return Case(lambda: flow.build(4), (4,), scale=scale)


def _pyro(make: Callable[[], Transform], num_layers: int = 2, **options: Any) -> Case:
    return Case(lambda: flows.repeat_pyro(make, num_layers, revert=True), (4,), **options)


CASES: dict[str, Case] = {
    "revert": Case(Revert, (5,)),
    "conv_flow_leaky_relu": _conv("leaky_relu"),
    "conv_flow_tanh": _conv("tanh"),
    "conv_flow_sigmoid": _conv("sigmoid"),
    "conv_flow_softplus": _conv("softplus"),
    "conv_flow_elu": _conv("elu"),
    "conv_flow_steep": Case(lambda: ConvFlowLayer(6, 3, 1, negative_slope=2.0), (6,), extreme=True),
    "conv_flow_relu": Case(lambda: ConvFlowLayer(6, 3, 1, negative_slope=0.0), (6,), extreme=True),
    "conv_flow_one_dim": Case(lambda: ConvFlowLayer(1, 5, 1), (1,), extreme=True),
    "conv_flow_dead_taps": Case(lambda: ConvFlowLayer(5, 5, 4), (5,), extreme=True),
    "conv_flow_long_dilation": Case(lambda: ConvFlowLayer(5, 2, 9), (5,), extreme=True),
    "conv_block": Case(lambda: ConvBlock(10, 5, (1, 2, 4, 8)), (10,), scale=0.3),
    "conv_flow_paper_2d": Case(lambda: flows.conv_flow(2, 4), (2,), scale=0.4),
    "conv_flow_paper_50d": Case(lambda: flows.conv_flow(50, 2), (50,), scale=0.1, smooth=False),
    "conv_flow_tanh_stack": Case(lambda: flows.conv_flow(6, 2, 3, (1, 2), "tanh"), (6,), scale=0.4),
    "conditional_conv_flow": Case(
        lambda: _conditioned(6, num_blocks=2, kernel_size=3, dilations=(1, 2)), (6,), moves=False
    ),
    "conditional_conv_flow_full": Case(
        lambda: _conditioned(5, num_blocks=1, rank=None, amortize_weight=True, activation="tanh"), (5,), moves=False
    ),
    "conditional_chain": Case(_conditional_chain, (4,), moves=False),
    "chain": Case(lambda: Chain([ConvFlowLayer(4, 2, 1), Revert(), ConvFlowLayer(4, 3, 1, "tanh")]), (4,)),
    "affine_full": Case(lambda: Affine(torch.zeros(5)), (5,)),
    "affine_low_rank": Case(lambda: Affine(torch.zeros(5), kind="low_rank", rank=2), (5,)),
    "affine_diagonal": Case(lambda: Affine(torch.zeros(5), kind="diagonal"), (5,)),
    "quadratic_tails": Case(lambda: QuadraticTails(6), (6,)),
    "triangular_scale": Case(lambda: TriangularScale(6), (6,)),
    "chain_empty": Case(lambda: Chain([]), (3,)),
    "chain_mixed_event_dims": Case(
        lambda: Chain([FromPyro(torch.distributions.AffineTransform(0.3, -1.7)), ConvFlowLayer(4, 2, 1)]), (4,)
    ),
    "inverse": Case(lambda: Inverse(flows.conv_flow(4, 1, 2, (1, 2))), (4,)),
    "inverse_of_inverse": Case(lambda: Inverse(Inverse(ConvFlowLayer(4, 2, 1, "elu"))), (4,)),
    "pyro_planar": _pyro(lambda: pyro_transforms.planar(4), invertible=False),
    "pyro_radial": _pyro(lambda: pyro_transforms.radial(4), invertible=False),
    "pyro_iaf": _pyro(lambda: pyro_transforms.affine_autoregressive(4), smooth=False),
    # Pyro's rational splines lose up to units in float32 when they are inverted where they are steep.
    "pyro_spline": _pyro(
        lambda: pyro_transforms.spline_autoregressive(4, count_bins=8, bound=5.0),
        num_layers=1,
        smooth=False,
        round_trip=1e-7,
        round_trip32=math.inf,
        moves=False,
    ),
    **{f"flow_{name}": _flow(flow) for name, flow in SMALL_FLOWS.items()},
    **{f"flow_{name}_amortized": _flow(flow, amortized=True) for name, flow in SMALL_FLOWS.items()},
    **IMAGE_CASES,
}


def build(name: str, scale: float | None = None, dtype: torch.dtype = torch.float64) -> Bijection:
    """The case's bijection with random parameters (drawn from a seed that depends on nothing else)."""
    case = CASES[name]
    torch.manual_seed(11)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return randomise(case.make(), case.scale if scale is None else scale)
    finally:
        torch.set_default_dtype(default)


def inputs(name: str, *batch_shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal inputs of the case."""
    torch.manual_seed(5)
    return torch.randn(*batch_shape, *CASES[name].event_shape, dtype=dtype)
