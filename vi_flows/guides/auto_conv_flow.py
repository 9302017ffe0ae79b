"""The ConvFlow guide for any Pyro program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vi_flows.flows import conv_flow
from vi_flows.guides.auto_flow import FULL_AFFINE_DIM, AutoFlow
from vi_flows.settings import check_counts
from vi_flows.transforms import Affine, Bijection, Chain, ConvFlowStack, QuadraticTails, TriangularScale

__all__ = ["AutoConvFlow", "mixed_conv_flow"]

GAIN = 0.1
"""Factor between the parameters of a mixed ConvFlow's layers and what they stand for, see :func:`mixed_conv_flow`."""

TAILS = 0.01
"""Initial rates of the tails in up to ten dimensions; less beyond, so that together they cost no more."""


class _Scaled(ConvFlowStack):
    """A stack whose parameter ``theta`` holds ``θ / GAIN``."""

    gains = MappingProxyType({"theta": GAIN})

    def reset_parameters(self, init_scale: float = 0.0) -> None:
        super().reset_parameters(init_scale / GAIN)

    @property
    def effective_theta(self) -> Tensor:
        return GAIN * self.theta


def mixed_conv_flow(
    input_dim: int,
    num_blocks: int = 4,
    kernel_size: int | None = None,
    dilations: Sequence[int] | None = None,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    num_marginal_layers: int = 4,
    init_scale: float = 0.0,
) -> Chain:
    """ConvFlow for parameters of a model, which, unlike pixels or codes, have no order in space.

    First come the noise's tails (:class:`~vi_flows.transforms.QuadraticTails`). Each block is a ConvBlock without its
    Revert; a few ConvFlow layers of kernel size 1 with softplus, which give each dimension a skewness of its own
    (kernels start at ±1.5, biases spread over ±1.5); and, up to 200 dimensions, a
    :class:`~vi_flows.transforms.TriangularScale` and, between blocks, a full :class:`~vi_flows.transforms.Affine` layer
    (a Revert beyond), so that the next block convolves other directions.
    It starts near the identity.

    A layer adds up ``d`` terms for each dimension, and the layers add up, so a step of Adam in all parameters at once
    would move the map much further than in a location alone; with one draw a step, its noise would drown the posterior.
    So ``θ`` is held divided by 0.1 and the matrices by ``0.1 / √d`` (each layer's ``gains``), which makes Adam's steps
    smaller by these factors. :func:`~vi_flows.guides.fit`, whose gradients are less noisy, undoes it.

    Args:
        input_dim: number of dimensions.
        num_blocks: blocks.
        kernel_size: see :func:`~vi_flows.flows.conv_flow`; so with the next three.
        dilations: one a layer of a block.
        activation: of the ConvBlocks.
        negative_slope: of the leaky ReLU.
        num_marginal_layers: layers of kernel size 1 a block.
        init_scale: standard deviation of the initial ``θ`` of the ConvBlocks.
    """
    check_counts(1, num_blocks=num_blocks)
    check_counts(0, num_marginal_layers=num_marginal_layers)
    small = input_dim <= FULL_AFFINE_DIM
    gain = GAIN * input_dim**-0.5
    parts: list[Bijection] = [QuadraticTails(input_dim, TAILS * min(1.0, (10 / input_dim) ** 0.5))]
    for block in range(num_blocks):
        last = block + 1 == num_blocks
        revert = not small and not last
        taps = min(5, input_dim) if kernel_size is None else kernel_size
        parts.append(_Scaled(input_dim, 1, taps, dilations, activation, negative_slope, revert, init_scale))
        if num_marginal_layers:
            parts.append(_marginals(input_dim, num_marginal_layers))
        if small:
            parts.append(TriangularScale(input_dim, gain=gain))
            if not last:
                parts.append(Affine(torch.zeros(input_dim), 1.0, "full", gain=gain))
    return Chain(parts)


def _marginals(input_dim: int, num_layers: int) -> ConvFlowStack:
    layers = _Scaled(input_dim, 1, 1, (1,) * num_layers, "softplus", revert=False)
    sign = torch.tensor([1.0, -1.0]).repeat(num_layers)[:num_layers]
    with torch.no_grad():
        layers.weight.copy_(1.5 * sign[:, None])
        layers.bias.copy_((torch.linspace(-1.5, 1.5, num_layers) * sign)[:, None])
    return layers


class AutoConvFlow(AutoFlow):
    r"""The ConvFlow guide: an :class:`AutoFlow` made of ConvFlow layers.

    ::

        guide = AutoConvFlow(model)
        result = fit(model, guide, data)      # or Pyro's SVI, with any ELBO
        print(diagnose(model, guide, data))

    Args:
        model: a Pyro program of static structure.
        num_blocks: the paper's K.
        mixing: between ConvBlocks, layers for parameters without an order in space (:func:`mixed_conv_flow`); without,
            the paper's flow: ConvBlocks and Reverts.
        kernel_size: taps; default 5, or ``d`` if that is less.
        dilations: one a layer of a block; default: powers of two up to ``d``.
        activation: ``leaky_relu``, ``tanh``, ``sigmoid``, ``softplus`` or ``elu``; smooth posteriors want a
            smooth one.
        negative_slope: of the leaky ReLU.
        flow_init_scale: standard deviation of the initial ``θ`` of the flow; 0 starts at a Gaussian.
        options: those of :class:`AutoFlow`.
    """

    def __init__(
        self,
        model: Callable,
        num_blocks: int = 4,
        *,
        mixing: bool = True,
        kernel_size: int | None = None,
        dilations: Sequence[int] | None = None,
        activation: str = "tanh",
        negative_slope: float = 0.01,
        flow_init_scale: float = 0.0,
        **options: Any,
    ) -> None:
        check_counts(1, num_blocks=num_blocks)
        factory = partial(
            mixed_conv_flow if mixing else conv_flow,
            num_blocks=num_blocks,
            kernel_size=kernel_size,
            dilations=dilations,
            activation=activation,
            negative_slope=negative_slope,
            init_scale=flow_init_scale,
        )
        super().__init__(model, factory, **options)
