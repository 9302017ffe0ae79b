"""The stack as one operator of torch.library, for graphs: torch.compile, export, make_fx and tracing.

Eager calls don't come here, because dispatching an operator from Python costs as much as a small batch's arithmetic.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from vi_flows.kernels import analytic, native
from vi_flows.kernels.operands import Cotangents, Engine, Operands, constant_to_the_compiler
from vi_flows.kernels.reference import ConvFlowSpec

__all__ = ["conv_flow", "conv_flow_backward", "engine_for", "triton_serves"]


@lru_cache(maxsize=256)
def _spec(
    d: int, k: int, dilations: tuple[int, ...], reverts: tuple[bool, ...], activation: str, negative_slope: float
) -> ConvFlowSpec:
    return ConvFlowSpec(d, k, dilations, reverts, activation, negative_slope)


def engine_for(device: torch.device) -> Engine:
    """The fastest implementation for tensors of a device."""
    if device.type == "cuda":
        from vi_flows.kernels import triton_kernel

        return triton_kernel
    return analytic if isinstance(native.load(), str) else native


@constant_to_the_compiler
def triton_serves(spec: ConvFlowSpec, device: torch.device) -> bool:
    """Whether the Triton kernel is installed and runs on this GPU with the stack's activation; found out once."""
    return _triton_works(spec.activation, device)


@cache
def _triton_works(activation: str, device: torch.device) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    from vi_flows.kernels import triton_kernel

    return triton_kernel.works_on(device, activation)


def _arguments(
    x: Tensor, weight: Tensor, dilations: Sequence[int], reverts: Sequence[bool], activation: str, negative_slope: float
) -> tuple[ConvFlowSpec, Engine]:
    spec = _spec(x.shape[-1], weight.shape[-1], tuple(dilations), tuple(reverts), activation, negative_slope)
    return spec, engine_for(x.device)


@torch.library.custom_op("vi_flows::conv_flow", mutates_args=())
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
    """The map or its inverse, with the log-determinant, of operands as :func:`~.operands.normalize` leaves them."""
    spec, engine = _arguments(x, weight, dilations, reverts, activation, negative_slope)
    return engine.evaluate(Operands(x, theta, weight, bias), spec, inverse)


@torch.library.custom_op("vi_flows::conv_flow_backward", mutates_args=())
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
    grads = engine.backward(Operands(x, theta, weight, bias), Cotangents(g_y, g_ladj), spec, inverse)
    g_x, g_theta, g_weight, g_bias = (g for g in grads if g is not None)  # all four were asked for
    return g_x, g_theta, g_weight, g_bias


@conv_flow.register_fake
def _(x: Tensor, theta: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1])


@conv_flow_backward.register_fake
def _(x: Tensor, theta: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        theta.new_empty(theta.shape),
        weight.new_empty(weight.shape),
        bias.new_empty(bias.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.dilations, ctx.reverts, ctx.activation, ctx.negative_slope, ctx.inverse = inputs
    ctx.save_for_backward(output[0] if ctx.inverse else tensors[0], *tensors[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, g_y: Tensor | None, g_ladj: Tensor | None) -> tuple[Tensor | None, ...]:
    options = (ctx.dilations, ctx.reverts, ctx.activation, ctx.negative_slope, ctx.inverse)
    return (*conv_flow_backward(*ctx.saved_tensors, g_y, g_ladj, *options), *(None,) * 5)


conv_flow.register_autograd(_backward, setup_context=_save)


@conv_flow.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """The mapped dimension becomes the first row dimension of whatever has it, and the call stays one call."""
    tensors, options = list(arguments[:4]), arguments[4:]
    own = max(
        t.dim() - 2 - (dim is not None) for t, dim in zip(tensors[1:], in_dims[1:4], strict=True)
    )  # row dimensions of the parameters without the mapped one
    if any(dim is not None for dim in in_dims[1:4]):
        # rows must be the last dimensions of x before d, so the mapped one moves in front of the others of the batch
        x = (
            tensors[0].unsqueeze(0).expand(info.batch_size, *tensors[0].shape)
            if in_dims[0] is None
            else (tensors[0].movedim(in_dims[0], 0))
        )
        outer = x.shape[1 : x.dim() - 1 - own]
        rows = x.shape[x.dim() - 1 - own : -1]
        for n, dim in enumerate(in_dims[1:4], start=1):
            t = tensors[n]
            if dim is None and t.dim() == 2:
                continue
            t = t.unsqueeze(0) if dim is None else t.movedim(dim, 0)
            t = t.reshape(t.shape[0], *(1,) * (own + 3 - t.dim()), *t.shape[1:])
            tensors[n] = t.expand(info.batch_size, *rows, *t.shape[-2:])
        moved = x.movedim(0, len(outer))
        y, ladj = conv_flow(moved.contiguous(), *(t.contiguous() for t in tensors[1:]), *options)
        return (y, ladj), (len(outer), len(outer))
    y, ladj = conv_flow(tensors[0].movedim(in_dims[0], 0).contiguous(), *tensors[1:], *options)
    return (y, ladj), (0, 0)
