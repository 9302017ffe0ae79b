# ruff: noqa: ANN001, ANN202, E741
"""The ConvFlow stack on NVIDIA GPUs: a whole stack, with its gradients, is one Triton kernel over blocks of rows.

A block of rows stays in registers for all layers; taps are shifts along its dimensions, and Reverts only change the
direction in which a layer counts them. This module needs `triton` and is imported where a CUDA tensor asks for it.
"""

from __future__ import annotations

import math
import warnings
from functools import cache, lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from vi_flows.kernels.native import ACTIVATION_CODES
from vi_flows.kernels.operands import Cotangents, Operands
from vi_flows.kernels.reference import MIN_LOG_SLOPE, ConvFlowSpec, conv_flow_forward
from vi_flows.kernels.triton_math import activation, scale_and_gain, solve

__all__ = ["backward", "evaluate", "works_on"]

ROWS = 4  # rows a program: small batches should still fill the GPU


# Functions below take: `cols`, positions in memory; `i`, the layer's own order of them (reversed after a Revert);
# `sign`, ±1 between the two; `prow`, the row of the parameters; steps between parameters' rows (0 where shared).


@triton.jit
def _shifted(z, cols, i, offset, sign, d, D: tl.constexpr):
    """``z`` at ``i + offset``, zero outside."""
    there = (i + offset >= 0) & (i + offset < d) & (cols < d)
    index = tl.where(there, cols + sign * offset, 0)
    moved = tl.gather(z, tl.broadcast_to(index[None, :], z.shape), 1)
    return tl.where(there[None, :], moved, 0.0)


@triton.jit
def _layer(theta, weight, bias, constants, prow, i, cols, l, L, d,
           theta_row, weight_row, bias_row, bias_dims, K: tl.constexpr):  # fmt: skip
    """The parameters of one layer, and the pointer to its taps."""
    taps = weight + prow * weight_row + l * K
    w1 = tl.load(taps)[:, None]
    inside = (cols < d)[None, :]
    th = tl.load(theta + prow[:, None] * theta_row + l * d + i[None, :], mask=inside, other=0.0)
    u, gain, u_theta, u_w = scale_and_gain(th, w1, tl.load(constants + 1), tl.load(constants + 2))
    place = tl.where(bias_dims > 1, i, 0)
    b = tl.load(bias + prow[:, None] * bias_row + l * bias_dims + place[None, :], mask=inside, other=0.0)
    return taps, w1, u, gain, u_theta, u_w, b


@triton.jit
def _convolve(z, b, w1, taps, cols, i, sign, dilation, d, D: tl.constexpr, K: tl.constexpr):
    a = b + w1 * z
    for t in tl.static_range(1, K):
        a += tl.load(taps + t)[:, None] * _shifted(z, cols, i, t * dilation, sign, d, D)
    return a


