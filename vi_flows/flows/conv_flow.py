"""ConvFlow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from vi_flows.flows.base import VectorFlow
from vi_flows.kernels.activations import ACTIVATIONS
from vi_flows.settings import NonNegativeFloat, OneOf, Positive
from vi_flows.transforms import ConditionalConvFlow, ConvFlowStack

__all__ = ["ConvFlow", "conditional_conv_flow", "conv_flow"]


@dataclass(frozen=True)
class ConvFlow(VectorFlow):
    """ConvFlow (Zheng, Yang & Carbonell 2017): blocks of residual convolutions over the dimensions, each reverted."""

    name: ClassVar[str] = "conv_flow"
    for_context: ClassVar[tuple[str, ...]] = ("rank", "amortize_weight")

    num_blocks: Positive = 1
    """ConvBlocks, the paper's K."""
    kernel_size: Positive = 5
    """Taps of each layer, at most the dimension (the paper: 2 at d = 2, 5 at 50 and 100)."""
    dilations: tuple[Positive, ...] | None = None
    """Of the layers of a block; None: powers of two up to the dimension, the paper's choice."""
    activation: Annotated[str, OneOf(tuple(ACTIVATIONS))] = "leaky_relu"
    """The paper's h; all but leaky_relu have a continuous log-determinant."""
    negative_slope: NonNegativeFloat = 0.01
    """Of the leaky ReLU."""
    revert: bool = True
    """Flip the order of the dimensions after each block."""
    init_scale: NonNegativeFloat = 0.0
    """Standard deviation of the initial gains; 0 starts at the identity (up to Reverts)."""
    rank: Positive | None = 32
    """Size of the code between the context and the parameters; None: the context itself."""
    amortize_weight: bool = False
    """Let the context change the kernels too, not only the gains and biases."""

    def make(self, input_dim: int) -> ConvFlowStack:
        """See :meth:`VectorFlow.build`."""
        return ConvFlowStack(input_dim, *self._stack(input_dim))

    def make_conditional(self, input_dim: int, context_dim: int) -> ConditionalConvFlow:
        """See :meth:`VectorFlow.build`."""
        return ConditionalConvFlow(input_dim, context_dim, *self._stack(input_dim), self.rank, self.amortize_weight)

    def label(self) -> str:
        """``ConvFlow (K = 8)``, with the activation if it is not the paper's."""
        activation = "" if self.activation == "leaky_relu" else f", {self.activation}"
        return f"ConvFlow (K = {self.num_blocks}{activation})"

    def _stack(self, input_dim: int) -> tuple[int, int, Sequence[int] | None, str, float, bool, float]:
        size = min(self.kernel_size, max(input_dim, 1))
        return (
            self.num_blocks, size, self.dilations, self.activation, self.negative_slope, self.revert, self.init_scale,
        )  # fmt: skip


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
