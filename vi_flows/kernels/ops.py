"""The stack as one operator of torch.library, for graphs: torch.compile, export, make_fx and tracing.

Eager calls don't come here, because dispatching an operator from Python costs as much as a small batch's arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vi_flows.kernels import analytic, native
from vi_flows.kernels.operands import Operands
from vi_flows.kernels.reference import ConvFlowSpec

__all__ = ["conv_flow", "conv_flow_backward"]


@lru_cache(maxsize=256)
def _spec(
    d: int, k: int, dilations: tuple[int, ...], reverts: tuple[bool, ...], activation: str, negative_slope: float
) -> ConvFlowSpec:
    return ConvFlowSpec(d, k, dilations, reverts, activation, negative_slope)


def _arguments(
    x: Tensor, weight: Tensor, dilations: Sequence[int], reverts: Sequence[bool], activation: str, negative_slope: float
) -> tuple[ConvFlowSpec, ModuleType]:
    spec = _spec(x.shape[-1], weight.shape[-1], tuple(dilations), tuple(reverts), activation, negative_slope)
    return spec, analytic if isinstance(native.load(), str) else native


@torch.library.custom_op("vi_flows::conv_flow", mutates_args=(), device_types="cpu")
def conv_flow(
    x: Tensor,
    theta: Tensor,
    weight: Tensor,
    bias: Tensor,
    dilations: Sequence[int],
    reverts: Sequence[bool],
    activation: str,
    negative_slope: float,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """The map or its inverse, with the log-determinant, of operands as :func:`~.operands.normalise` leaves them."""
    spec, engine = _arguments(x, weight, dilations, reverts, activation, negative_slope)
    return engine.evaluate(Operands(x, theta, weight, bias), spec, inverse)


@torch.library.custom_op("vi_flows::conv_flow_backward", mutates_args=(), device_types="cpu")
def conv_flow_backward(
    x: Tensor,
    theta: Tensor,
    weight: Tensor,
    bias: Tensor,
    g_y: Tensor | None,
    g_ladj: Tensor | None,
    dilations: Sequence[int],
    reverts: Sequence[bool],
    activation: str,
    negative_slope: float,
    inverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to the first four; ``x`` is the forward map's input in both directions."""
    spec, engine = _arguments(x, weight, dilations, reverts, activation, negative_slope)
    grads = engine.backward(Operands(x, theta, weight, bias), g_y, g_ladj, (True,) * 4, spec, inverse)
    return grads[0], grads[1], grads[2], grads[3]


@conv_flow.register_fake
def _(x: Tensor, theta: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1])


@conv_flow_backward.register_fake
def _(x: Tensor, theta: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(t.new_empty(t.shape) for t in (x, theta, weight, bias))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.dilations, ctx.reverts, ctx.activation, ctx.negative_slope, ctx.inverse = inputs
    ctx.save_for_backward(output[0] if ctx.inverse else tensors[0], *tensors[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, g_y: Tensor | None, g_ladj: Tensor | None) -> tuple[Tensor | None, ...]:
    options = (ctx.dilations, ctx.reverts, ctx.activation, ctx.negative_slope, ctx.inverse)
    return (*conv_flow_backward(*ctx.saved_tensors, g_y, g_ladj, *options), *(None,) * 5)


conv_flow.register_autograd(_backward, setup_context=_save)
