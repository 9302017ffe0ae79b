r"""Circular and symmetric convolution in ``O(N log N)``: value, log-determinant and inverse in the frequency domain.

A circular convolution ``y(i) = Σ_n x(n) w(i−n mod N)`` is diagonal in the Fourier basis: its matrix is circulant with
first column ``w`` and eigenvalues ``ŵ = DFT(w)``, so ``log|det| = Σ_k log|ŵ(k)|`` over all ``N`` (in 2-D ``H W``)
frequencies (Karami et al., *Generative Convolutional Flow*, theorem 1). A symmetric convolution is diagonal in the
cosine basis (DCT-II) in the same way.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vi_flows.nn.precision import with_32_bits
from vi_flows.transforms.base import Bijection, expand_ladj

__all__ = [
    "FILTERS",
    "CepstralFilter",
    "CircularConv",
    "CosineFilter",
    "Filter",
    "KernelFilter",
    "dct",
    "half_spectrum_weights",
    "idct",
    "make_filter",
]


def half_spectrum_weights(size: int, like: Tensor) -> Tensor:
    """How often each bin of a real FFT's halved axis occurs in the full spectrum, shape ``(⌊N/2⌋ + 1,)``.

    Bins 0 and, for even ``N``, ``N/2`` are their own mirror images: weight 1; all others stand for two: weight 2.

    Args:
        size: ``N``, length of the real signal along that axis.
        like: tensor whose dtype and device the weights get.
    """
    weights = like.new_full((size // 2 + 1,), 2.0)
    weights[0] = 1.0
    if size % 2 == 0:
        weights[-1] = 1.0
    return weights


def dct(x: Tensor) -> Tensor:
    """Orthonormal DCT-II of the last dimension, by one FFT of the reordered signal (Makhoul 1980)."""
    n = x.shape[-1]
    reordered = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    phase, scale = _dct_phase(n, x)
    return (torch.fft.fft(reordered) * phase).real * scale


def idct(x: Tensor) -> Tensor:
    """Inverse of :func:`dct` along the last dimension."""
    n = x.shape[-1]
    phase, scale = _dct_phase(n, x)
    half = x / scale
    mirrored = torch.cat([torch.zeros_like(half[..., :1]), half[..., 1:].flip(-1)], -1)
    reordered = torch.fft.ifft(torch.complex(half, -mirrored) * phase.conj()).real
    evens, odds = reordered[..., : (n + 1) // 2], reordered[..., (n + 1) // 2 :].flip(-1)
    if n % 2:
        odds = torch.cat([odds, odds.new_zeros(*odds.shape[:-1], 1)], -1)
    return torch.stack([evens, odds], -1).flatten(-2)[..., :n]


def _dct_phase(n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    angle = torch.arange(n, dtype=like.dtype, device=like.device) * (-math.pi / (2 * n))
    scale = torch.full_like(angle, math.sqrt(2 / n))
    scale[0] = math.sqrt(1 / n)
    return torch.polar(torch.ones_like(angle), angle), scale


class Filter(ABC):
    """A family of invertible filters of real signals, one a channel, given by a real array of the signal's own shape.

    ``filter(x, v)`` returns the filtered signal and its log-determinant, summed over the channel and signal dimensions;
    ``v = 0`` is the identity. ``v`` may have leading dimensions of its own: one filter a row of the batch.

    Args:
        num_dims: signal dimensions, 1 or 2, behind the channel dimension.
        bound: ``c``, where the family bounds the log magnitude of the spectrum.

    Raises:
        ValueError: ``num_dims`` is neither 1 nor 2, or ``bound`` is not positive.
    """

    def __init__(self, num_dims: int, bound: float = 2.0) -> None:
        if num_dims not in (1, 2):
            raise ValueError(f"num_dims must be 1 or 2, got {num_dims}")
        if not bound > 0:
            raise ValueError(f"bound must be positive, got {bound}")
        self.num_dims, self.bound = num_dims, bound

    @property
    def dims(self) -> tuple[int, ...]:
        """The signal dimensions, counted from the right."""
        return tuple(range(-self.num_dims, 0))

    def __call__(self, x: Tensor, v: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Filter ``x`` (or undo it), and the log-determinant of what was done.

        Args:
            x: ``(…, C, N)`` or ``(…, C, H, W)``.
            v: broadcastable to ``x`` in its leading dimensions.
            inverse: undo the filter.
        """
        if x.numel() == 0:  # FFTs refuse empty batches
            return x, x.new_zeros(x.shape[: -self.num_dims - 1])
        signal, parameter = with_32_bits(x, v)
        y, ladj = self._filter(signal, parameter, inverse)
        return y.to(x.dtype), ladj.to(x.dtype)

    @abstractmethod
    def _filter(self, x: Tensor, v: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """As :meth:`__call__`, for a batch that is not empty."""

    def _bounded(self, magnitude: Tensor) -> Tensor:
        return self.bound * torch.tanh(magnitude / self.bound)

    def _total(self, log_magnitude: Tensor) -> Tensor:
        return log_magnitude.flatten(-self.num_dims - 1).sum(-1)


class _FourierFilter(Filter):
    """Filters that multiply the Fourier spectrum: circular convolutions."""

    @abstractmethod
    def _log_spectrum(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """``log|ŵ|`` and the complex ``ŵ`` on the half spectrum."""

    def _filter(self, x: Tensor, v: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Multiply (or divide) the spectrum of ``x`` by ``ŵ``."""
        log_magnitude, spectrum = self._log_spectrum(v)
        if inverse:
            log_magnitude, spectrum = -log_magnitude, 1 / spectrum
        signal = torch.fft.rfftn(x, dim=self.dims) * spectrum
        # Without `s` an odd last side would come back one entry short.
        y = torch.fft.irfftn(signal, s=x.shape[-self.num_dims :], dim=self.dims)
        return y, self._total(log_magnitude * half_spectrum_weights(x.shape[-1], x))

    def kernel(self, v: Tensor) -> Tensor:
        """The convolution kernel ``w`` that ``v`` stands for, same shape; the tap that meets the entry itself first."""
        spectrum = self._log_spectrum(*with_32_bits(v))[1]
        return torch.fft.irfftn(spectrum, s=v.shape[-self.num_dims :], dim=self.dims).to(v.dtype)


class CepstralFilter(_FourierFilter):
    r"""Circular convolution with a spectrum bounded by construction: ``log ŵ = c tanh(Re v̂ / c) + i Im v̂``.

    ``v`` is a real array (the kernel's cepstrum, up to the bound), so ``v̂ = DFT(v)/√N`` has the Hermitian symmetry of
    real signals, and with it ``ŵ``: no bin of the half spectrum needs a special rule, for even and odd sizes. Every
    ``|ŵ|`` lies in ``[e⁻ᶜ, eᶜ]``: the map can't become singular and its condition number is at most ``e²ᶜ``. It
    reaches every circular convolution within the bounds whose spectrum is positive at the self-mirrored bins.
    ``log|det| = Σ_k c tanh(Re v̂_k / c)``.
    """

    def _log_spectrum(self, v: Tensor) -> tuple[Tensor, Tensor]:
        spectrum = torch.fft.rfftn(v, dim=self.dims, norm="ortho")
        log_magnitude = self._bounded(spectrum.real)
        return log_magnitude, torch.polar(log_magnitude.exp(), spectrum.imag)


class KernelFilter(_FourierFilter):
    """Circular convolution with the kernel ``w = δ + v`` itself, as the paper has it: nothing keeps ``ŵ`` off zero.

    During training the log-determinant acts as a barrier from one side only; prefer :class:`CepstralFilter`.
    """

    def _log_spectrum(self, v: Tensor) -> tuple[Tensor, Tensor]:
        spectrum = 1 + torch.fft.rfftn(v, dim=self.dims)
        return spectrum.abs().log(), spectrum


class CosineFilter(Filter):
    r"""Symmetric convolution, ``y = IDCT(e^ρ ⊙ DCT x)`` with ``ρ = c tanh(DCT(v) / c)``; ``log|det| = Σ ρ``.

    The signal is continued by reflection instead of periodically, so opposite edges of an image don't mix. The matrix
    is symmetric and positive definite.
    """

    def _filter(self, x: Tensor, v: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Multiply (or divide) the cosine spectrum of ``x`` by ``e^ρ``."""
        log_magnitude = self._bounded(self._transform(v, dct))
        if inverse:
            log_magnitude = -log_magnitude
        y = self._transform(self._transform(x, dct) * log_magnitude.exp(), idct)
        return y, self._total(log_magnitude)

    def _transform(self, x: Tensor, one_dim: Callable[[Tensor], Tensor]) -> Tensor:
        x = one_dim(x)
        return one_dim(x.mT).mT if self.num_dims == 2 else x


FILTERS: dict[str, type[Filter]] = {"cepstrum": CepstralFilter, "kernel": KernelFilter, "cosine": CosineFilter}
"""The filter families by name."""


def make_filter(name: str, num_dims: int, bound: float = 2.0) -> Filter:
    """The filter family called ``name``.

    Raises:
        ValueError: there is none of that name, or see :class:`Filter`.
    """
    if name not in FILTERS:
        raise ValueError(f"unknown filter {name!r}; choose one of {', '.join(FILTERS)}")
    return FILTERS[name](num_dims, bound)


class CircularConv(Bijection):
    """A learned convolution of each channel with a kernel of its own, as large as the signal; the identity at first.

    Args:
        event_shape: ``(C, N)`` for signals, ``(C, H, W)`` for images.
        filter: ``cepstrum`` (circular, bounded by construction), ``kernel`` (circular, the kernel itself) or ``cosine``
            (symmetric, bounded).
        bound: ``c``, largest log magnitude of a bounded spectrum.

    Raises:
        ValueError: the event has neither two nor three dimensions, the filter is unknown, or the bound not positive; on
            use, the input has another shape.
    """

    def __init__(self, event_shape: Sequence[int], filter: str = "cepstrum", bound: float = 2.0) -> None:
        super().__init__(event_dim=len(event_shape))
        self.event_shape = torch.Size(event_shape)
        self.filter = make_filter(filter, len(event_shape) - 1, bound)
        self.v = nn.Parameter(torch.zeros(*event_shape))

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve."""
        return self._evaluate(x, inverse=False)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Deconvolve, by dividing the spectra."""
        return self._evaluate(y, inverse=True)

    def _evaluate(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.shape[-self.event_dim :] != self.event_shape:
            raise ValueError(f"expected events of {tuple(self.event_shape)}, got a tensor of {tuple(x.shape)}")
        y, ladj = self.filter(x, self.v, inverse)
        return y, expand_ladj(ladj, x, self.event_dim)

    def extra_repr(self) -> str:
        """Shape and filter."""
        return f"event_shape={tuple(self.event_shape)}, filter={type(self.filter).__name__}"
