"""Solvers of one-sided convolutions: by the compiled kernel, with gradients of its own, or by rows; and a reference."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from vi_flows.kernels.substitution import serves_substitution, substitute
from vi_flows.nn.precision import with_32_bits

__all__ = ["CompiledSolver", "FollowedSolver", "RowSolver", "Solver", "flipped", "padding", "solve_by_pixels"]


def padding(kernel_size: int, bottom: bool = False, right: bool = False) -> tuple[int, int, int, int]:
    """Zeros at the left, the right, above and below, for a convolution that looks towards a corner."""
    pad = kernel_size - 1
    return pad * (not right), pad * right, pad * (not bottom), pad * bottom


def flipped(value: Tensor, bottom: bool = False, right: bool = False) -> Tensor:
    """A kernel or images, ``(…, H, W)``, as those of the top-left corner, or back."""
    return value.flip((-2,) * bottom + (-1,) * right)


class Solver(Protocol):
    """Inverts a one-sided convolution whose kernel is known."""

    def takes(self, y: Tensor) -> bool:
        """Whether it was made for images of this size."""
        ...

    def solve(self, y: Tensor, bottom: bool = False, right: bool = False) -> Tensor:
        """``X`` from ``Y``, both ``(N, C, H, W)``.

        Args:
            y: the images.
            bottom: whether the corner is a lower one, so that rows run upwards.
            right: whether it is a right one, so that columns run backwards.
        """
        ...


class CompiledSolver(NamedTuple):
    """Substitution pixel by pixel in the compiled kernel, see :func:`~vi_flows.kernels.substitution.substitute`.

    Attributes:
        matrix: ``−K₀⁻¹ K`` by taps, and ``K₀⁻¹``, shape ``(C, k k C)``.
    """

    matrix: Tensor

    @classmethod
    def from_kernel(cls, kernel: Tensor, width: int) -> CompiledSolver:
        """See :meth:`RowSolver.from_kernel`; no number depends on the width."""
        inverse = torch.linalg.inv(kernel[:, :, -1, -1])
        matrix = -inverse @ kernel.permute(0, 2, 3, 1).flatten(1)
        return cls(torch.cat([matrix[:, : matrix.shape[1] - len(inverse)], inverse], 1))

    def takes(self, y: Tensor) -> bool:
        """Images of any size."""
        return True

    def solve(self, y: Tensor, bottom: bool = False, right: bool = False) -> Tensor:
        """See :meth:`Solver.solve`."""
        return substitute(self.matrix, y, bottom, right)


class FollowedSolver(NamedTuple):
    """As :class:`CompiledSolver`, with gradients by the images and by the kernel, also of higher order.

    Attributes:
        kernel: ``(C, C, k, k)``, output channel first, oriented top-left.
    """

    kernel: Tensor

    @classmethod
    def from_kernel(cls, kernel: Tensor, width: int) -> FollowedSolver:
        """See :meth:`RowSolver.from_kernel`; no number depends on the width."""
        return cls(kernel)

    def takes(self, y: Tensor) -> bool:
        """Images of any size."""
        return True

    def solve(self, y: Tensor, bottom: bool = False, right: bool = False) -> Tensor:
        """See :meth:`Solver.solve`."""
        return _Substitution.apply(y, self.kernel, bottom, right)


class _Substitution(torch.autograd.Function):
    """``X`` as a function of ``Y`` and ``K``, with implicit derivatives.

    ``Y = J X`` with ``J`` linear in ``K``. For the derivative ``g`` of the loss by ``X``, ``λ = J⁻ᵀ g`` is the one by
    ``Y``: ``Jᵀ`` is the convolution towards the opposite corner by ``K`` with its channels exchanged, so that the same
    substitution solves it. By ``K`` it is minus that of ``⟨λ, conv(pad(X), K)⟩``.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, kernel: Tensor, bottom: bool, right: bool) -> Tensor:
        exact = CompiledSolver.from_kernel(kernel.double(), y.shape[-1])
        x = substitute(exact.matrix.to(kernel.dtype), y, bottom, right)
        ctx.save_for_backward(x, kernel)
        ctx.corner = bottom, right
        return x

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, kernel = ctx.saved_tensors
        bottom, right = ctx.corner
        # Whoever looks at this pass (`vmap` over gradients, a recorder) sees PyTorch's operators alone.
        kind = FollowedSolver if serves_substitution(grad_x) else RowSolver
        transposed = kind.from_kernel(kernel.transpose(0, 1), x.shape[-1])
        grad_y = transposed.solve(grad_x, not bottom, not right)
        if not ctx.needs_input_grad[1]:
            return grad_y, None, None, None
        padded = F.pad(x, padding(kernel.shape[-1], bottom, right))
        by_kernel = conv2d_weight(padded, list(kernel.shape), grad_y)
        return grad_y, -flipped(by_kernel, bottom, right), None, None


