"""ConvFlow: residual 1-D convolutions over the dimensions of a vector, with the Revert layer between blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vi_flows.kernels import ConvFlowSpec, conv_flow_forward, conv_flow_inverse
from vi_flows.kernels.reference import effective_gain
from vi_flows.settings import check_counts, check_types
from vi_flows.transforms.base import Bijection, ConditionalBijection

__all__ = ["ConditionalConvFlow", "ConvBlock", "ConvFlow", "ConvFlowStack", "Revert", "default_dilations"]


def default_dilations(input_dim: int) -> tuple[int, ...]:
    """Powers of two up to ``input_dim``: the paper's 1, 2 for d = 2, 1…32 for d = 50 and 1…64 for d = 100."""
    return tuple(2**n for n in range(input_dim.bit_length()))


class _ConvFlowBase(Bijection):
    """The map for parameters that are tensors of any origin: owned by the module, or given by a context."""

    theta: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, spec: ConvFlowSpec) -> None:
        super().__init__(event_dim=1)
        self.spec = spec

    @property
    def effective_theta(self) -> Tensor:
        """The ``θ`` that the layers work with."""
        return self.theta

    @property
    def continuous_log_det(self) -> bool:
        """Whether the activation's slope has no jump."""
        return self.spec.h.continuous_slope

    @torch.no_grad()
    def min_slope(self) -> float:
        """``min(1, 1 + M w₁ uᵢ)`` over layers and dimensions, with ``M = sup h′``: above ``e⁻⁷ ≈ 9e-4``."""
        bound = self.spec.h.slope_bound
        _, gain = effective_gain(self.effective_theta, self.weight[..., :1], bound)
        return float((1 + bound * gain).min().clamp(max=1.0)) if gain.numel() else math.inf

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All layers, first to last; see :class:`ConvFlowStack`."""
        self._check_last_dim(x, self.spec.input_dim)
        return conv_flow_forward(x, self.effective_theta, self.weight, self.bias, self.spec)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Exact inverse, last layer to first: closed form for leaky ReLU, safeguarded Newton for the others."""
        self._check_last_dim(y, self.spec.input_dim)
        return conv_flow_inverse(y, self.effective_theta, self.weight, self.bias, self.spec)

    def extra_repr(self) -> str:
        """Shape of the stack."""
        s = self.spec
        reverts = sum(s.reverts)
        return (
            f"input_dim={s.input_dim}, kernel_size={s.kernel_size}, dilations={s.dilations}, "
            f"reverts={reverts}, activation={s.activation}"
        )


class ConvFlowStack(_ConvFlowBase):
    r"""``num_blocks`` times (one ConvFlow layer per dilation, then a Revert), with all parameters in three tensors.

    Each layer is ``f(z) = z + u ⊙ h(conv(z, w) + b)`` (eq. 9 of the ConvFlow paper) with
    ``log|det| = Σᵢ log(1 + w₁ uᵢ h′(aᵢ))``. The free parameter ``θ`` of each dimension is mapped to ``u`` so that
    ``w₁uᵢ > −1/sup h′``, which is the condition for a bijection, whatever the values of ``θ`` and ``w``.

    Args:
        input_dim: ``d``.
        num_blocks: the paper's K.
        kernel_size: ``k`` taps; those whose offset reaches past the last dimension meet only zeros.
        dilations: one a layer; default: powers of two up to ``input_dim``.
        activation: ``leaky_relu``, ``tanh``, ``sigmoid``, ``softplus`` or ``elu``.
        negative_slope: of the leaky ReLU.
        revert: whether a Revert follows each block.
        init_scale: standard deviation of the initial ``θ``; 0 starts at the identity (up to Reverts).

    Raises:
        ValueError: a size is less than 1, or the activation is unknown.
    """

    def __init__(
        self,
        input_dim: int,
        num_blocks: int = 1,
        kernel_size: int = 5,
        dilations: Sequence[int] | None = None,
        activation: str = "leaky_relu",
        negative_slope: float = 0.01,
        revert: bool = True,
        init_scale: float = 0.0,
    ) -> None:
        super().__init__(make_spec(input_dim, num_blocks, kernel_size, dilations, activation, negative_slope, revert))
        layers = self.spec.num_layers
        self.theta = nn.Parameter(torch.empty(layers, input_dim))
        self.weight = nn.Parameter(torch.empty(layers, kernel_size))
        self.bias = nn.Parameter(torch.empty(layers, 1))
        self.reset_parameters(init_scale)

    def reset_parameters(self, init_scale: float = 0.0) -> None:
        """Draw taps of variance 1/k, zero biases, and ``θ`` of standard deviation ``init_scale``."""
        nn.init.normal_(self.weight, std=self.spec.kernel_size**-0.5)
        nn.init.zeros_(self.bias)
        if not 0 <= init_scale < math.inf:
            raise ValueError(f"init_scale must be at least 0 and finite, got {init_scale}")
        nn.init.zeros_(self.theta) if init_scale == 0 else nn.init.normal_(self.theta, std=init_scale)


class ConvFlow(ConvFlowStack):
    """One ConvFlow layer: :class:`ConvFlowStack` with a single dilation and no Revert; ``d + k + 1`` parameters.

    Args:
        input_dim: ``d``.
        kernel_size: ``k``.
        dilation: ``δ``; output i sees inputs i, i+δ, i+2δ, …
        activation: see :class:`ConvFlowStack`.
        negative_slope: see :class:`ConvFlowStack`.
        init_scale: see :class:`ConvFlowStack`.
    """

    def __init__(
        self,
        input_dim: int,
        kernel_size: int = 5,
        dilation: int = 1,
        activation: str = "leaky_relu",
        negative_slope: float = 0.01,
        init_scale: float = 0.0,
    ) -> None:
        super().__init__(input_dim, 1, kernel_size, (dilation,), activation, negative_slope, False, init_scale)


