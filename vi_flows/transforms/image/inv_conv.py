r"""Invertible k×k convolutions padded on two sides, their exact inverses, and emerging convolutions.

With ``k−1`` zeros above and to the left of the image, ``Y[i,j] = Σ_{a,b} K[a,b] X̂[i+a, j+b]`` sees only pixels above
or left of ``(i, j)``, and the pixel itself through the last tap ``K[k−1,k−1]``. In raster order its matrix is block
triangular with that tap on the diagonal: it is invertible iff ``det K[k−1,k−1] ≠ 0``, and
``log|det| = H W log|det K[k−1,k−1]|`` (Nagar, Dufraisse & Varma, *Invertible 3×3 convolution and quad-coupling*,
section 3.1, extended from one channel to many). The other three corners are mirror images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vi_flows.kernels.substitution import serves_substitution
from vi_flows.recording import is_recorded, is_transformed
from vi_flows.transforms.base import expand_ladj
from vi_flows.transforms.composition import Chain
from vi_flows.transforms.image.base import ImageBijection, fold_batch
from vi_flows.transforms.image.conv1x1 import LUMatrix
from vi_flows.transforms.image.solvers import CompiledSolver, FollowedSolver, RowSolver, Solver, flipped, padding

__all__ = ["CORNERS", "EmergingConv2d", "OneSidedConv2d"]

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


class OneSidedConv2d(ImageBijection):
    r"""A k×k convolution padded on two sides, invertible for every value of its parameters.

    ``Y = conv(pad(X), K)`` with ``log|det| = H W log|det K[k−1,k−1]|`` (the tap at the pixel itself, counted towards
    the chosen corner). That tap is triangular with an exponential diagonal (``masked``, the paper's form) or a full
    matrix in LU form (the block-triangular form, which contains Glow's 1×1 convolution at ``k = 1``).

    The inverse is exact: on the CPU by the compiled kernel where it is there (:class:`CompiledSolver`, and with
    gradients :class:`FollowedSolver`), else by rows (:class:`RowSolver`). What is needed of the weights is kept for as
    long as these don't change and no gradients are asked for. The inverse's accuracy is that of the convolution's
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
        self._solver: tuple[Tensor, Solver] | None = None

    def kernel(self) -> Tensor:
        """``K``, shape ``(C, C, k, k)`` with the output channel first, oriented top-left whatever the corner."""
        c, k = self.channels, self.kernel_size
        return torch.cat([self.taps, self.tap.matrix()[:, :, None]], -1).reshape(c, c, k, k)

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One padded convolution."""
        self._check_image(x)
        corner = CORNERS[self.corner]
        sides, kernel = padding(self.kernel_size, *corner), flipped(self.kernel(), *corner)
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
        images = F.pad(eye.reshape(-1, self.channels, height, width), padding(self.kernel_size))
        return float(torch.linalg.cond(F.conv2d(images, kernel).flatten(1).mT))

    def _check_image(self, value: Tensor) -> None:
        super()._check_image(value)
        self._check_type(value, self.taps)

    def _ladj(self, x: Tensor) -> Tensor:
        return expand_ladj(self.tap.log_abs_det() * (x.shape[-1] * x.shape[-2]), x, 3)

    def _solver_for(self, y: Tensor) -> Solver:
        width, compiled = y.shape[-1], serves_substitution(y)
        if self._is_followed() or (compiled and torch.is_grad_enabled() and y.requires_grad):
            return (FollowedSolver if compiled else RowSolver).from_kernel(self.kernel(), width)
        kind = CompiledSolver if compiled else RowSolver
        # As ordinary tensors also in inference mode: gradients by the image may be asked for later.
        with torch.inference_mode(False), torch.no_grad():
            kernel, kept = self.kernel(), self._solver
            # By its numbers: `tensor.data`, `vector_to_parameters` and `.to` leave no other trace.
            if kept is None or type(kept[1]) is not kind or not kept[1].takes(y) or not _same(kept[0], kernel):
                # The operators are small and used many times: their own rounding should not count.
                exact = kind.from_kernel(kernel.double(), width)
                kept = self._solver = (kernel, kind(*(part.to(kernel.dtype) for part in exact)))
        return kept[1]

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
