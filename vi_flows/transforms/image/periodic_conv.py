"""Invertible k×k convolutions that wrap around the image's edges: diagonal by frequency, invertible by construction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vi_flows.nn.precision import with_32_bits
from vi_flows.transforms.base import expand_ladj
from vi_flows.transforms.image.base import ImageBijection, fold_batch
from vi_flows.transforms.image.circular_conv import half_spectrum_weights
from vi_flows.transforms.image.conv1x1 import LUMatrix

__all__ = ["PeriodicConv2d"]


class PeriodicConv2d(ImageBijection):
    r"""A periodic convolution that mixes channels (Hoogeboom, van den Berg & Welling 2019, section 3.2).

    ``y = A (x + V ⊛ x)`` with a circular k×k convolution ``V`` and a 1×1 convolution ``A``. The two-dimensional DFT
    takes the first factor to one ``C × C`` matrix a frequency, ``I + V̂(f)``, so
    ``log|det| = H W log|det A| + Σ_f log|det(I + V̂(f))|``. The paper leaves ``V`` free; here the Frobenius norms of its
    taps sum to less than ``bound < 1``, so that every singular value of ``I + V̂(f)`` lies within ``1 ± bound`` and the
    map is invertible for all values of its parameters. It starts as ``A``.

    Args:
        channels: ``C``.
        kernel_size: ``k``, odd, at most the image's sides.
        bound: see above; the condition number of the first factor is at most ``(1 + bound)/(1 − bound)``.
        rotation: whether ``A`` starts as a random rotation instead of the identity.

    Raises:
        ValueError: a size is less than 1, ``kernel_size`` is even, or ``bound`` is not within (0, 1); on use, the image
            has another number of channels or is smaller than the kernel.
    """

    def __init__(self, channels: int, kernel_size: int = 3, bound: float = 0.9, rotation: bool = True) -> None:
        super().__init__(channels)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least 1, got {kernel_size}")
        if not 0 < bound < 1:
            raise ValueError(f"bound must be within (0, 1), got {bound}")
        self.kernel_size, self.bound = kernel_size, bound
        self.weight = LUMatrix(channels, rotation)
        self.taps = nn.Parameter(torch.zeros(channels, channels, kernel_size, kernel_size))

    def deviation(self) -> Tensor:
        """``V``, shape ``(C, C, k, k)``, output channel first."""
        size = (self.taps.square().sum((0, 1)) + 1e-12).sqrt().sum()
        return self.taps * (self.bound / (self.bound + size))

    def spectrum(self, height: int, width: int) -> Tensor:
        """``I + V̂(f)`` of the halved spectrum, shape ``(H, ⌊W/2⌋ + 1, C, C)``."""
        (deviation,), k = with_32_bits(self.deviation()), self.kernel_size
        padded = F.pad(deviation, (0, width - k, 0, height - k)).roll((-(k // 2), -(k // 2)), (-2, -1))
        # conv2d correlates: its matrix is that of the mirrored kernel, whose spectrum is the conjugate one.
        found = torch.fft.rfft2(padded).conj().permute(2, 3, 0, 1)
        return found + torch.eye(deviation.shape[0], dtype=deviation.dtype, device=deviation.device)

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One convolution with periodic padding."""
        self._check_size(x)
        pad = (self.kernel_size // 2,) * 4
        kernel = self.deviation()
        kernel = kernel + F.pad(torch.eye(kernel.shape[0]).to(kernel)[:, :, None, None], pad)
        kernel = torch.einsum("oi,ijhw->ojhw", self.weight.matrix(), kernel)
        return fold_batch(lambda images: F.conv2d(F.pad(images, pad, mode="circular"), kernel), x), self._ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Undo the 1×1 convolution, then solve by frequency."""
        self._check_size(y)
        mixed = torch.einsum("oi,...ihw->...ohw", self.weight.inverse(), y)
        if y.numel() == 0:  # some FFTs refuse an empty batch
            return mixed, -self._ladj(y)
        signal = torch.fft.rfft2(*with_32_bits(mixed)).movedim(-3, -1).unsqueeze(-1)
        solved = torch.linalg.solve(self.spectrum(*y.shape[-2:]), signal).squeeze(-1).movedim(-1, -3)
        return torch.fft.irfft2(solved, s=y.shape[-2:]).to(mixed.dtype), -self._ladj(y)

    def _ladj(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        by_frequency = torch.linalg.slogdet(self.spectrum(height, width))[1]
        weighted = (by_frequency * half_spectrum_weights(width, by_frequency)).sum().to(self.taps.dtype)
        return expand_ladj(weighted + height * width * self.weight.log_abs_det(), x, 3)

    def _check_size(self, value: Tensor) -> None:
        self._check_image(value)
        self._check_type(value, self.taps)
        if min(value.shape[-2:]) < self.kernel_size:
            raise ValueError(
                f"a periodic {self.kernel_size}×{self.kernel_size} convolution needs images of at least that size, "
                f"got {value.shape[-2]} × {value.shape[-1]}"
            )

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}, bound={self.bound}"
