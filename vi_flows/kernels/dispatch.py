"""Which implementation evaluates a ConvFlow stack: the compiled kernel, PyTorch with a written backward, the reference.

All compute the same function. The choice is made at each call, because a kernel serves plain tensors only: functorch's
transforms, forward-mode differentiation, other dtypes and other devices take the reference, and so does the second
derivative of what a kernel recorded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vi_flows.kernels import analytic, native, ops, reference
from vi_flows.kernels.operands import Cotangents, Engine, Operands, constant_to_the_compiler, normalize
from vi_flows.kernels.reference import ConvFlowSpec
from vi_flows.recording import is_recorded, is_transformed

__all__ = [
    "KERNELS",
    "active_kernel",
    "conv_flow_forward",
    "conv_flow_inverse",
    "instruction_set",
    "kernel_reason",
    "use_kernel",
]

KERNELS = ("c", "torch", "reference")
"""The implementations, fastest first."""

_VARIABLE = "VI_FLOWS_KERNEL"
_PLAIN = (Tensor, nn.Parameter)
_FLOATS = (torch.float32, torch.float64)
_chosen: str | None = None


@constant_to_the_compiler
def active_kernel() -> str:
    """Name of the kernel that plain tensors on the CPU get: by :func:`use_kernel`, ``VI_FLOWS_KERNEL``, or the fastest.

    CUDA tensors get the Triton kernel whatever it is, unless it is ``reference``.

    Raises:
        ValueError: ``VI_FLOWS_KERNEL`` names none.
        RuntimeError: it names one that isn't there.
    """
    global _chosen
    if _chosen is None:
        wanted = os.environ.get(_VARIABLE)
        _chosen = _check(wanted, _VARIABLE) if wanted else ("torch" if isinstance(native.load(), str) else "c")
    return _chosen


def kernel_reason() -> str:
    """Why :func:`active_kernel` is what it is, for people."""
    loaded = native.load()
    if os.environ.get(_VARIABLE):
        return f"{_VARIABLE}={os.environ[_VARIABLE]}"
    return loaded if isinstance(loaded, str) else f"{loaded.path.name} was built ({loaded.build})"


def instruction_set() -> str | None:
    """What the compiled kernel was built for and runs on here, ``None`` where there is no such kernel."""
    loaded = native.load()
    return None if isinstance(loaded, str) else loaded.isa


@contextmanager
def use_kernel(name: str) -> Iterator[None]:
    """Use one kernel within a ``with`` block, in every thread.

    Args:
        name: one of :data:`KERNELS`.

    Raises:
        ValueError: there is none of that name.
        RuntimeError: it is not available here.
    """
    global _chosen
    before, _chosen = _chosen, _check(name, "use_kernel")
    try:
        yield
    finally:
        _chosen = before


def conv_flow_forward(
    z: Tensor, theta: Tensor, weight: Tensor, bias: Tensor, spec: ConvFlowSpec
) -> tuple[Tensor, Tensor]:
    """All layers and Reverts of a stack, first to last.

    Args:
        z: ``(…, d)``.
        theta: ``(L, d)``, or ``(…, L, d)`` for parameters of each row; so with the next two. Leading dimensions
            broadcast against those of ``z``.
        weight: ``(L, k)``.
        bias: ``(L, 1)``, or ``(L, d)`` for one a dimension.
        spec: the stack's shape.

    Returns:
        The output ``(…, d)`` and the log-determinant ``(…)``, batch shapes broadcast.

    Raises:
        ValueError: a shape does not fit the spec.
    """
    return _apply(z, theta, weight, bias, spec, False)


def conv_flow_inverse(
    y: Tensor, theta: Tensor, weight: Tensor, bias: Tensor, spec: ConvFlowSpec
) -> tuple[Tensor, Tensor]:
    """Exact inverse of :func:`conv_flow_forward`: closed form for leaky ReLU, safeguarded Newton for the others.

    Args:
        y: ``(…, d)``.
        theta: see :func:`conv_flow_forward`; so with the rest.
        weight: the kernels.
        bias: the biases.
        spec: the stack's shape.

    Returns:
        The preimage ``(…, d)`` and the inverse's log-determinant ``(…)``.

    Raises:
        ValueError: a shape does not fit the spec.
    """
    return _apply(y, theta, weight, bias, spec, True)


def _apply(
    x: Tensor, theta: Tensor, weight: Tensor, bias: Tensor, spec: ConvFlowSpec, inverse: bool
) -> tuple[Tensor, Tensor]:
    operands = normalize(x, theta, weight, bias, spec)
    kernel = active_kernel()
    if kernel == "reference" or not _served(operands, spec):
        return (reference.conv_flow_inverse if inverse else reference.conv_flow_forward)(*operands, spec)
    if not _eager(operands):
        # one operator in the graph, whichever kernel runs it later
        return ops.conv_flow(
            *operands, spec.dilations, spec.reverts, spec.activation, spec.negative_slope, inverse
        )  # fmt: skip
    engine = analytic if kernel == "torch" and x.device.type == "cpu" else ops.engine_for(x.device)
    if torch.is_grad_enabled() and any(t.requires_grad for t in operands):
        return ConvFlowFunction.apply(*operands, spec, inverse, engine)
    return engine.evaluate(operands, spec, inverse)


class ConvFlowFunction(torch.autograd.Function):
    """A kernel in PyTorch's graph; its second derivative is the reference's."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        theta: Tensor,
        weight: Tensor,
        bias: Tensor,
        spec: ConvFlowSpec,
        inverse: bool,
        engine: Engine,
    ) -> tuple[Tensor, Tensor]:
        """Evaluate, and keep the inputs."""
        operands = Operands(x, theta, weight, bias)
        out, ladj = engine.evaluate(operands, spec, inverse)
        ctx.spec, ctx.inverse, ctx.engine = spec, inverse, engine
        ctx.save_for_backward(*operands, *((out,) if inverse else ()))
        ctx.set_materialize_grads(False)
        return out, ladj

    @staticmethod
    def backward(ctx: Any, g_out: Tensor | None, g_ladj: Tensor | None) -> tuple[Tensor | None, ...]:
        """The engine's gradients, or the reference's where a graph of them is wanted, or many of them at once."""
        operands, cotangents = Operands(*ctx.saved_tensors[:4]), Cotangents(g_out, g_ladj, ctx.needs_input_grad[:4])
        if (graph := torch.is_grad_enabled()) or is_transformed():
            with torch.enable_grad():
                grads = _reference_gradients(operands, cotangents, ctx.spec, ctx.inverse, graph)
        else:
            if ctx.inverse:
                operands = operands._replace(x=ctx.saved_tensors[4])
            grads = ctx.engine.backward(operands, cotangents, ctx.spec, ctx.inverse)
        return (*grads, None, None, None)


