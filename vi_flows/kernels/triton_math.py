# ruff: noqa: ANN001, ANN201, ANN202
"""Elementwise functions of the Triton kernel: the scale of a layer, its activation, and the root that inverts it.

Numbers are written into expressions with tensors, so that they take the tensors' precision.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vi_flows.kernels.native import ACTIVATION_CODES

__all__ = ["activation", "scale_and_gain", "solve"]

# Activations by number, for the compiled code.
LEAKY_RELU = tl.constexpr(ACTIVATION_CODES["leaky_relu"])
TANH = tl.constexpr(ACTIVATION_CODES["tanh"])
SIGMOID = tl.constexpr(ACTIVATION_CODES["sigmoid"])
SOFTPLUS = tl.constexpr(ACTIVATION_CODES["softplus"])
ELU = tl.constexpr(ACTIVATION_CODES["elu"])


@triton.jit
def exp_ratio(t):
    """``(eᵗ − 1)/t`` by its series, exact to rounding for ``−1/4 ≤ t ≤ 0``."""
    rho = 1.0 + t / 13
    for m in tl.static_range(0, 11):
        rho = 1.0 + t / (12 - m) * rho
    return rho


@triton.jit
def scale_and_gain(theta, w1, bound, cut):
    """``u``, ``A``, ``du/dθ``, ``du/dw₁``; see effective_gain in reference.py."""
    x = bound * w1 * theta
    n = tl.minimum(tl.maximum(x, cut), 0.0 * x)
    t = tl.maximum(n, 0.0 * x - 0.25)
    rho = exp_ratio(t)
    rho1 = 12.0 + 0.0 * t
    fall = 1.0 + 0.0 * t
    for m in tl.static_range(0, 11):
        fall = fall * (12 - m + 1)
        rho1 = rho1 * t + (11 - m) * fall
    rho1 = rho1 / (fall * 2)
    far = x < -0.25
    e = tl.exp(n)
    safe = tl.where(far, x, 1.0)
    beyond = x < cut
    rho = tl.where(far, (e - 1.0) / safe, rho)
    elu1 = tl.where(x >= 0, 1.0, tl.where(beyond, 0.0, e))
    rho1 = tl.where(far, (tl.where(beyond, 0.0, e) - rho) / safe, rho1)
    u_w = tl.where(x >= 0, 0.0, bound * theta * theta * rho1)
    gain = tl.where(x >= 0, x, n * rho) / bound
    gain = tl.where(beyond, (e - 1.0) / bound, gain)
    return theta * rho, gain, elu1, u_w


@triton.jit
def expm1(x, e):
    """``eˣ − 1`` for ``x ≤ 0``, given ``eˣ``, without the cancellation near zero."""
    near = tl.maximum(x, 0.0 * x - 0.25)
    return tl.where(x < -0.25, e - 1.0, near * exp_ratio(near))


@triton.jit
def activation(a, slope, ACT: tl.constexpr):
    """``h``, ``h′`` and ``h″`` at ``a``."""
    if ACT == LEAKY_RELU:
        h1 = tl.where(a >= 0, 1.0, slope)
        h = a * h1
        h2 = 0.0 * h1
    elif ACT == TANH:
        x = -2.0 * tl.abs(a)
        e1 = expm1(x, tl.exp(x))
        e = -e1 / (2.0 + e1)
        h = tl.where(a < 0, -e, e)
        h1 = (1.0 - h) * (1.0 + h)
        h2 = -2.0 * h * h1
    elif ACT == SIGMOID:
        e = tl.exp(-tl.abs(a))
        r = 1.0 / (1.0 + e)
        h = tl.where(a < 0, e * r, r)
        h1 = e * r * r
        h2 = h1 * (1.0 - 2.0 * h)
    elif ACT == SOFTPLUS:
        e = tl.exp(-tl.abs(a))
        w = 1.0 + e
        r = 1.0 / w
        # log(1 + e) without the rounding of 1 + e; linear above 20, as PyTorch's
        log1p = tl.where(w == 1.0, e, tl.log(w) * e / tl.where(w == 1.0, 1.0, w - 1.0))
        h = tl.where(a > 20, a, tl.maximum(a, 0.0 * a) + log1p)
        h1 = tl.where(a < 0, e * r, r)
        h2 = e * r * r
    else:
        tl.static_assert(ACT == ELU, "an activation of a code that this kernel doesn't know")
        x = tl.minimum(a, 0.0 * a)
        e = tl.exp(x)
        h = tl.where(a >= 0, a, expm1(x, e))
        h1 = tl.where(a >= 0, 1.0, e)
        h2 = tl.where(a >= 0, 0.0, e)
    return h, h1, h2


@triton.jit
def solve(gain, v, slope, bound, eps, ACT: tl.constexpr):
    """The root ``t`` of ``t + A h(t) = v``: in closed form, or by Newton's method within a shrinking bracket."""
    if ACT == LEAKY_RELU:
        t = v / (1.0 + gain * tl.where(v >= 0, 1.0, slope))
    else:
        # the left side's derivative lies between 1 and 1 + A sup h′, which brackets the root from v on
        h, h1, _h2 = activation(v, slope, ACT)
        end = v - gain * h / tl.minimum(1.0 + 0.0 * v, 1.0 + gain * bound)
        low = tl.minimum(v, end)
        high = tl.maximum(v, end)
        t = tl.minimum(tl.maximum(v - gain * h / (1.0 + gain * h1), low), high)
        moved = high - low
        step = 0
        moving = 1
        while (moving > 0) & (step < 200):
            h, h1, _h2 = activation(t, slope, ACT)
            residual = t + gain * h - v
            low = tl.where(residual <= 0, t, low)
            high = tl.where(residual >= 0, t, high)
            newton = t - residual / (1.0 + gain * h1)
            # at steep gains Newton's steps can go to and fro for ever: after some rounds they must halve at least
            halves = (step < 8) | (2.0 * tl.abs(newton - t) <= moved)
            then = tl.where((newton > low) & (newton < high) & halves, newton, 0.5 * (low + high))
            then = tl.where(residual == 0, t, then)
            moved = tl.abs(then - t)
            tolerance = eps * tl.abs(then)
            moves = (moved > tolerance) & (high - low > tolerance)
            moving = tl.max(tl.max(moves.to(tl.int32), 1), 0)
            t = then
            step += 1
        t = tl.where(v == v, t, v)  # the comparisons above would hide a NaN
    return t
