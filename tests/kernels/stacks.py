"""Random ConvFlow stacks for the kernels' tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vi_flows.kernels import ConvFlowSpec, dense, native, reference, use_kernel
from vi_flows.kernels.operands import Operands

HAVE_C = not isinstance(native.load(), str)
needs_c = pytest.mark.skipif(not HAVE_C, reason="the compiled kernel was not built")
ENGINES = [pytest.param("c", marks=needs_c), "torch"]
ALL_ENGINES = [*ENGINES, "taps"]


@contextmanager
def use_engine(name: str) -> Iterator[None]:
    """A kernel, or as ``taps`` the fallback as it is for large problems."""
    with pytest.MonkeyPatch.context() as patch, use_kernel("torch" if name == "taps" else name):
        if name == "taps":
            patch.setattr(dense, "MAX_WORK", 0)
        yield


def make_spec(
    d: int, k: int, dilations: tuple[int, ...], blocks: int = 2, activation: str = "leaky_relu"
) -> ConvFlowSpec:
    flips = (False,) * (len(dilations) - 1) + (True,)
    return ConvFlowSpec(d, k, dilations * blocks, flips * blocks, activation)


def draw(
    spec: ConvFlowSpec,
    batch: tuple[int, ...],
    per_row: tuple[bool, bool, bool] = (False, False, False),
    wide_bias: bool = False,
    dtype: torch.dtype = torch.float64,
    scale: float = 0.5,
    own_rows: int = 1,
    seed: int = 0,
) -> Operands:
    """Inputs of ``batch`` and parameters; those marked have one set a row (of the last ``own_rows`` dimensions)."""
    generator = torch.Generator().manual_seed(seed)
    layers, d, k = spec.num_layers, spec.input_dim, spec.kernel_size
    rows = batch[len(batch) - own_rows :]

    def normal(size: tuple[int, ...], std: float, own: bool) -> Tensor:
        return std * torch.randn(*(rows if own else ()), *size, generator=generator, dtype=dtype)

    theta, weight = normal((layers, d), scale, per_row[0]), normal((layers, k), scale, per_row[1])
    bias = normal((layers, d if wide_bias else 1), scale, per_row[2])
    return Operands(torch.randn(*batch, d, generator=generator, dtype=dtype), theta, weight, bias)


def to(operands: Operands, dtype: torch.dtype) -> Operands:
    return Operands(*(t.detach().to(dtype) for t in operands))


def outputs_and_gradients(function, operands: Operands, spec: ConvFlowSpec, seed: int = 1) -> list[Tensor]:
    """The two outputs and the four gradients for random cotangents."""
    leaves = [t.detach().requires_grad_() for t in operands]
    y, ladj = function(*leaves, spec)
    generator = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in (y, ladj)]
    return [y.detach(), ladj.detach(), *torch.autograd.grad((y, ladj), leaves, cotangents)]


def distance_to_kink(operands: Operands, spec: ConvFlowSpec) -> Tensor:
    """Of each row: the smallest |a| in all layers, where leaky ReLU's slope jumps."""
    z, theta, weight, bias = operands
    nearest = torch.full(z.shape[:-1], torch.inf, dtype=z.dtype)
    for layer, dilation in enumerate(spec.dilations):
        w, a = weight[..., layer, :], bias[..., layer, :]
        for tap in range(spec.kernel_size):
            offset = min(tap * dilation, spec.input_dim)
            a = a + w[..., tap : tap + 1] * F.pad(z[..., offset:], (0, offset))
        nearest = torch.minimum(nearest, a.abs().amin(-1))
        single = ConvFlowSpec(
            spec.input_dim, spec.kernel_size, (dilation,), (spec.reverts[layer],), spec.activation, spec.negative_slope
        )
        z, _ = reference.conv_flow_forward(
            z, *(p[..., layer : layer + 1, :] for p in (theta, weight, bias)), single
        )  # fmt: skip
    return nearest


def worst_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest error relative to each tensor's largest entry (at least 1)."""
    errors = [
        ((f.double() - e.double()).abs().max() / max(1.0, e.abs().max().item())).item()
        for f, e in zip(found, expected, strict=True)
        if e.numel()
    ]
    return max(errors, default=0.0)
