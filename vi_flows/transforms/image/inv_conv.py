r"""Invertible k×k convolutions padded on two sides, their exact inverses, and emerging convolutions.

With ``k−1`` zeros above and to the left of the image, ``Y[i,j] = Σ_{a,b} K[a,b] X̂[i+a, j+b]`` sees only pixels above
or left of ``(i, j)``, and the pixel itself through the last tap ``K[k−1,k−1]``. In raster order its matrix is block
triangular with that tap on the diagonal: it is invertible iff ``det K[k−1,k−1] ≠ 0``, and
``log|det| = H W log|det K[k−1,k−1]|`` (Nagar, Dufraisse & Varma, *Invertible 3×3 convolution and quad-coupling*,
section 3.1, extended from one channel to many). The other three corners are mirror images.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vi_flows.kernels.substitution import serves_substitution, substitute
from vi_flows.nn.precision import with_32_bits
from vi_flows.recording import is_recorded, is_transformed
from vi_flows.transforms.base import expand_ladj
from vi_flows.transforms.composition import Chain
from vi_flows.transforms.image.base import ImageBijection, fold_batch
from vi_flows.transforms.image.conv1x1 import LUMatrix

__all__ = ["CORNERS", "CompiledSolver", "EmergingConv2d", "OneSidedConv2d", "RowSolver", "Solver", "solve_by_pixels"]

CORNERS: dict[str, tuple[bool, bool]] = {
    "top_left": (False, False),
    "top_right": (False, True),
    "bottom_left": (True, False),
    "bottom_right": (True, True),
}
"""The corner that the convolution looks towards, and whether rows and columns run backwards for it."""


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype is b.dtype and a.device == b.device and torch.equal(a, b)


class TriangularMatrix(nn.Module):
    """A lower triangular matrix ``strict + diag(σ eᵈ)`` with fixed signs: never singular, ``log|det| = Σ d``.

    Args:
        size: number of rows.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.lower = nn.Parameter(torch.zeros(size, size))
        self.log_diagonal = nn.Parameter(torch.zeros(size))

    def matrix(self) -> Tensor:
        """The matrix, shape ``(C, C)``."""
        return self.lower.tril(-1) + torch.diag(self.log_diagonal.exp())

    def log_abs_det(self) -> Tensor:
        """``Σ d``, a scalar."""
        return self.log_diagonal.sum()


class Solver(Protocol):
    """Inverts a one-sided convolution whose kernel is known."""

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

    def solve(self, y: Tensor, bottom: bool = False, right: bool = False) -> Tensor:
        """See :meth:`Solver.solve`."""
        return substitute(self.matrix, y, bottom, right)


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

    def solve(self, y: Tensor, bottom: bool = False, right: bool = False) -> Tensor:
        """See :meth:`Solver.solve`."""
        n, c, h, w = y.shape
        flips = (-2,) * bottom + (-1,) * right
        rows = y.flip(flips).permute(2, 0, 3, 1).reshape(h, n, w * c)
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
        return torch.stack(solved).reshape(h, n, w, c).permute(1, 3, 0, 2).flip(flips)


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
            total = total + torch.kron(shift, kernel[:, :, k - 1 - a, k - 1 - b])
        operators.append(total)
    return operators


