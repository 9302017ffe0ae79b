"""The forward map of the PyTorch fallback for small problems: parameters shared by all rows, few rows and dimensions.

A convolution is then one product with a banded matrix, which costs little more arithmetic than its taps and far fewer
calls, and a Revert is a permutation of the next layers' parameters.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from vi_flows.kernels.operands import Operands
from vi_flows.kernels.reference import ConvFlowSpec, effective_gain, free_gradients

__all__ = ["backward", "evaluate", "serves"]

MAX_WORK = 2_500_000  # d² times rows; above, the zeros of the matrices cost more than the calls that they save


def serves(operands: Operands) -> bool:
    """Whether this is for them, in the forward direction."""
    return all(p.dim() == 2 for p in operands[1:]) and operands.x.numel() * operands.x.shape[-1] <= MAX_WORK


class _Places(NamedTuple):
    """Where the parameters of each layer act on data that no Revert has moved.

    Attributes:
        order: the layer's dimensions in memory, ``(L, d)``; its own inverse.
        entries: of tap t at dimension i in the flattened matrix, ``(L, k·d)``.
        live: whether there is a dimension under that tap, ``(L, k, d)``.
        flipped: whether the output is in reverse order.
    """

    order: Tensor
    entries: Tensor
    live: Tensor
    flipped: bool


@lru_cache(maxsize=64)
def _places(spec: ConvFlowSpec, device: torch.device) -> _Places:
    d = spec.input_dim
    i = torch.arange(d, device=device)
    orders, entries, live, flipped = [], [], [], False
    offsets = torch.arange(spec.kernel_size, device=device)[:, None]
    for dilation, revert in zip(spec.dilations, spec.reverts, strict=True):
        order = i.flip(0) if flipped else i
        seen = i + offsets * min(dilation, d)
        orders.append(order)
        live.append(seen < d)
        entries.append((order * d + order[seen.clamp(max=d - 1)]).flatten())
        flipped ^= revert
    return _Places(torch.stack(orders), torch.stack(entries), torch.stack(live), flipped)


class _Layers:
    """The parameters of each layer as they act on data ``(d, N)`` that no Revert has moved."""

    def __init__(self, operands: Operands, spec: ConvFlowSpec) -> None:
        _, theta, weight, bias = operands
        self.at = _places(spec, theta.device)
        layers, d = theta.shape
        u, gain = effective_gain(theta, weight[:, :1], spec.h.slope_bound)
        self.u, self.gain = (t.gather(1, self.at.order).unsqueeze(-1) for t in (u, gain))
        taps = (weight.unsqueeze(-1) * self.at.live).flatten(1)
        self.matrix = theta.new_zeros(layers, d * d).scatter_add_(1, self.at.entries, taps).view(layers, d, d)
        self.bias = (bias if bias.shape[-1] == 1 else bias.gather(1, self.at.order)).unsqueeze(-1)

    def end(self, rows: Tensor) -> Tensor:
        """Rows after the last layer, in memory's order; its own inverse."""
        return rows.flip(1) if self.at.flipped else rows


@torch.no_grad()
def evaluate(operands: Operands, spec: ConvFlowSpec) -> tuple[Tensor, Tensor]:
    """The map and its log-determinant, without a graph.

    Args:
        operands: such as :func:`serves` accepts.
        spec: the stack's shape.
    """
    d, layers = spec.input_dim, _Layers(operands, spec)
    z = operands.x.reshape(-1, d).t().contiguous()
    slopes = []
    for matrix, b, u in zip(*(t.unbind() for t in (layers.matrix, layers.bias, layers.u)), strict=True):
        h, slope = spec.h.evaluate(torch.addmm(b, matrix, z))
        z = torch.addcmul(z, u, h)
        slopes.append(slope)
    if (two_slopes := spec.h.two_slopes) is not None:
        c, e = two_slopes.linear_logs(layers.gain)
        ladj = c.sum() + e.flatten() @ torch.cat(slopes)
    else:
        ladj = torch.log1p(layers.gain * torch.stack(slopes)).sum((0, 1))
    return layers.end(z.t()).reshape(operands.x.shape), ladj.reshape(operands.x.shape[:-1])


@torch.no_grad()
def backward(operands: Operands, g_y: Tensor, g_ladj: Tensor, spec: ConvFlowSpec) -> list[Tensor]:
    """Gradients with respect to the operands of :func:`evaluate`.

    Args:
        operands: the same.
        g_y: of the output.
        g_ladj: of the log-determinant.
        spec: the stack's shape.
    """
    d, layers = spec.input_dim, _Layers(operands, spec)
    at, gl = layers.at, g_ladj.reshape(-1)
    z = operands.x.reshape(-1, d).t().contiguous()
    tape = []
    matrices, biases, us, gains = (t.unbind() for t in (layers.matrix, layers.bias, layers.u, layers.gain))
    for matrix, b, u in zip(matrices, biases, us, strict=True):
        a = torch.addmm(b, matrix, z)
        h, slope = spec.h.evaluate(a)
        tape.append((z, a, h, slope))
        z = torch.addcmul(z, u, h)
    g = layers.end(g_y.reshape(-1, d)).t().contiguous()
    products = torch.empty_like(layers.matrix)
    g_u, g_gain, g_bias = (layers.gain.new_empty(layers.gain.shape[:2]) for _ in range(3))
    two_slopes = spec.h.two_slopes
    for layer in reversed(range(spec.num_layers)):
        z, a, h, slope = tape.pop()
        torch.linalg.vecdot(g, h, out=g_u[layer])
        ga = (us[layer] * slope).mul_(g)
        if two_slopes is not None:
            torch.mv(slope, gl, out=g_gain[layer])
        else:
            scaled = gl / (1 + gains[layer] * slope)
            torch.linalg.vecdot(scaled, slope, out=g_gain[layer])
            curvature = spec.h.curvature(a, h, slope)
            if curvature is not None:
                ga.addcmul_(scaled.mul_(gains[layer]), curvature)
        torch.mm(ga, z.t(), out=products[layer])
        torch.sum(ga, 1, out=g_bias[layer])
        g = torch.addmm(g, matrices[layer].t(), ga)
    if two_slopes is not None:
        g_gain = two_slopes.weighted_ratio(layers.gain.squeeze(-1), g_gain, gl.sum())
    g_weight = (products.flatten(1).gather(1, at.entries).view_as(at.live) * at.live).sum(-1)
    g_theta, g_w1 = free_gradients(
        operands.theta,
        operands.weight[:, :1],
        spec.h.slope_bound,
        g_u.gather(1, at.order),
        g_gain.gather(1, at.order),
    )
    g_weight[:, :1] += g_w1
    g_bias = g_bias.sum(-1, keepdim=True) if operands.bias.shape[-1] == 1 else g_bias.gather(1, at.order)
    return [g.t().reshape(operands.x.shape), g_theta, g_weight, g_bias]