class ConvBlock(ConvFlowStack):
    """One ConvBlock of the paper (eq. 13): a ConvFlow layer for each dilation, then a Revert.

    Args:
        input_dim: ``d``.
        kernel_size: ``k``.
        dilations: one a layer.
        activation: see :class:`ConvFlowStack`.
        negative_slope: see :class:`ConvFlowStack`.
        init_scale: see :class:`ConvFlowStack`.
    """

    def __init__(
        self,
        input_dim: int,
        kernel_size: int = 5,
        dilations: Sequence[int] | None = None,
        activation: str = "leaky_relu",
        negative_slope: float = 0.01,
        init_scale: float = 0.0,
    ) -> None:
        super().__init__(input_dim, 1, kernel_size, dilations, activation, negative_slope, True, init_scale)


class Revert(Bijection):
    """Reverses the order of the dimensions (eq. 12): ``g(z)ᵢ = z_{d+1−i}``, its own inverse, log-determinant 0."""

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Flip the last dimension."""
        self._check_tensor(x)
        return x.flip(-1), x.new_zeros(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Flip the last dimension."""
        return self.forward_and_ladj(y)


class _ConditionedConvFlow(_ConvFlowBase):
    """A stack whose parameters were computed from a context, one set a row; it owns none."""

    def __init__(self, spec: ConvFlowSpec, theta: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__(spec)
        self.theta, self.weight, self.bias = theta, weight, bias

    @property
    def batch_shape(self) -> torch.Size:
        """The context's."""
        return self.theta.shape[:-2]

    def _state_tensors(self) -> Iterable[Tensor]:
        return (self.theta, self.weight, self.bias)


class ConditionalConvFlow(ConditionalBijection):
    r"""An amortised ConvFlow stack: each row's context changes the stack's own parameters additively.

    A linear code of ``rank`` entries, ``c = U context``, moves them:
    ``θ(context) = θ + V_θ c`` and ``b(context) = b + V_b c``, with one bias a dimension. ``V`` starts at zero, so the
    stack starts as the unconditional one. The kernels stay shared unless ``amortize_weight``.

    With parameters shared by all rows a flow posterior is a learned prior in disguise; only parameters that depend on
    the context make the posterior of one row non-Gaussian.

    Args:
        input_dim: ``d``.
        context_dim: length of the context vector.
        num_blocks: see :class:`ConvFlowStack`; so with the next six.
        kernel_size: taps.
        dilations: one a layer.
        activation: of the flow.
        negative_slope: of the leaky ReLU.
        revert: a Revert after each block.
        init_scale: of the shared ``θ``.
        rank: entries of the code; ``None`` maps the context directly (full rank).
        amortize_weight: let the context change the kernels too.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int,
        num_blocks: int = 1,
        kernel_size: int = 5,
        dilations: Sequence[int] | None = None,
        activation: str = "leaky_relu",
        negative_slope: float = 0.01,
        revert: bool = True,
        init_scale: float = 0.0,
        rank: int | None = 32,
        amortize_weight: bool = False,
    ) -> None:
        super().__init__()
        check_counts(1, context_dim=context_dim, rank=1 if rank is None else rank)
        self.base = ConvFlowStack(
            input_dim, num_blocks, kernel_size, dilations, activation, negative_slope, revert, init_scale
        )
        self.context_dim = context_dim
        layers = self.base.spec.num_layers
        self._sizes = (input_dim, input_dim, kernel_size if amortize_weight else 0)
        self.encode = nn.Identity() if rank is None else nn.Linear(context_dim, rank, bias=False)
        self.decode = nn.Linear(context_dim if rank is None else rank, layers * sum(self._sizes), bias=False)
        nn.init.zeros_(self.decode.weight)

    def condition(self, context: Tensor) -> Bijection:
        """The stack for each row of ``context``, shape ``batch_shape + (context_dim,)``.

        Raises:
            TypeError: the context is no tensor.
            ValueError: its last dimension is not ``context_dim``.
        """
        context = self._checked(context, self.context_dim)
        spec = self.base.spec
        change = self.decode(self.encode(context)).unflatten(-1, (spec.num_layers, sum(self._sizes)))
        d_theta, d_bias, d_weight = change.split(self._sizes, -1)
        weight = self.base.weight + d_weight if self._sizes[2] else self.base.weight
        return _ConditionedConvFlow(spec, self.base.theta + d_theta, weight, self.base.bias + d_bias)


def make_spec(
    input_dim: int,
    num_blocks: int,
    kernel_size: int,
    dilations: Sequence[int] | None,
    activation: str,
    negative_slope: float,
    revert: bool,
) -> ConvFlowSpec:
    """The stack's shape: the dilations repeated ``num_blocks`` times, a Revert at the end of each block.

    Raises:
        TypeError: the dilations are a single number.
        ValueError: there is no block or no layer in it, or see :class:`~vi_flows.kernels.ConvFlowSpec`.
    """
    check_counts(1, input_dim=input_dim, num_blocks=num_blocks, kernel_size=kernel_size)
    if dilations is not None:
        check_types(Iterable, ": one for each layer of a block, as (1, 2)", dilations=dilations)
    block = tuple(default_dilations(max(input_dim, 1)) if dilations is None else dilations)
    if not block:
        raise ValueError("a block needs at least one layer, got no dilations")
    flips = (False,) * (len(block) - 1) + (revert,)
    return ConvFlowSpec(input_dim, kernel_size, block * num_blocks, flips * num_blocks, activation, negative_slope)
