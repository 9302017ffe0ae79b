"""Who else looks at the operations that run now: written backward passes and in-place work are for nobody's eyes."""

from __future__ import annotations

from contextvars import ContextVar, Token

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["is_recomputed", "is_recorded", "is_transformed", "may_be_looked_at", "recomputation"]

_BATCHED_GRADIENTS = "VmapMode"  # the dispatch key of PyTorch's other vmap
_RECOMPUTED: ContextVar[bool] = ContextVar("recomputed", default=False)


class recomputation:  # a context, used as a function would be
    """Marks a pass that happened before and is only made again for its intermediate values.

    It can be entered again and again: second derivatives compute a pass a second time.
    """

    def __init__(self) -> None:
        self._tokens: list[Token[bool]] = []

    def __enter__(self) -> None:
        self._tokens.append(_RECOMPUTED.set(True))

    def __exit__(self, *error: object) -> None:
        _RECOMPUTED.reset(self._tokens.pop())


def is_recomputed() -> bool:
    """Whether this pass was made before: what counts passes, such as running averages, must not count it again."""
    return _RECOMPUTED.get()


def is_recorded() -> bool:
    """Whether operations become part of a program: ``torch.compile``, ``torch.jit.trace``, ``make_fx``, a mode.

    What is decided by the tensors' numbers would then be decided for all later ones.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def is_transformed() -> bool:
    """Whether ``torch.func``, forward-mode differentiation or batched gradients need each operation for itself.

    Gradients are batched by ``torch.autograd.grad(…, is_grads_batched=True)`` and by ``torch.autograd.functional``'s
    ``vectorize=True``, which have a ``vmap`` of their own: their tensors have no memory that a kernel could read.
    """
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._dispatch_tls_is_dispatch_key_included(_BATCHED_GRADIENTS)
    )


def may_be_looked_at(x: Tensor) -> bool:
    """Whether a check of a tensor's numbers is in place: it becomes no part of a program, and nothing waits for it.

    Each look at a GPU's numbers holds up what is queued after it: there evaluations alone, without gradients, may.

    Args:
        x: to be checked.
    """
    if is_recorded() or is_transformed():
        return False
    if x.device.type == "cpu":
        return True
    return not (torch.is_grad_enabled() or (x.is_cuda and torch.cuda.is_current_stream_capturing()))
