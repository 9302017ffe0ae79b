"""The shapes in which kernels take a ConvFlow stack: parameters shared by all rows, or one set for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vi_flows.kernels.reference import ConvFlowSpec

__all__ = ["Operands", "normalise"]


class Operands(NamedTuple):
    """What a kernel works on.

    Attributes:
        x: ``outer_shape + row_shape + (d,)``.
        theta: ``(L, d)`` where shared, ``row_shape + (L, d)`` where each row has its own; so with the next two.
        weight: ``(L, k)``.
        bias: ``(L, 1)`` or ``(L, d)``.
    """

    x: Tensor
    theta: Tensor
    weight: Tensor
    bias: Tensor

    def contiguous(self) -> Operands:
        """The same with rows laid out one after the other."""
        return Operands(self.x.contiguous(), self.theta.contiguous(), self.weight.contiguous(), self.bias.contiguous())


def normalise(z: Tensor, theta: Tensor, weight: Tensor, bias: Tensor, spec: ConvFlowSpec) -> Operands:
    """Broadcast leading dimensions to the shapes of :class:`Operands`; differentiable.

    Raises:
        ValueError: a shape does not fit the spec.
        RuntimeError: leading dimensions don't broadcast.
    """
    layers, d = spec.num_layers, spec.input_dim
    fits = (
        z.shape[-1:] == (d,)
        and theta.shape[-2:] == (layers, d)
        and weight.shape[-2:] == (layers, spec.kernel_size)
        and bias.shape[-2:] in ((layers, 1), (layers, d))
    )
    if not fits:
        raise ValueError(
            f"a stack of {layers} layers with {spec.kernel_size} taps on {d} dimensions takes inputs (…, {d}), theta "
            f"(…, {layers}, {d}), weight (…, {layers}, {spec.kernel_size}) and bias (…, {layers}, 1 or {d}); got "
            f"{tuple(z.shape)}, {tuple(theta.shape)}, {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if theta.dim() == weight.dim() == bias.dim() == 2:
        return Operands(z, theta, weight, bias)
    leads = [_stripped(p.shape[:-2]) for p in (theta, weight, bias)]
    batch = torch.broadcast_shapes(z.shape[:-1], theta.shape[:-2], weight.shape[:-2], bias.shape[:-2])
    rows = batch[len(batch) - max(map(len, leads)) :]
    parameters = [
        p.reshape(lead + p.shape[-2:]).expand((rows if lead else ()) + p.shape[-2:])
        for p, lead in zip((theta, weight, bias), leads, strict=True)
    ]
    return Operands(z.expand(batch + z.shape[-1:]), *parameters)


def _stripped(shape: Sequence[int]) -> tuple[int, ...]:
    """Without leading ones, along which nothing varies."""
    first = next((n for n, size in enumerate(shape) if size != 1), len(shape))
    return tuple(shape[first:])