@triton.jit
def _evaluate(x, theta, weight, bias, constants, dilations, reverts, y, ladj,
              N, rows, d, L, theta_row, weight_row, bias_row, bias_dims, end,
              INVERSE: tl.constexpr, ACT: tl.constexpr,
              K: tl.constexpr, D: tl.constexpr, R: tl.constexpr):  # fmt: skip
    rid = tl.program_id(0) * R + tl.arange(0, R)
    prow = rid % rows
    cols = tl.arange(0, D)
    inside = (rid < N)[:, None] & (cols < d)[None, :]
    slope = tl.load(constants)
    bound = tl.load(constants + 1)
    eps = tl.load(constants + 3)
    flip = end if INVERSE else 0
    place = tl.where(flip == 1, d - 1 - cols, cols)
    z = tl.load(x + rid[:, None] * d + place[None, :], mask=inside, other=0.0)
    total = tl.sum(z * 0.0, 1)
    for n in range(L):
        l = L - 1 - n if INVERSE else n
        dilation = tl.load(dilations + l)
        if INVERSE:
            flip = flip ^ tl.load(reverts + l)
        sign = 1 - 2 * flip
        i = tl.where(flip == 1, d - 1 - cols, cols)
        taps, w1, u, gain, _t, _w, b = _layer(
            theta, weight, bias, constants, prow, i, cols, l, L, d, theta_row, weight_row, bias_row, bias_dims, K
        )
        if INVERSE:
            # blocks of `dilation` dimensions don't meet each other: the last block first
            steps = (d + dilation - 1) // dilation
            for step in range(steps):
                high = d - step * dilation
                now = ((i < high) & (i >= high - dilation))[None, :] & inside
                v = _convolve(z, b, w1, taps, cols, i, sign, dilation, d, D, K)
                # elsewhere the root is 0 at once
                t = solve(tl.where(now, gain, 0.0), tl.where(now, v, 0.0), slope, bound, eps, ACT)
                h, h1, _h2 = activation(t, slope, ACT)
                total -= tl.sum(tl.where(now, tl.log(tl.where(now, 1.0 + gain * h1, 1.0)), 0.0), 1)
                z = tl.where(now, z - u * h, z)
        else:
            a = _convolve(z, b, w1, taps, cols, i, sign, dilation, d, D, K)
            h, h1, _h2 = activation(a, slope, ACT)
            total += tl.sum(tl.where(inside, tl.log(tl.where(inside, 1.0 + gain * h1, 1.0)), 0.0), 1)
            z = tl.where(inside, z + u * h, 0.0)
            flip = flip ^ tl.load(reverts + l)
    place = tl.where(flip == 1, d - 1 - cols, cols)
    tl.store(y + rid[:, None] * d + place[None, :], z, mask=inside)
    tl.store(ladj + rid, total, mask=rid < N)


@triton.jit
def _give(to, value, rid, N, per_row, where, inside, R: tl.constexpr):
    """A parameter's gradient ``(R, D)``: each row's own, or the sum of this program's rows."""
    if per_row > 0:
        tl.store(to + rid[:, None] * per_row + where[None, :], value, mask=inside)
    else:
        total = tl.sum(tl.where(inside, value, 0.0), 0)
        tl.store(to + tl.program_id(0) * (-per_row) + where, total, mask=tl.sum(inside.to(tl.int32), 0) > 0)


