"""Flows by name: factories of bijections, in lower case as in Pyro.

Ours (:func:`conv_flow`, :func:`conditional_conv_flow`) and Pyro's own flows under the same contract. All go from base
to sample: ``flow(z)`` is the fast direction of sampling, except for :func:`maf`, which is fast at scoring.

Pyro's Sylvester flow is left out: its log-determinant disagrees with the autograd Jacobian at general parameters
(it multiplies by the orthogonal factor on the wrong side of the activation, seen in Pyro 1.9.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro.distributions.transforms as pyro_transforms
from torch.distributions import Transform

from vi_flows.transforms import Bijection, Chain, ConditionalConvFlow, ConvFlowStack, FromPyro, Inverse, Revert

__all__ = ["FLOWS", "conditional_conv_flow", "conv_flow", "iaf", "maf", "planar", "radial", "spline"]


def conv_flow(
    input_dim: int,
    num_blocks: int = 1,
    kernel_size: int | None = None,
    dilations: Sequence[int] | None = None,
    activation: str = "leaky_relu",
    negative_slope: float = 0.01,
    revert: bool = True,
    init_scale: float = 0.0,
) -> ConvFlowStack:
    """ConvFlow with ``num_blocks`` ConvBlocks, each followed by a Revert.

    Args:
        input_dim: number of dimensions ``d``.
        num_blocks: the paper's K.
        kernel_size: taps; default: 5, or ``input_dim`` if that is less (the paper's 2 at d = 2, 5 at 50 and 100).
        dilations: one a layer of a block; default: powers of two up to ``input_dim``, the paper's choice.
        activation: ``leaky_relu``, ``tanh``, ``sigmoid``, ``softplus`` or ``elu``.
        negative_slope: of the leaky ReLU.
        revert: whether a Revert follows each block.
        init_scale: standard deviation of the initial ``θ``; 0 starts at the identity (up to Reverts).
    """
    size = min(5, input_dim) if kernel_size is None else kernel_size
    return ConvFlowStack(input_dim, num_blocks, size, dilations, activation, negative_slope, revert, init_scale)


def conditional_conv_flow(
    input_dim: int,
    context_dim: int,
    num_blocks: int = 1,
    kernel_size: int | None = None,
    dilations: Sequence[int] | None = None,
    activation: str = "leaky_relu",
    negative_slope: float = 0.01,
    revert: bool = True,
    init_scale: float = 0.0,
    rank: int | None = 32,
    amortize_weight: bool = False,
) -> ConditionalConvFlow:
    """ConvFlow whose parameters depend on a context (an encoder's output): ``condition(context)`` gives the flow.

    Args:
        input_dim: number of dimensions ``d``.
        context_dim: length of the context vector.
        num_blocks: see :func:`conv_flow`; so with the next six.
        kernel_size: taps.
        dilations: one a layer of a block.
        activation: of the flow.
        negative_slope: of the leaky ReLU.
        revert: whether a Revert follows each block.
        init_scale: of the shared ``θ``.
        rank: size of the code between context and parameters; ``None`` for none.
        amortize_weight: let the context change the kernels too.
    """
    size = min(5, input_dim) if kernel_size is None else kernel_size
    return ConditionalConvFlow(
        input_dim, context_dim, num_blocks, size, dilations, activation, negative_slope, revert, init_scale, rank,
        amortize_weight,
    )  # fmt: skip


def _repeat(factory: Callable[[], Transform], num_layers: int, revert: bool) -> Chain:
    parts: list[Bijection] = []
    for layer in range(num_layers):
        parts.append(FromPyro(factory()))
        if revert and layer + 1 < num_layers:
            parts.append(Revert())
    return Chain(parts)


def planar(input_dim: int, num_layers: int = 8) -> Chain:
    """Pyro's planar flow, repeated; it has no inverse, so it scores only its own samples.

    Args:
        input_dim: number of dimensions.
        num_layers: repetitions.
    """
    return _repeat(lambda: pyro_transforms.planar(input_dim), num_layers, revert=False)


def radial(input_dim: int, num_layers: int = 8) -> Chain:
    """Pyro's radial flow, repeated; no inverse.

    Args:
        input_dim: number of dimensions.
        num_layers: repetitions.
    """
    return _repeat(lambda: pyro_transforms.radial(input_dim), num_layers, revert=False)


def iaf(input_dim: int, num_layers: int = 4, hidden_dims: Sequence[int] | None = None) -> Chain:
    """Inverse autoregressive flow: Pyro's affine autoregressive transform with the order flipped between layers.

    Sampling with log-probability is one pass; scoring other points takes ``input_dim`` passes.

    Args:
        input_dim: number of dimensions.
        num_layers: repetitions.
        hidden_dims: widths of each masked network; default: Pyro's ``[3 d + 1]``.
    """
    widths = None if hidden_dims is None else list(hidden_dims)
    return _repeat(lambda: pyro_transforms.affine_autoregressive(input_dim, hidden_dims=widths), num_layers, True)


def maf(input_dim: int, num_layers: int = 4, hidden_dims: Sequence[int] | None = None) -> Inverse:
    """Masked autoregressive flow: :func:`iaf` turned round, so that scoring is one pass and sampling sequential.

    Args:
        input_dim: number of dimensions.
        num_layers: repetitions.
        hidden_dims: widths of each masked network.
    """
    return Inverse(iaf(input_dim, num_layers, hidden_dims))


def spline(
    input_dim: int,
    num_layers: int = 2,
    count_bins: int = 8,
    bound: float = 5.0,
    hidden_dims: Sequence[int] | None = None,
) -> Chain:
    """Pyro's autoregressive linear-rational spline, repeated.

    Args:
        input_dim: number of dimensions.
        num_layers: repetitions.
        count_bins: bins of each spline.
        bound: the splines act within ``[−bound, bound]``.
        hidden_dims: widths of each masked network; default: Pyro's two layers of ``10 d``.
    """
    widths = None if hidden_dims is None else list(hidden_dims)
    return _repeat(
        lambda: pyro_transforms.spline_autoregressive(input_dim, widths, count_bins=count_bins, bound=bound),
        num_layers,
        True,
    )


FLOWS: dict[str, Callable[..., Bijection]] = {
    "conv_flow": conv_flow,
    "planar": planar,
    "radial": radial,
    "iaf": iaf,
    "maf": maf,
    "spline": spline,
}
"""The factories that take ``input_dim`` alone, by name."""
