"""The ConvFlow stack in PyTorch with its gradients written out: what runs where there is no compiled kernel.

Rows come last, so that a tap is a contiguous slice of the dimensions, added in place; autograd's graph of some thirty
nodes a layer is not built. Gradients recompute the forward pass, as the compiled kernel does.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vi_flows.kernels import dense
from vi_flows.kernels.operands import Cotangents, Operands
from vi_flows.kernels.reference import ConvFlowSpec, effective_gain, free_gradients

__all__ = ["backward", "evaluate"]

CHUNK = 2048  # rows a pass, so that a layer's tensors stay in cache


def _chunks(operands: Operands) -> tuple[Tensor, ...] | None:
    """Rows that share their parameters, in parts; ``None`` where one part is enough or rows have their own."""
    if any(p.dim() > 2 for p in operands[1:]) or operands.x.shape[:-1].numel() <= CHUNK:
        return None
    return operands.x.reshape(-1, operands.x.shape[-1]).split(CHUNK)


def evaluate(operands: Operands, spec: ConvFlowSpec, inverse: bool) -> tuple[Tensor, Tensor]:
    """See :meth:`~vi_flows.kernels.operands.Engine.evaluate`."""
    if not inverse and dense.serves(operands):
        return dense.evaluate(operands, spec)
    chunks = _chunks(operands)
    if chunks is not None:
        parts = [evaluate(operands._replace(x=x), spec, inverse) for x in chunks]
        y, ladj = (torch.cat(p) for p in zip(*parts, strict=True))
        return y.reshape(operands.x.shape), ladj.reshape(operands.x.shape[:-1])
    with torch.no_grad():
        run = _Run(operands, spec)
        z = run.rows_last(operands.x)
        ladj = z.new_zeros(z.shape[1:])
        layers = range(spec.num_layers)
        for layer in reversed(layers) if inverse else layers:
            if inverse:
                z = run.invert(layer, z.flip(0) if spec.reverts[layer] else z.clone(), ladj)
            else:
                a = run.convolve(layer, z)
                h, slope = spec.h.evaluate(a)
                run.add_ladj(layer, slope, ladj)
                z = torch.addcmul(z, run.u[layer], h)
                z = z.flip(0) if spec.reverts[layer] else z
        x = operands.x
        return z.movedim(0, -1).reshape(x.shape), ladj.reshape(x.shape[:-1])


def backward(operands: Operands, cotangents: Cotangents, spec: ConvFlowSpec, inverse: bool) -> list[Tensor | None]:
    """See :meth:`~vi_flows.kernels.operands.Engine.backward`."""
    x = operands.x
    g_y, g_ladj = cotangents.filled(x)
    if not inverse and dense.serves(operands):
        return cotangents.wanted(dense.backward(operands, g_y, g_ladj, spec))
    chunks = _chunks(operands)
    if chunks is not None:
        pieces = zip(chunks, g_y.reshape(-1, spec.input_dim).split(CHUNK), g_ladj.reshape(-1).split(CHUNK), strict=True)
        parts = [backward(operands._replace(x=x), Cotangents(gy, gl), spec, inverse) for x, gy, gl in pieces]
        g_xs, *sums = zip(*parts, strict=True)
        return cotangents.wanted([torch.cat(g_xs).reshape(x.shape), *(torch.stack(t).sum(0) for t in sums)])
    with torch.no_grad():
        run = _Run(operands, spec)
        z = run.rows_last(x)
        g, gl = run.rows_last(g_y).clone(), g_ladj.reshape(z.shape[1:])
        if inverse:
            for layer in range(spec.num_layers):
                a = run.convolve(layer, z)
                h, slope = spec.h.evaluate(a)
                g = run.inverse_gradients(layer, z, a, h, slope, g, gl)
                z = torch.addcmul(z, run.u[layer], h)
                if spec.reverts[layer]:
                    z, g = z.flip(0), g.flip(0)
        else:
            tape = []
            for layer in range(spec.num_layers):
                a = run.convolve(layer, z)
                tape.append((z, a))
                z = torch.addcmul(z, run.u[layer], spec.h.evaluate(a)[0])
                z = z.flip(0) if spec.reverts[layer] else z
            for layer in reversed(range(spec.num_layers)):
                g = g.flip(0) if spec.reverts[layer] else g
                run.forward_gradients(layer, *tape.pop(), g, gl)
        return cotangents.wanted([g.movedim(0, -1).reshape(x.shape), *run.parameter_gradients()])


class _Run:
    """The parameters of one call, laid out for tensors of shape ``(d, outer, rows)``, and their gradients' sums."""

    def __init__(self, operands: Operands, spec: ConvFlowSpec) -> None:
        self.spec, self.operands = spec, operands
        own = max(p.dim() for p in operands[1:]) - 2  # number of row dimensions
        row_shape = operands.x.shape[operands.x.dim() - 1 - own : -1]
        self.rows = row_shape.numel() if own else operands.x.shape[:-1].numel()
        self.theta, self.weight, self.bias = (self._lay_out(p) for p in operands[1:])
        self.u, self.gain = effective_gain(self.theta, self.weight[:, :1], spec.h.slope_bound)
        # Numbers instead of tensors where a tap is shared: `add_` with a factor is one pass.
        self.taps = self.weight.flatten(1).tolist() if operands.weight.dim() == 2 else None
        self.logs: tuple[Tensor, Tensor] | None = None
        self.two_slopes = spec.h.two_slopes if own == 0 else None
        if self.two_slopes is not None:
            c, e = self.two_slopes.linear_logs(self.gain)
            self.logs = c.sum((1, 2, 3)), e.flatten(1)
        self.d_u, self.d_gain = torch.zeros_like(self.u), torch.zeros_like(self.gain)
        self.d_weight, self.d_bias = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def rows_last(self, x: Tensor) -> Tensor:
        """``(…, d)`` as ``(d, outer, rows)``."""
        d = self.spec.input_dim
        outer = x.numel() // (self.rows * d) if x.numel() else 1
        return x.reshape(outer, self.rows, d).permute(2, 0, 1).contiguous()

    def _lay_out(self, parameter: Tensor) -> Tensor:
        """``(L, n)`` as ``(L, n, 1, 1)``; ``(…, L, n)`` as ``(L, n, 1, rows)``."""
        if parameter.dim() == 2:
            return parameter[..., None, None]
        layers, n = parameter.shape[-2:]
        return parameter.reshape(self.rows, layers, n).permute(1, 2, 0).unsqueeze(2).contiguous()

    def live(self, layer: int) -> Iterator[tuple[int, int]]:
        """Taps after the first that meet a dimension, with their offsets."""
        offsets = (tap * self.spec.dilations[layer] for tap in range(self.spec.kernel_size))
        return ((tap, offset) for tap, offset in enumerate(offsets) if 0 < offset < self.spec.input_dim)

    def add_tap(self, to: Tensor, layer: int, tap: int, value: Tensor) -> None:
        """``to += w_tap · value``."""
        if self.taps is None:
            to.addcmul_(self.weight[layer, tap], value)
        else:
            to.add_(value, alpha=self.taps[layer][tap])

    def convolve(self, layer: int, z: Tensor) -> Tensor:
        """``a = conv(z, w) + b``."""
        a = self.bias[layer] + self.weight[layer, 0] * z
        for tap, offset in self.live(layer):
            self.add_tap(a[:-offset], layer, tap, z[offset:])
        return a

    def add_ladj(self, layer: int, slope: Tensor, ladj: Tensor) -> None:
        """Add the layer's log-determinant."""
        if self.logs is not None:
            ladj += self.logs[0][layer] + (self.logs[1][layer] @ slope.flatten(1)).view_as(ladj)
        else:
            ladj += torch.log1p(self.gain[layer] * slope).sum(0)

    def invert(self, layer: int, z: Tensor, ladj: Tensor) -> Tensor:
        """Turn outputs into inputs in place: blocks of δ dimensions, which don't meet each other, from the last one."""
        d = self.spec.input_dim
        dilation = min(self.spec.dilations[layer], d)
        for end in range(d, 0, -dilation):
            at = slice(max(end - dilation, 0), end)
            v = self._part(self.bias[layer], at) + self.weight[layer, 0] * z[at]
            for tap, offset in self.live(layer):
                n = min(at.stop, d - offset) - at.start
                if n > 0:
                    self.add_tap(v[:n], layer, tap, z[at.start + offset : at.start + offset + n])
            gain = self._part(self.gain[layer], at)
            t = self.spec.h.solve(gain, v)
            h, slope = self.spec.h.evaluate(t)
            z[at] -= self._part(self.u[layer], at) * h
            ladj -= torch.log1p(gain * slope).sum(0)
        return z

    def forward_gradients(self, layer: int, z: Tensor, a: Tensor, g: Tensor, gl: Tensor) -> None:
        """Add to the parameters' sums; `g` turns in place from the output's gradient to the input's."""
        u, gain = self.u[layer], self.gain[layer]
        h, slope = self.spec.h.evaluate(a)
        ga = (g * u).mul_(slope)
        if self.two_slopes is not None:
            weighted = (slope.flatten(1) @ gl.flatten()).view_as(gain)
            self.d_gain[layer] = self.two_slopes.weighted_ratio(gain, weighted, gl.sum())
        else:
            scaled = gl / (1 + gain * slope)
            self.d_gain[layer] = self._dot(scaled, slope, gain)
            curvature = self.spec.h.curvature(a, h, slope)
            if curvature is not None:
                ga += scaled * gain * curvature
        self.d_u[layer] = self._dot(g, h, u)
        self._convolution_gradients(layer, ga, z)
        self.add_tap(g, layer, 0, ga)
        for tap, offset in self.live(layer):
            self.add_tap(g[offset:], layer, tap, ga[:-offset])

    def inverse_gradients(
        self, layer: int, z: Tensor, a: Tensor, h: Tensor, slope: Tensor, g: Tensor, gl: Tensor
    ) -> Tensor:
        """Add to the parameters' sums and solve for the gradient with respect to the layer's output, block by block."""
        d, u, gain = self.spec.input_dim, self.u[layer], self.gain[layer]
        dilation = min(self.spec.dilations[layer], d)
        inverse = 1 / (1 + gain * slope)
        scaled = -gl * inverse
        curvature = self.spec.h.curvature(a, h, slope)
        curved = torch.zeros_like(a) if curvature is None else scaled * gain * curvature
        ga, adjoint, steep = torch.empty_like(a), torch.empty_like(a), u * slope
        for start in range(0, d, dilation):
            at = slice(start, min(start + dilation, d))
            total = g[at] + self.weight[layer, 0] * curved[at]
            for tap, offset in self.live(layer):
                if offset <= start:  # starts and offsets are multiples of the dilation
                    self.add_tap(total, layer, tap, ga[at.start - offset : at.stop - offset])
            adjoint[at] = total * inverse[at]
            ga[at] = curved[at] - steep[at] * adjoint[at]
        self.d_u[layer] = -self._dot(adjoint, h, u)
        self.d_gain[layer] = self._dot(scaled, slope, gain)
        self._convolution_gradients(layer, ga, z)
        return adjoint

    def _convolution_gradients(self, layer: int, ga: Tensor, z: Tensor) -> None:
        self.d_bias[layer] = ga.sum_to_size(self.bias[layer].shape)
        self._tap_gradient(layer, 0, ga, z)
        for tap, offset in self.live(layer):
            self._tap_gradient(layer, tap, ga[:-offset], z[offset:])

    def _tap_gradient(self, layer: int, tap: int, ga: Tensor, z: Tensor) -> None:
        if self.taps is None:
            self.d_weight[layer, tap] = (ga * z).sum((0, 1))
        else:
            self.d_weight[layer, tap, 0, 0] = torch.dot(ga.flatten(), z.flatten())

    def parameter_gradients(self) -> list[Tensor]:
        """The sums, turned from ``u`` and ``A`` to ``θ`` and the first taps, in the operands' shapes."""
        # u and A have the rows of both; d_u and d_gain were summed to their shapes
        d_theta, d_w1 = free_gradients(self.theta, self.weight[:, :1], self.spec.h.slope_bound, self.d_u, self.d_gain)
        self.d_weight[:, :1] += d_w1
        sums = (d_theta, self.d_weight, self.d_bias)
        return [t.squeeze(2).movedim(-1, 0).reshape(p.shape) for t, p in zip(sums, self.operands[1:], strict=True)]

    @staticmethod
    def _part(parameter: Tensor, at: slice) -> Tensor:
        """Some dimensions of a parameter that may be one for all of them."""
        return parameter if parameter.shape[0] == 1 else parameter[at]

    @staticmethod
    def _dot(left: Tensor, right: Tensor, like: Tensor) -> Tensor:
        """The sum of products over what a parameter's rows share."""
        if like.shape[-1] == 1:
            return torch.linalg.vecdot(left.flatten(1), right.flatten(1)).reshape(like.shape)
        return (left * right).sum(1, keepdim=True)