@triton.jit
def _backward(x, theta, weight, bias, constants, dilations, reverts, g_y, g_ladj, tape,
              g_x, g_theta, g_weight, g_bias,
              N, rows, d, L, theta_row, weight_row, bias_row, bias_dims, end, to_theta, to_weight, to_bias,
              INVERSE: tl.constexpr, ACT: tl.constexpr,
              K: tl.constexpr, D: tl.constexpr, R: tl.constexpr):  # fmt: skip
    rid = tl.program_id(0) * R + tl.arange(0, R)
    prow = rid % rows
    cols = tl.arange(0, D)
    live = rid < N
    inside = live[:, None] & (cols < d)[None, :]
    slope = tl.load(constants)
    here = rid[:, None] * d + cols[None, :]
    z = tl.load(x + here, mask=inside, other=0.0)
    gl = tl.load(g_ladj + rid, mask=live, other=0.0)[:, None]
    flip = 0 * end
    if not INVERSE:
        for l in range(L):
            tl.store(tape + l * N * d + here, z, mask=inside)
            dilation = tl.load(dilations + l)
            i = tl.where(flip == 1, d - 1 - cols, cols)
            taps, w1, u, gain, u_theta, u_w, b = _layer(
                theta, weight, bias, constants, prow, i, cols, l, L, d, theta_row, weight_row, bias_row, bias_dims, K
            )
            a = _convolve(z, b, w1, taps, cols, i, 1 - 2 * flip, dilation, d, D, K)
            h, h1, h2 = activation(a, slope, ACT)
            z = tl.where(inside, z + u * h, 0.0)
            flip = flip ^ tl.load(reverts + l)
        tl.debug_barrier()  # whoever reads the tape may not be who wrote it
    place = tl.where(flip == 1, d - 1 - cols, cols)
    g = tl.load(g_y + rid[:, None] * d + place[None, :], mask=inside, other=0.0)
    for n in range(L):
        l = n if INVERSE else L - 1 - n
        dilation = tl.load(dilations + l)
        if not INVERSE:
            flip = flip ^ tl.load(reverts + l)
            z = tl.load(tape + l * N * d + here, mask=inside, other=0.0)
        sign = 1 - 2 * flip
        i = tl.where(flip == 1, d - 1 - cols, cols)
        taps, w1, u, gain, u_theta, u_w, b = _layer(
            theta, weight, bias, constants, prow, i, cols, l, L, d, theta_row, weight_row, bias_row, bias_dims, K
        )
        a = _convolve(z, b, w1, taps, cols, i, sign, dilation, d, D, K)
        h, h1, h2 = activation(a, slope, ACT)
        inverse = 1.0 / tl.where(inside, 1.0 + gain * h1, 1.0)
        if INVERSE:
            # solve with the transposed Jacobian, first dimensions first; g becomes the gradient of the output
            q = -gl * inverse * h1
            curved = tl.where(inside, -gl * inverse * gain * h2, 0.0)
            ga = z * 0.0
            steps = (d + dilation - 1) // dilation
            for step in range(steps):
                now = ((i >= step * dilation) & (i < (step + 1) * dilation))[None, :] & inside
                total = g + w1 * curved
                for t in tl.static_range(1, K):
                    total += tl.load(taps + t)[:, None] * _shifted(ga, cols, i, -t * dilation, sign, d, D)
                g = tl.where(now, total * inverse, g)
                ga = tl.where(now, curved - u * h1 * g, ga)
            du = q * w1 - g * h
        else:
            q = gl * inverse * h1
            ga = tl.where(inside, g * u * h1 + gl * inverse * gain * h2, 0.0)
            du = g * h + q * w1
            g += w1 * ga
            for t in tl.static_range(1, K):
                g += tl.load(taps + t)[:, None] * _shifted(ga, cols, i, -t * dilation, sign, d, D)
        _give(g_theta + l * d, du * u_theta, rid, N, to_theta, i, inside, R)
        if bias_dims > 1:
            _give(g_bias + l * d, ga, rid, N, to_bias, i, inside, R)
        else:
            sums = tl.sum(tl.where(inside, ga, 0.0), 1)[:, None]
            _give(g_bias + l, sums, rid, N, to_bias, tl.arange(0, 1), live[:, None], R)
        first = tl.where(inside, ga * z + du * u_w + q * u, 0.0)
        _give(g_weight + l * K, tl.sum(first, 1)[:, None], rid, N, to_weight, tl.arange(0, 1), live[:, None], R)
        for t in tl.static_range(1, K):
            product = tl.where(inside, ga * _shifted(z, cols, i, t * dilation, sign, d, D), 0.0)
            sums = tl.sum(product, 1)[:, None]
            _give(g_weight + l * K + t, sums, rid, N, to_weight, tl.arange(0, 1), live[:, None], R)
        if INVERSE:
            z = tl.where(inside, z + u * h, 0.0)
            flip = flip ^ tl.load(reverts + l)
    place = tl.where(flip == 1, d - 1 - cols, cols)
    tl.store(g_x + rid[:, None] * d + place[None, :], g, mask=inside)


