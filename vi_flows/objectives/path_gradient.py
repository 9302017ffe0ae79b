"""The detached scorer: densities whose gradients pass through the points alone, as path gradients need them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from vi_flows.transforms import Bijection

__all__ = ["inverse_with_detached_parameters", "supports_path_gradient", "with_detached_parameters"]

_Result = TypeVar("_Result")


class _Within(nn.Module):
    """Runs a function while `functional_call` holds a module's parameters swapped."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, run: Callable[[], _Result]) -> _Result:
        return run()


def with_detached_parameters(module: nn.Module, run: Callable[[], _Result]) -> _Result:
    """The result of ``run()`` while every parameter of ``module`` is detached; afterwards they are what they were.

    Parameters and modules that are shared are detached wherever they are used.

    Args:
        module: the owner of the parameters.
        run: what to compute; it reads the parameters from the module.
    """
    within = _Within(module)
    # Every module once: given two names of one module, torch would put the detached parameters back for good (Pyro's
    # splines share one among their parts). Every name in it: shared parameters are detached under each.
    detached = {
        f"{prefix}.{name}": p.detach()
        for prefix, part in within.named_modules()
        for name, p in part.named_parameters(recurse=False, remove_duplicate=False)
    }
    return torch.func.functional_call(within, detached, (run,), tie_weights=False)


def inverse_with_detached_parameters(flow: Bijection, y: Tensor) -> tuple[Tensor, Tensor]:
    """``flow.inverse_and_ladj(y)`` with gradients through ``y`` alone.

    Args:
        flow: from base to sample.
        y: its outputs, ``batch_shape + event_shape``.

    Raises:
        NotImplementedError: the flow has no inverse.
    """
    return with_detached_parameters(flow, lambda: flow.inverse_and_ladj(y))


def supports_path_gradient(flow: Bijection) -> bool:
    """Whether the score term of ``flow`` has mean zero and its inverse exists, so that the path gradient is right.

    The log-determinant of a ConvFlow layer with a leaky ReLU jumps where its argument changes sign. The parameters move
    that place, so ``E[∇ log q]`` gets a boundary term; the path gradient, which leaves the score out, then diverges.

    Args:
        flow: from base to sample.
    """
    return flow.has_inverse and flow.continuous_log_det
