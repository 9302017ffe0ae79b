"""The inverse of convolutions that look towards one corner, by the compiled kernel: substitution pixel by pixel.

PyTorch has no operator for a recurrence over pixels. Up to sixteen images side by side fill the processor's vectors, so
that nothing is computed but the convolution's own products.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from vi_flows.kernels import native
from vi_flows.kernels.dispatch import active_kernel
from vi_flows.recording import is_recorded, is_transformed

__all__ = ["serves_substitution", "substitute"]


class _Substitution(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("is_double", "isa", "threads")],
        *[(name, ctypes.c_int64) for name in ("images", "channels", "height", "width", "k", "bottom", "right")],
        *[(f"y_{name}", ctypes.c_int64) for name in ("image", "channel", "row", "column")],
        *[(f"x_{name}", ctypes.c_int64) for name in ("image", "channel", "row", "column")],
        *[(name, ctypes.c_void_p) for name in ("matrix", "y", "x", "packed")],
    ]


def serves_substitution(y: Tensor) -> bool:
    """Whether :func:`substitute` takes these images: numbers on the CPU, of which no record is wanted.

    It has no gradients by itself; :class:`~vi_flows.transforms.image.solvers.FollowedSolver` gives it some.
    """
    return (
        type(y) in (Tensor, nn.Parameter)
        and y.device.type == "cpu"
        and y.dtype in (torch.float32, torch.float64)
        and not y.is_neg()
        and not is_recorded()
        and not is_transformed()
        and active_kernel() == "c"
    )


def substitute(matrix: Tensor, y: Tensor, bottom: bool, right: bool, isa: int = -1) -> Tensor:
    """The images ``X`` with ``conv(pad(X), K) = Y``, see :mod:`vi_flows.transforms.image.inv_conv`.

    Args:
        matrix: ``(C, k k C)`` of the images' type: side by side ``−K₀⁻¹ K`` by taps in raster order, oriented top-left,
            and ``K₀⁻¹`` in place of the last, which is ``K₀``; a tap is ``(C, C)``, output channel first.
        y: ``(N, C, H, W)``, for which :func:`serves_substitution`.
        bottom: whether the corner is one of the lower two: rows run upwards.
        right: whether it is one of the right two: columns run backwards.
        isa: position in :data:`~vi_flows.kernels.native.ISAS`; −1 takes the widest there is.

    Returns:
        ``(N, C, H, W)``.

    Raises:
        ValueError: the matrix has another type or shape, or there is no such instruction set.
        RuntimeError: the kernel was not built.
        MemoryError: there is no room for the rows of the images.
    """
    loaded = native.load()
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    images, channels, height, width = y.shape
    taps = matrix.shape[1] // channels if channels else 0
    if matrix.dtype is not y.dtype or matrix.shape != (channels, taps * channels) or taps != round(taps**0.5) ** 2:
        raise ValueError(f"a matrix {tuple(matrix.shape)} of {matrix.dtype} is none for {tuple(y.shape)} of {y.dtype}")
    matrix, x = matrix.contiguous(), torch.empty_like(y)
    if not y.numel():
        return x
    job = _Substitution(
        y.dtype is torch.float64,
        isa,
        torch.get_num_threads(),
        *(images, channels, height, width, round(taps**0.5), bottom, right),
        *y.stride(),
        *x.stride(),
        *(matrix.data_ptr(), y.data_ptr(), x.data_ptr()),
    )
    native.check(loaded.library.vi_flows_substitute(ctypes.byref(job)), isa)
    return x
