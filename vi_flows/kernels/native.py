"""The compiled kernel behind plain pointers: finds the extension's library and fills in its structures."""

from __future__ import annotations

import ctypes
import importlib.machinery
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from vi_flows.kernels.operands import Cotangents, Operands
from vi_flows.kernels.reference import ConvFlowSpec

__all__ = ["ACTIVATION_CODES", "ISAS", "Library", "backward", "check", "evaluate", "load"]

ACTIVATION_CODES = {"leaky_relu": 0, "tanh": 1, "sigmoid": 2, "softplus": 3, "elu": 4}
ISAS = ("baseline", "avx2", "avx512")
_FORWARD, _INVERSE, _FORWARD_BACKWARD, _INVERSE_BACKWARD = range(4)


class _Stack(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("d", "k", "layers", "activation")],
        *[(name, ctypes.c_double) for name in ("slope", "bound")],
        *[(name, ctypes.POINTER(ctypes.c_int64)) for name in ("dilations", "reverts")],
    ]


class _Job(ctypes.Structure):
    _fields_ = [
        ("stack", ctypes.POINTER(_Stack)),
        *[(name, ctypes.c_int64) for name in ("op", "is_double", "isa", "threads", "rows", "outer")],
        *[(name, ctypes.c_int64) for name in ("theta_row", "weight_row", "bias_row", "bias_dims")],
        *[(name, ctypes.c_void_p) for name in ("x", "theta", "weight", "bias", "g_y", "g_ladj", "y", "ladj")],
        *[(name, ctypes.c_void_p) for name in ("g_x", "g_theta", "g_weight", "g_bias", "prepared", "partial")],
        ("padded_d", ctypes.c_int64),
    ]


@dataclass(frozen=True)
class Library:
    """The loaded extension.

    Attributes:
        path: its file.
        build: compiler, and whether OpenMP is in it.
        isa: the widest instruction set that it and this machine have, one of :data:`ISAS`.
        library: the handle.
    """

    path: Path
    build: str
    isa: str
    library: ctypes.CDLL


@cache
def load() -> Library | str:
    """The extension, or the reason why there is none."""
    folder = Path(__file__).parent
    found = [folder / f"_conv_flow{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    path = next((path for path in found if path.exists()), None)
    if path is None:
        return "the extension vi_flows.kernels._conv_flow was not built (no C compiler at installation)"
    try:
        library = ctypes.CDLL(str(path))
        library.vi_flows_build.restype = ctypes.c_char_p
        library.vi_flows_best_isa.restype = ctypes.c_int64
        for function in (library.vi_flows_run, library.vi_flows_substitute):
            function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p]
        return Library(path, library.vi_flows_build().decode(), ISAS[library.vi_flows_best_isa()], library)
    except (OSError, AttributeError) as error:
        return f"{path.name} can't be loaded: {error}"


@lru_cache(maxsize=256)
def _stack(spec: ConvFlowSpec) -> _Stack:
    layers = spec.num_layers
    if spec.activation not in ACTIVATION_CODES:
        raise ValueError(
            f"the compiled kernel has no activation {spec.activation!r}: add it to csrc and ACTIVATION_CODES, or set "
            "the torch engine"
        )
    flags = (ctypes.c_int64 * layers)(*spec.reverts)
    # A dilation past the last dimension acts like any other such; the cut keeps products of it in range.
    dilations = (ctypes.c_int64 * layers)(*(min(dilation, spec.input_dim) for dilation in spec.dilations))
    return _Stack(
        spec.input_dim,
        spec.kernel_size,
        layers,
        ACTIVATION_CODES[spec.activation],
        spec.negative_slope,
        spec.h.slope_bound,
        dilations,
        flags,
    )


def _job(op: int, operands: Operands, spec: ConvFlowSpec, isa: int) -> _Job:
    x, theta, weight, bias = operands
    layers, d = spec.num_layers, spec.input_dim
    bias_dims = bias.shape[-1]
    rows = points = x.numel() // d
    theta_row = theta.dim() > 2 and layers * d
    weight_row = weight.dim() > 2 and layers * spec.kernel_size
    bias_row = bias.dim() > 2 and layers * bias_dims
    own = theta if theta_row else weight if weight_row else bias if bias_row else None
    if own is not None:
        rows = own.shape[:-2].numel()
    job = _Job(
        ctypes.pointer(_stack(spec)),
        op,
        x.dtype is torch.float64,
        isa,
        torch.get_num_threads(),
        rows,
        points // rows if rows else 0,
        theta_row,
        weight_row,
        bias_row,
        bias_dims,
        x.data_ptr(),
        theta.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
    )
    return job


def _run(job: _Job) -> None:
    loaded = load()
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    status = loaded.library.vi_flows_run(ctypes.byref(job))
    if status == 3:
        code = job.stack.contents.activation
        raise ValueError(f"the compiled kernel has no activation of code {code}: build it anew from csrc, or use torch")
    check(status, job.isa)


def check(status: int, isa: int) -> None:
    """Turn what a function of the library returned into an exception.

    Args:
        status: 0, 1 or 2.
        isa: the instruction set that was asked for.

    Raises:
        MemoryError: 1.
        ValueError: 2, this machine or build has no such instruction set.
    """
    if status == 1:
        raise MemoryError("out of memory")
    if status:
        raise ValueError(f"no such instruction set: {isa}")


def evaluate(operands: Operands, spec: ConvFlowSpec, inverse: bool, isa: int = -1) -> tuple[Tensor, Tensor]:
    """See :meth:`~vi_flows.kernels.operands.Engine.evaluate`; float32 or float64 on the CPU.

    Args:
        operands: see there; so with the next two.
        spec: the stack's shape.
        inverse: which direction.
        isa: position in :data:`ISAS`; −1 takes the widest there is.
    """
    operands = operands.contiguous()
    x = operands.x
    y, ladj = torch.empty_like(x), x.new_empty(x.shape[:-1])
    job = _job(_INVERSE if inverse else _FORWARD, operands, spec, isa)
    job.y, job.ladj = y.data_ptr(), ladj.data_ptr()
    _run(job)
    return y, ladj


def backward(
    operands: Operands, cotangents: Cotangents, spec: ConvFlowSpec, inverse: bool, isa: int = -1
) -> list[Tensor | None]:
    """See :meth:`~vi_flows.kernels.operands.Engine.backward`; ``isa`` as in :func:`evaluate`."""
    operands = operands.contiguous()
    g_y, g_ladj = (None if g is None else g.contiguous() for g in cotangents[:2])
    grads = cotangents.wanted(map(torch.empty_like, operands))
    job = _job(_INVERSE_BACKWARD if inverse else _FORWARD_BACKWARD, operands, spec, isa)
    job.g_y = None if g_y is None else g_y.data_ptr()
    job.g_ladj = None if g_ladj is None else g_ladj.data_ptr()
    job.g_x, job.g_theta, job.g_weight, job.g_bias = (None if g is None else g.data_ptr() for g in grads)
    _run(job)
    return grads
