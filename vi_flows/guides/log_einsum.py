"""Sums of products of probabilities held as logarithms: a backend of opt_einsum, by its function names.

Pyro's own (``pyro.ops.einsum.torch_log``) takes the largest entry out of each factor before it multiplies, so that
factors which favour different values underflow to ``log 0`` where they disagree by more than 100 nats, and it can't be
used within :func:`torch.func.vmap`. Here the logarithms are added first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["einsum", "tensordot", "transpose"]


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """``log Σ Π exp(operands)`` over the symbols that are missing from the output; the gradient at ``log 0`` is zero.

    Args:
        equation: as in :func:`torch.einsum`, each symbol once an operand, with ``->``.
        operands: logarithms.
    """
    inputs, output = equation.split("->")
    summed = sorted(set(inputs) - set(output) - {","})
    order = [*output, *summed]
    aligned = [_aligned(x, dims, order) for dims, x in zip(inputs.split(","), operands, strict=True)]
    total = sum(aligned[1:], aligned[0])
    if not summed:
        return total.clone() if len(operands) == 1 else total
    dims = list(range(len(output), len(order)))
    peak = total.detach().amax(dims, keepdim=True)
    peak = torch.where(peak.isfinite(), peak, 0.0)
    mass = (total - peak).exp().sum(dims)
    positive = mass != 0
    log_mass = torch.where(positive, torch.where(positive, mass, 1.0).log(), -torch.inf)
    return log_mass + peak.reshape(mass.shape)


def tensordot(x: Tensor, y: Tensor, axes: tuple[Sequence[int], Sequence[int]]) -> Tensor:
    """``log Σ exp(x + y)`` over pairs of dimensions, as in :func:`torch.tensordot`.

    Args:
        x: logarithms.
        y: likewise.
        axes: those of ``x``, and those of ``y`` that go with them.
    """
    symbols = [chr(ord("a") + i) for i in range(x.dim() + y.dim() - len(axes[0]))]
    left = symbols[: x.dim()]
    rest = iter(symbols[x.dim() :])
    pairs = dict(zip(axes[1], axes[0], strict=True))
    right = [left[pairs[i]] if i in pairs else next(rest) for i in range(y.dim())]
    output = [s for i, s in enumerate(left) if i not in axes[0]] + [s for i, s in enumerate(right) if i not in pairs]
    return einsum(f"{''.join(left)},{''.join(right)}->{''.join(output)}", x, y)


def transpose(operand: Tensor, axes: Sequence[int]) -> Tensor:
    """The dimensions in another order."""
    return operand.permute(*axes)


def _aligned(operand: Tensor, dims: str, order: list[str]) -> Tensor:
    have = [symbol for symbol in order if symbol in dims]
    operand = operand.permute([dims.index(symbol) for symbol in have])
    sizes = iter(operand.shape)
    return operand.reshape([next(sizes) if symbol in dims else 1 for symbol in order])
