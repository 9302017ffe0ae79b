"""Derivatives of a root that was found by iteration, from the equation that it solves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vi_flows.recording import is_transformed

__all__ = ["differentiable_root"]


def differentiable_root(root: Tensor, residual_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    r"""The root ``s`` of ``F(s, θ) = 0`` as a function of all tensors ``θ`` that ``F`` reads; its numbers stay.

    One step of Newton's method from a constant ``s`` has the root's first derivatives and not its second ones, as the
    slope in it is that at the constant: two steps have all derivatives to the third order (each doubles the number of
    right terms, as near any root). The residual of a root is its rounding, and only its derivatives enter.

    How the root was found must not be recorded: clamps and brackets have derivatives of their own.

    Args:
        root: ``s``, of any shape.
        residual_and_slope: ``F`` and ``∂F/∂s > 0`` at a point of that shape.
    """
    root = root.detach()
    if not (torch.is_grad_enabled() or is_transformed()):
        return root
    for _ in range(2):
        value, slope = residual_and_slope(root)
        root = root - (value - value.detach()) / slope
    return root