def _reference_gradients(
    operands: Operands, cotangents: Cotangents, spec: ConvFlowSpec, inverse: bool, create_graph: bool
) -> list[Tensor | None]:
    # Aliases, so that the derivative stops at this function's own inputs and still belongs to the outer graph.
    inputs = Operands(*(t.view_as(t) for t in operands))
    run = reference.conv_flow_inverse if inverse else reference.conv_flow_forward
    outputs = run(inputs.x, inputs.theta, inputs.weight, inputs.bias, spec)
    # A piecewise linear stack's log-determinant depends on none of its inputs where its parameters are frozen.
    pairs = [(o, g) for o, g in zip(outputs, cotangents[:2], strict=True) if g is not None and o.requires_grad]
    wanted = [t for t in cotangents.wanted(inputs) if t is not None]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=create_graph, materialize_grads=True
        )
        if pairs
        else [torch.zeros_like(t) for t in wanted]
    )
    return [next(found) if need else None for need in cotangents.needed]


def _served(operands: Operands, spec: ConvFlowSpec) -> bool:
    """Whether a kernel computes this; the reference does all else."""
    x, dtype, device = operands.x, operands.x.dtype, operands.x.device
    plain = (
        dtype in _FLOATS
        and spec.num_layers > 0
        and all(t.dtype is dtype and t.device == device for t in operands)
        and (device.type == "cpu" or (device.type == "cuda" and ops.triton_serves(spec, device)))
    )
    if torch.compiler.is_compiling():
        return plain
    if torch.jit.is_tracing():  # TorchScript knows no operator with a list of booleans
        return False
    return plain and not is_transformed() and not x.is_neg()


def _eager(operands: Operands) -> bool:
    """Whether the tensors hold numbers now, and nobody records the operators that touch them."""
    return not is_recorded() and all(type(t) in _PLAIN for t in operands)


def _check(name: str, source: str) -> str:
    if name not in KERNELS:
        raise ValueError(f"{source}: unknown kernel {name!r}; choose one of {', '.join(KERNELS)}")
    loaded = native.load()
    if name == "c" and isinstance(loaded, str):
        raise RuntimeError(f"{source}: the kernel 'c' is not available: {loaded}")
    return name