@lru_cache(maxsize=256)
def _tables(spec: ConvFlowSpec, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Scalars in the data's own type (Python numbers would become float32), dilations and reverts on the device."""
    numbers = [spec.negative_slope, spec.h.slope_bound, MIN_LOG_SLOPE, torch.finfo(dtype).eps]
    constants = torch.tensor(numbers, dtype=dtype, device=device)
    dilations = [min(dilation, spec.input_dim) for dilation in spec.dilations]
    cut, flags = (torch.tensor(list(v), dtype=torch.int32, device=device) for v in (dilations, spec.reverts))
    return constants, cut, flags


def _arguments(operands: Operands, spec: ConvFlowSpec) -> tuple[list[Tensor], list[int], dict[str, int]]:
    x, theta, weight, bias = operands
    d, points = spec.input_dim, operands.x.shape[:-1].numel()
    own = next((p for p in operands[1:] if p.dim() > 2), None)
    rows = points if own is None else own.shape[:-2].numel()
    steps = [0 if p.dim() == 2 else p.shape[-2] * p.shape[-1] for p in (theta, weight, bias)]
    sizes = [points, max(rows, 1), d, spec.num_layers, *steps, bias.shape[-1], sum(spec.reverts) % 2]
    meta = {"K": spec.kernel_size, "D": max(triton.next_power_of_2(d), 2), "R": ROWS}
    meta["ACT"] = ACTIVATION_CODES[spec.activation]
    return [x, theta, weight, bias, *_tables(spec, x.dtype, x.device)], sizes, meta


def evaluate(operands: Operands, spec: ConvFlowSpec, inverse: bool) -> tuple[Tensor, Tensor]:
    """See :meth:`~vi_flows.kernels.operands.Engine.evaluate`; float32 or float64 on one GPU."""
    operands = operands.contiguous()
    y, ladj = torch.empty_like(operands.x), operands.x.new_empty(operands.x.shape[:-1])
    tensors, sizes, meta = _arguments(operands, spec)
    if sizes[0]:
        _evaluate[(triton.cdiv(sizes[0], ROWS),)](*tensors, y, ladj, *sizes, INVERSE=inverse, **meta)
    return y, ladj


def backward(operands: Operands, cotangents: Cotangents, spec: ConvFlowSpec, inverse: bool) -> list[Tensor | None]:
    """See :meth:`~vi_flows.kernels.operands.Engine.backward`."""
    operands = operands.contiguous()
    x = operands.x
    tensors, sizes, meta = _arguments(operands, spec)
    points, rows = sizes[0], sizes[1]
    if points == 0:
        return cotangents.wanted(map(torch.zeros_like, operands))
    programs = triton.cdiv(points, ROWS)
    # each point's own gradients, or each program's sums: what is left to add up, no program waits for another
    parts = [x.new_empty(points if p.dim() > 2 else programs, *p.shape[-2:]) for p in operands[1:]]
    steps = [(1 if p.dim() > 2 else -1) * p.shape[-2] * p.shape[-1] for p in operands[1:]]
    tape = x.new_empty(1 if inverse else spec.num_layers * x.numel())
    g_y, g_ladj = (g.contiguous() for g in cotangents.filled(x))
    g_x = torch.empty_like(x)
    _backward[(programs,)](*tensors, g_y, g_ladj, tape, g_x, *parts, *sizes, *steps, INVERSE=inverse, **meta)
    sums = [
        part.reshape(points // rows, rows, *part.shape[1:]).sum(0) if p.dim() > 2 else part.sum(0)
        for part, p in zip(parts, operands[1:], strict=True)
    ]
    return cotangents.wanted([g_x, *(s.reshape(p.shape) for s, p in zip(sums, operands[1:], strict=True))])


@cache
def works_on(device: torch.device, activation: str = "leaky_relu") -> bool:
    """Whether the kernel compiles for a device and agrees with the reference there; tried once, with a warning if not.

    Args:
        device: a GPU.
        activation: of the stacks that are asked for; each is compiled by itself.
    """
    spec = ConvFlowSpec(5, 3, (1, 2), (False, True), activation)
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 5), (2, 5), (2, 3), (2, 1))
    inputs = Operands(*(torch.randn(*shape, generator=generator).to(device).requires_grad_() for shape in shapes))
    with torch.enable_grad():
        expected = conv_flow_forward(inputs.x, inputs.theta, inputs.weight, inputs.bias, spec)
    cotangents = [torch.ones_like(t) for t in expected]
    gradients = torch.autograd.grad(expected, inputs, cotangents)
    try:
        operands = Operands(*(t.detach() for t in inputs))
        found = evaluate(operands, spec, False)
        found_gradients = backward(operands, Cotangents(cotangents[0], cotangents[1]), spec, False)
        pairs = zip([*found, *found_gradients], [*expected, *gradients], strict=True)
        worst = max((math.inf if f is None else (f - e).abs().max().item()) for f, e in pairs)
    except Exception as error:  # a compiler's errors have no common base
        warnings.warn(f"the Triton kernel does not run on {device}, plain PyTorch is used: {error}", stacklevel=2)
        return False
    if worst > 1e-3:
        warnings.warn(f"the Triton kernel is off by {worst:.1e} on {device}, plain PyTorch is used", stacklevel=2)
    return worst <= 1e-3
