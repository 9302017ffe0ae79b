r"""The ConvFlow stack in plain PyTorch: the definition that every faster kernel is tested against.

One layer is ``f(z) = z + u ⊙ h(a)``, ``a = conv(z, w) + b``, with ``conv(z, w)ᵢ = Σⱼ wⱼ z_{i+(j−1)δ}`` and zeros beyond
the last dimension (Zheng, Yang & Carbonell, *Convolutional Normalizing Flows*, eq. 9 and 11). Its Jacobian is upper
triangular, so ``log|det| = Σᵢ log(1 + w₁ uᵢ h′(aᵢ))``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from vi_flows.kernels.activations import ACTIVATIONS, Activation, make_activation

__all__ = ["ACTIVATIONS", "ConvFlowSpec", "conv_flow_forward", "conv_flow_inverse", "effective_gain", "free_gradients"]

# Slopes 1 + w₁u h′ are kept above e^-7 ≈ 9e-4: products of many such slopes still fit float32.
MIN_LOG_SLOPE = -7.0


@dataclass(frozen=True)
class ConvFlowSpec:
    """Shape of a ConvFlow stack: everything that is not a parameter.

    Attributes:
        input_dim: number of dimensions ``d``.
        kernel_size: number of taps ``k``.
        dilations: one ``δ`` a layer.
        reverts: whether the order of the dimensions is flipped after the layer, one a layer.
        activation: name of ``h``.
        negative_slope: of the leaky ReLU; ignored by the others.
    """

    input_dim: int
    kernel_size: int
    dilations: tuple[int, ...]
    reverts: tuple[bool, ...]
    activation: str = "leaky_relu"
    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        if self.input_dim < 1:
            raise ValueError(f"input_dim must be at least 1, got {self.input_dim}")
        if self.kernel_size < 1:
            raise ValueError(f"kernel_size must be at least 1, got {self.kernel_size}")
        if any(dilation < 1 for dilation in self.dilations):
            raise ValueError(f"dilations must be at least 1, got {self.dilations}")
        if len(self.reverts) != len(self.dilations):
            raise ValueError(f"{len(self.dilations)} layers need as many revert flags, got {len(self.reverts)}")
        make_activation(self.activation, self.negative_slope)

    @property
    def num_layers(self) -> int:
        """Number of ConvFlow layers (Reverts are not counted)."""
        return len(self.dilations)

    @cached_property
    def h(self) -> Activation:
        """The activation."""
        return make_activation(self.activation, self.negative_slope)


def effective_gain(theta: Tensor, w1: Tensor, slope_bound: float) -> tuple[Tensor, Tensor]:
    r"""The scale ``u`` and the gain ``A = w₁u`` that keep a layer bijective for every free ``theta``.

    ``u = θ ρ(x)`` with ``x = M w₁ θ``, ``ρ(x) = 1`` for ``x ≥ 0`` and ``expm1(x)/x`` below, so that
    ``A = ELU(x)/M > −1/M``. ``θ = 0`` gives the identity, and there is no division by ``w₁``. ``A`` is C¹ in both
    arguments and ``u`` in ``θ``; in ``w₁`` it is continuous, with a kink at zero. ``x`` is cut at −7.

    Args:
        theta: free parameters, any shape.
        w1: the tap that meets the dimension itself; broadcasts against ``theta``.
        slope_bound: ``M = sup h′``.
    """
    x = slope_bound * w1 * theta
    negative = x.clamp(MIN_LOG_SLOPE, 0.0)
    expm1 = torch.expm1(negative)
    # Near zero the quotient's derivative cancels badly; six terms are exact to rounding for |x| < 0.01.
    small = x > -1e-2
    s = negative.clamp(min=-1e-2)
    series = 1 + s / 2 * (1 + s / 3 * (1 + s / 4 * (1 + s / 5 * (1 + s / 6))))
    quotient = expm1 / torch.where(small, -torch.ones_like(x), x)
    rho = torch.where(x >= 0, torch.ones_like(x), torch.where(small, series, quotient))
    return theta * rho, torch.where(x >= 0, x, expm1) / slope_bound


def free_gradients(theta: Tensor, w1: Tensor, slope_bound: float, g_u: Tensor, g_gain: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients with respect to ``theta`` and ``w1`` from those with respect to ``u`` and ``A``.

    Args:
        theta: see :func:`effective_gain`; so with the next two.
        w1: the first tap.
        slope_bound: ``M``.
        g_u: of the scale.
        g_gain: of the gain.
    """
    with torch.enable_grad():
        inputs = theta.detach().requires_grad_(), w1.detach().requires_grad_()
        g_theta, g_w1 = torch.autograd.grad(effective_gain(*inputs, slope_bound), inputs, (g_u, g_gain))
    return g_theta, g_w1


def conv_flow_forward(
    z: Tensor, theta: Tensor, weight: Tensor, bias: Tensor, spec: ConvFlowSpec
) -> tuple[Tensor, Tensor]:
    """See :func:`vi_flows.kernels.conv_flow_forward`; this is what it means."""
    d = spec.input_dim
    ladj = z.new_zeros(())
    for layer, dilation in enumerate(spec.dilations):
        w = weight[..., layer, :]
        u, gain = effective_gain(theta[..., layer, :], w[..., :1], spec.h.slope_bound)
        a = bias[..., layer, :] + w[..., :1] * z
        for tap in range(1, spec.kernel_size):
            offset = tap * dilation
            if offset >= d:
                break
            a = a + w[..., tap : tap + 1] * F.pad(z[..., offset:], (0, offset))
        h, slope = spec.h.value_and_slope(a)
        z = z + u * h
        ladj = ladj + torch.log1p(gain * slope).sum(-1)
        if spec.reverts[layer]:
            z = z.flip(-1)
    return z, ladj.expand(z.shape[:-1])


def conv_flow_inverse(
    y: Tensor, theta: Tensor, weight: Tensor, bias: Tensor, spec: ConvFlowSpec
) -> tuple[Tensor, Tensor]:
    """See :func:`vi_flows.kernels.conv_flow_inverse`: back-substitution, ``⌈d/δ⌉`` vectorised steps a layer."""
    d = spec.input_dim
    ladj = y.new_zeros(())
    for layer in reversed(range(spec.num_layers)):
        if spec.reverts[layer]:
            y = y.flip(-1)
        w = weight[..., layer, :]
        u, gain = effective_gain(theta[..., layer, :], w[..., :1], spec.h.slope_bound)
        dilation = min(spec.dilations[layer], d)
        bounds = [(max(end - dilation, 0), end) for end in range(d, 0, -dilation)]
        b = bias[..., layer, :].expand(*bias.shape[:-2], d)
        blocks: list[Tensor] = []  # blocks of `dilation` coordinates, the last coordinates first
        for start, end in bounds:
            v = w[..., :1] * y[..., start:end] + b[..., start:end]
            for tap in range(1, min(spec.kernel_size, len(blocks) + 1)):
                v = v + w[..., tap : tap + 1] * blocks[-tap][..., start - end :]
            t = spec.h.solve(gain[..., start:end], v)
            h, slope = spec.h.value_and_slope(t)
            blocks.append(y[..., start:end] - u[..., start:end] * h)
            ladj = ladj - torch.log1p(gain[..., start:end] * slope).sum(-1)
        y = torch.cat(blocks[::-1], -1)
    return y, ladj.expand(y.shape[:-1])
