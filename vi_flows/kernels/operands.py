"""What every kernel takes and gives: parameters shared by all rows or one set for each row, and gradients of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from vi_flows.kernels.reference import ConvFlowSpec

__all__ = ["Cotangents", "Engine", "Operands", "constant_to_the_compiler", "normalize"]

Function = TypeVar("Function", bound=Callable)


def constant_to_the_compiler(function: Function) -> Function:
    """What ``torch.compiler.assume_constant_result`` does: the compiler calls the function once and keeps the result.

    Calling that one at import would bring in the whole compiler, which doubles the time of importing this package.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # Dynamo declares no such name
    return function


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


class Cotangents(NamedTuple):
    """What a backward pass starts from.

    Attributes:
        y: gradient with respect to the first output; ``None`` is zero.
        ladj: gradient with respect to the log-determinant; ``None`` is zero.
        needed: which of the four operands' gradients are wanted.
    """

    y: Tensor | None
    ladj: Tensor | None
    needed: tuple[bool, ...] = (True,) * 4

    def filled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two gradients, zeros where there is none.

        Args:
            x: of the operands.
        """
        zeros = torch.zeros_like(x) if self.y is None else self.y
        return zeros, x.new_zeros(x.shape[:-1]) if self.ladj is None else self.ladj

    def wanted(self, gradients: Iterable[Tensor]) -> list[Tensor | None]:
        """``None`` in place of those that nobody asked for."""
        return [g if need else None for g, need in zip(gradients, self.needed, strict=True)]


class Engine(Protocol):
    """An implementation of the stack: a module with these two functions, neither of which records a graph."""

    def evaluate(self, operands: Operands, spec: ConvFlowSpec, inverse: bool) -> tuple[Tensor, Tensor]:
        """The map or its inverse, and its log-determinant.

        Args:
            operands: floating point tensors of one dtype and device that the implementation serves.
            spec: the stack's shape.
            inverse: which direction.
        """

    def backward(
        self, operands: Operands, cotangents: Cotangents, spec: ConvFlowSpec, inverse: bool
    ) -> list[Tensor | None]:
        """Gradients with respect to the operands, in their shapes.

        Args:
            operands: ``x`` is the input of the *forward* map in both directions.
            cotangents: of the outputs.
            spec: the stack's shape.
            inverse: whether the outputs were those of the inverse.
        """


def normalize(z: Tensor, theta: Tensor, weight: Tensor, bias: Tensor, spec: ConvFlowSpec) -> Operands:
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