class RowSolver(NamedTuple):
    r"""Solves a top-left convolution row by row: ``X_i = T₀⁻¹ Y_i − Σ_{a=1}^{k−1} M_a X_{i−a}``.

    A row of the image is one vector of ``W C`` entries, and ``T_a`` the operator from input row ``i−a`` to output row
    ``i`` (block lower triangular Toeplitz over the columns); ``M_a = T₀⁻¹ T_a``. There is one batched product a row and
    tap, and nothing by pixel: PyTorch's operators alone, so that it has gradients and runs on every device.

    Attributes:
        inverse: ``T₀⁻¹``, shape ``(W C, W C)``.
        carry: ``M_1 … M_{k−1}`` side by side, shape ``(W C, (k−1) W C)``.
    """

    inverse: Tensor
    carry: Tensor

    @classmethod
    def from_kernel(cls, kernel: Tensor, width: int) -> RowSolver:
        """Build the operators for images of ``width`` columns.

        Args:
            kernel: ``(C, C, k, k)``, output channel first, oriented top-left.
            width: ``W``.
        """
        (wide,) = with_32_bits(kernel)
        operators = row_operators(wide, width)
        inverse = torch.linalg.inv(operators[0])
        carry = inverse @ torch.cat([*operators[1:], operators[0][:, :0]], 1)
        return cls(inverse.to(kernel.dtype), carry.to(kernel.dtype))

    def takes(self, y: Tensor) -> bool:
        """Images of the width that the operators were made for."""
        return len(self.inverse) == y.shape[-3] * y.shape[-1]

    def solve(self, y: Tensor, bottom: bool = False, right: bool = False) -> Tensor:
        """See :meth:`Solver.solve`."""
        n, c, h, w = y.shape
        rows = flipped(y, bottom, right).permute(2, 0, 3, 1).reshape(h, n, w * c)
        free = rows @ self.inverse.mT
        taps = self.carry.shape[1] // max(w * c, 1)
        solved: list[Tensor] = []
        for i in range(h):
            row = free[i]
            known = min(taps, i)
            if known:
                above = torch.cat(solved[: -known - 1 : -1], 1)
                row = torch.addmm(row, above, self.carry[:, : known * w * c].mT, alpha=-1)
            solved.append(row)
        return flipped(torch.stack(solved).reshape(h, n, w, c).permute(1, 3, 0, 2), bottom, right)


def solve_by_pixels(kernel: Tensor, y: Tensor) -> Tensor:
    """Back-substitution pixel by pixel, as the paper has it: the reference that both solvers are measured against.

    Args:
        kernel: ``(C, C, k, k)``, output channel first, oriented top-left.
        y: ``(N, C, H, W)``.

    Returns:
        ``X`` with ``conv(pad(X), K) = Y``.
    """
    n, c, height, width = y.shape
    k = kernel.shape[-1]
    padded = y.new_zeros(n, c, height + k - 1, width + k - 1)
    last = torch.linalg.inv(kernel[:, :, -1, -1])
    taps = kernel.flatten(1).mT
    for i in range(height):
        for j in range(width):
            seen = padded[:, :, i : i + k, j : j + k].flatten(1) @ taps
            padded[:, :, i + k - 1, j + k - 1] = (y[:, :, i, j] - seen) @ last.mT
    return padded[:, :, k - 1 :, k - 1 :]


def row_operators(kernel: Tensor, width: int) -> list[Tensor]:
    """``T_0 … T_{k−1}``: how input row ``i−a`` enters output row ``i``, each ``(W C, W C)`` with channels innermost."""
    k = kernel.shape[-1]
    channels = kernel.shape[0]
    shifts = [torch.diag(kernel.new_ones(max(width - b, 0)), -b) for b in range(k) if b < width]
    operators = []
    for a in range(k):
        total = kernel.new_zeros(width * channels, width * channels)
        for b, shift in enumerate(shifts):
            total = total + torch.kron(shift, kernel[:, :, k - 1 - a, k - 1 - b].contiguous())
        operators.append(total)
    return operators