class OneSidedConv2d(ImageBijection):
    r"""A k×k convolution padded on two sides, invertible for every value of its parameters.

    ``Y = conv(pad(X), K)`` with ``log|det| = H W log|det K[k−1,k−1]|`` (the tap at the pixel itself, counted towards
    the chosen corner). That tap is triangular with an exponential diagonal (``masked``, the paper's form) or a full
    matrix in LU form (the block-triangular form, which contains Glow's 1×1 convolution at ``k = 1``).

    The inverse is exact: by the compiled kernel where it is there, on the CPU, and no gradients are asked for
    (:class:`CompiledSolver`), else by rows (:class:`RowSolver`). What either needs of the weights is kept for as long
    as these don't change and no gradients by them are asked for. The inverse's accuracy is that of the convolution's
    condition number: see :meth:`condition_number`.

    Args:
        channels: ``C``.
        kernel_size: ``k``.
        corner: the corner it looks towards: ``top_left``, ``top_right``, ``bottom_left`` or ``bottom_right``.
        masked: triangular tap instead of a full one.
        init_scale: standard deviation of the initial off-diagonal taps.
        rotation: whether the full tap starts as a random rotation instead of the identity; without effect if masked.

    Raises:
        ValueError: a size is less than 1 or the corner unknown; on use, the image has another number of channels.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        corner: str = "top_left",
        masked: bool = False,
        init_scale: float = 0.0,
        rotation: bool = True,
    ) -> None:
        super().__init__(channels)
        if kernel_size < 1:
            raise ValueError(f"kernel_size must be at least 1, got {kernel_size}")
        if corner not in CORNERS:
            raise ValueError(f"unknown corner {corner!r}; choose one of {', '.join(CORNERS)}")
        self.channels: int = channels
        self.kernel_size, self.corner, self.masked = kernel_size, corner, masked
        self.tap = TriangularMatrix(channels) if masked else LUMatrix(channels, rotation)
        # All taps but the last, in raster order.
        self.taps = nn.Parameter(init_scale * torch.randn(channels, channels, kernel_size**2 - 1))
        self._solver: tuple[Tensor, int, Solver] | None = None

    def kernel(self) -> Tensor:
        """``K``, shape ``(C, C, k, k)`` with the output channel first, oriented top-left whatever the corner."""
        c, k = self.channels, self.kernel_size
        return torch.cat([self.taps, self.tap.matrix()[:, :, None]], -1).reshape(c, c, k, k)

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One padded convolution."""
        self._check_image(x)
        bottom, right = CORNERS[self.corner]
        pad = self.kernel_size - 1
        sides = (pad * (not right), pad * right, pad * (not bottom), pad * bottom)
        kernel = self.kernel().flip(self._flips())
        return fold_batch(lambda images: F.conv2d(F.pad(images, sides), kernel), x), self._ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Exact inverse, by the kernel or by rows."""
        self._check_image(y)
        solver, corner = self._solver_for(y), CORNERS[self.corner]
        return fold_batch(lambda images: solver.solve(images, *corner), y), -self._ladj(y)

    @torch.no_grad()
    def condition_number(self, height: int, width: int) -> float:
        """2-norm condition number of the whole map for images of ``height × width``, in float64 (dense: small sizes).

        The relative error of the inverse is about this number times the precision of the arithmetic.
        """
        eye = torch.eye(self.channels * height * width, dtype=torch.float64).to(self.taps.device)
        kernel = self.kernel().double()
        images = eye.reshape(-1, self.channels, height, width)
        pad = self.kernel_size - 1
        return float(torch.linalg.cond(F.conv2d(F.pad(images, (pad, 0, pad, 0)), kernel).flatten(1).mT))

    def _check_image(self, value: Tensor) -> None:
        super()._check_image(value)
        self._check_type(value, self.taps)

    def _flips(self) -> tuple[int, ...]:
        bottom, right = CORNERS[self.corner]
        return (-2,) * bottom + (-1,) * right

    def _ladj(self, x: Tensor) -> Tensor:
        return expand_ladj(self.tap.log_abs_det() * (x.shape[-1] * x.shape[-2]), x, 3)

    def _solver_for(self, y: Tensor) -> Solver:
        width = y.shape[-1]
        if self._is_followed():
            return RowSolver.from_kernel(self.kernel(), width)
        kind = CompiledSolver if serves_substitution(y) else RowSolver
        # As ordinary tensors also in inference mode: gradients by the image may be asked for later.
        with torch.inference_mode(False), torch.no_grad():
            kernel, kept = self.kernel(), self._solver
            # By its numbers: `tensor.data`, `vector_to_parameters` and `.to` leave no other trace.
            if kept is None or type(kept[2]) is not kind or kept[1] != width or not _same(kept[0], kernel):
                # The operators are small and used many times: their own rounding should not count.
                exact = kind.from_kernel(kernel.double(), width)
                kept = self._solver = (kernel, width, kind(*(part.to(kernel.dtype) for part in exact)))
        return kept[2]

    def _is_followed(self) -> bool:
        """Whether someone wants the solver as a function of the weights: autograd, a transformation, a recorder."""
        return (
            (torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()))
            or is_transformed()
            or is_recorded()
            or (self.taps.is_cuda and torch.cuda.is_current_stream_capturing())
        )

    def _forget(self) -> None:
        super()._forget()
        self._solver = None

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_solver": None}

    def extra_repr(self) -> str:
        """Sizes and form."""
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}, corner={self.corner}, masked={self.masked}"


class EmergingConv2d(Chain):
    """Emerging convolution (Hoogeboom et al. 2019): two masked convolutions from opposite corners; their ladjs add.

    Args:
        channels: ``C``.
        kernel_size: ``k`` of each; together they see ``(2k−1)×(2k−1)`` pixels.
        init_scale: standard deviation of the initial off-diagonal taps.

    Raises:
        ValueError: a size is less than 1.
    """

    def __init__(self, channels: int, kernel_size: int = 3, init_scale: float = 0.0) -> None:
        super().__init__(
            [
                OneSidedConv2d(channels, kernel_size, "top_left", True, init_scale),
                OneSidedConv2d(channels, kernel_size, "bottom_right", True, init_scale),
            ]
        )
