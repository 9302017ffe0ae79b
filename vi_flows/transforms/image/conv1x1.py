"""Glow's invertible 1×1 convolution, and the LU parameterisation of a square matrix that it shares with others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vi_flows.nn.precision import with_32_bits
from vi_flows.transforms.image.pointwise import PixelLayer, PixelMap

__all__ = ["Conv1x1", "LUMatrix"]


class LUMatrix(nn.Module):
    r"""An invertible matrix ``A = P L (U + diag(σ eᵈ))`` (Kingma & Dhariwal, *Glow*, eq. 10).

    ``P`` is a fixed permutation, ``L`` unit lower triangular, ``U`` strictly upper triangular and ``σ = ±1`` fixed, so
    the diagonal can't reach zero: ``log|det A| = Σ d``. It starts as a random rotation, or as the identity.

    Args:
        size: number of rows ``C``.
        rotation: start from a random rotation instead of the identity.

    Raises:
        ValueError: ``size`` is less than 1.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, size: int, rotation: bool = True) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        start = torch.eye(size)
        if rotation:
            start = torch.linalg.qr(torch.randn(size, size))[0]
        p, lower, upper = torch.linalg.lu(start)
        self.register_buffer("permutation", p)
        self.register_buffer("sign", upper.diagonal().sign())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(upper.diagonal().abs().log())

    def factors(self) -> tuple[Tensor, Tensor]:
        """``L`` and ``U`` with their diagonals."""
        eye = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + eye, self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())

    def matrix(self) -> Tensor:
        """``A``, shape ``(C, C)``."""
        lower, upper = self.factors()
        return self.permutation @ lower @ upper

    def inverse(self) -> Tensor:
        """``A⁻¹`` by two triangular solves."""
        lower, upper, permutation = with_32_bits(*self.factors(), self.permutation)
        half = torch.linalg.solve_triangular(lower, permutation.mT, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, half, upper=True).to(self.lower.dtype)

    def log_abs_det(self) -> Tensor:
        """``log|det A| = Σ d``, a scalar."""
        return self.log_diagonal.sum()


class Conv1x1(PixelLayer):
    """Glow's invertible 1×1 convolution: ``y_{ij} = A x_{ij}`` at each pixel; ``log|det| = H W log|det A|``.

    Args:
        channels: ``C``.
        rotation: start from a random rotation (Glow's choice) instead of the identity.

    Raises:
        ValueError: ``channels`` is less than 1; on use, the image has another number of channels.
    """

    def __init__(self, channels: int, rotation: bool = True) -> None:
        super().__init__(channels)
        self.weight = LUMatrix(channels, rotation)

    def _check_image(self, value: Tensor) -> None:
        super()._check_image(value)
        self._check_type(value, self.weight.log_diagonal)

    def pixel_map(self, inverse: bool) -> PixelMap:
        """``A``, or ``A⁻¹``."""
        log_abs_det = self.weight.log_abs_det()
        if inverse:
            return PixelMap(self.weight.inverse(), None, -log_abs_det)
        return PixelMap(self.weight.matrix(), None, log_abs_det)

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``A x`` at each pixel."""
        self._check_image(x)
        return self.pixel_map(inverse=False).apply(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``A⁻¹ y`` at each pixel."""
        self._check_image(y)
        return self.pixel_map(inverse=True).apply(y)
