"""Several models of one shape as one model whose layers hold a set of parameters for each.

Data are ``(…, M, features)``: the model's index is the last dimension but one, all others are rows. Members and stack
share memory: a member's parameters and buffers become views of the stacked ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from vi_flows.kernels import conv_flow_forward, conv_flow_inverse
from vi_flows.nn import BatchNorm
from vi_flows.transforms import Bijection, ConvFlowStack

__all__ = ["MemberStreams", "stack_modules"]


class _Products(torch.autograd.Function):
    """``y[:, m] = x[:, m] Wₘᵀ + bₘ``: each member's own matrix products, written straight into the stacked result.

    One batched product would be a copy or a slower routine: the members' rows are interleaved.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``(N, M, i)``, ``(M, o, i)`` and ``(M, o)`` to ``(N, M, o)``."""
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        y = x.new_empty(x.shape[0], *weight.shape[:2])
        for m, w in enumerate(weight):
            if bias is None:
                torch.mm(x[:, m], w.t(), out=y[:, m])
            else:
                torch.addmm(bias[m], x[:, m], w.t(), out=y[:, m])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Gradients of the three."""
        x, weight = ctx.saved_tensors
        g_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        g_weight = torch.empty_like(weight)
        for m, w in enumerate(weight):
            torch.mm(g[:, m].t(), x[:, m], out=g_weight[m])
            if g_x is not None:
                torch.mm(g[:, m], w, out=g_x[:, m])
        return g_x, g_weight, g.sum(0) if ctx.has_bias else None


def _adopt(stack: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Register the layers' tensors, stacked, and make the layers' own tensors views of them."""
    own: list[tuple[str, Tensor | None]] = [*layers[0]._parameters.items(), *layers[0]._buffers.items()]
    for name, first in own:
        parts = None if first is None else [getattr(layer, name) for layer in layers]
        stacked = None if parts is None else torch.stack([part.detach() for part in parts])
        if name in layers[0]._buffers:
            stack.register_buffer(name, stacked)
        else:
            stack.register_parameter(
                name, None if stacked is None or first is None else nn.Parameter(stacked, first.requires_grad)
            )
        for part, view in zip(parts or (), () if stacked is None else stacked, strict=True):
            part.data = view


class StackedLinear(nn.Module):
    """``nn.Linear`` of each member."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        _adopt(self, layers)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, M, i)`` to ``(…, M, o)``.

        Raises:
            ValueError: the rows have no dimension of members.
        """
        if x.dim() < 2 or x.shape[-2] != len(self.weight):
            raise ValueError(
                "a part of the model folds its rows (as a coupling does), so that seeds of it can't be stacked: train "
                "them one by one"
            )
        y = _Products.apply(x.reshape(-1, *x.shape[-2:]), self.weight, self.bias)
        return y.reshape(*x.shape[:-1], y.shape[-1])


class StackedBatchNorm(nn.Module):
    """Batch normalisation of each member: that of all members' features side by side."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, layers: Sequence[BatchNorm]) -> None:
        super().__init__()
        _adopt(self, layers)
        momentum = layers[0].momentum
        assert momentum is not None  # ours average exponentially
        self.eps, self.momentum = layers[0].eps, momentum

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(…, M, features)`` over all but the last two dimensions."""
        if self.training:
            self.num_batches_tracked += 1
        y = F.batch_norm(
            x.reshape(-1, self.weight.numel()),
            self.running_mean.view(-1),
            self.running_var.view(-1),
            self.weight.view(-1),
            self.bias.view(-1),
            self.training,
            self.momentum,
            self.eps,
        )
        return y.reshape(x.shape)


class StackedConvFlow(Bijection):
    """A ConvFlow stack of each member; :class:`ConditionalConvFlow` takes its tensors as they are."""

    theta: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, layers: Sequence[ConvFlowStack]) -> None:
        super().__init__(event_dim=1)
        self.spec = layers[0].spec
        _adopt(self, layers)

    @property
    def continuous_log_det(self) -> bool:
        """Whether the activation's slope has no jump."""
        return self.spec.h.continuous_slope

    def _each(self, run: Callable[..., tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
        # One call a member, with its rows packed: with a member's parameters as those of "its row", the kernel would
        # work on tiles that are mostly empty.
        members = zip(x.unbind(-2), self.theta, self.weight, self.bias, strict=True)
        outs, ladjs = zip(*(run(*member, self.spec) for member in members), strict=True)
        return torch.stack(outs, -2), torch.stack(ladjs, -1)

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(…, M, d)`` to the same and ``(…, M)``."""
        return self._each(conv_flow_forward, x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``(…, M, d)`` to the same and ``(…, M)``."""
        return self._each(conv_flow_inverse, y)


_STACKED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: StackedLinear,
    BatchNorm: StackedBatchNorm,
    ConvFlowStack: StackedConvFlow,
}


def stack_modules(modules: Sequence[nn.Module]) -> nn.Module:
    """One module for data ``(…, M, features)`` that does what the ``M`` modules do to their own.

    Args:
        modules: of one architecture. Their parameters and buffers become views of the stacked ones, which have the
            same names and ``M`` as an additional first dimension.

    Raises:
        ValueError: there is none, they differ in architecture, or a layer's kind can't be stacked.
    """
    if not modules:
        raise ValueError("there is nothing to stack")
    shapes = [{name: t.shape for name, t in module.state_dict().items()} for module in modules]
    if any(shape != shapes[0] for shape in shapes) or any(str(m) != str(modules[0]) for m in modules):
        raise ValueError("the models differ in architecture")
    if any(isinstance(layer, nn.Dropout) for layer in modules[0].modules()):
        raise ValueError("models with dropout can't be stacked: its draws are not a member's own")
    stack = copy.deepcopy(modules[0])
    for path, layer in list(modules[0].named_modules()):
        if not (layer._parameters or layer._buffers):
            continue
        kind = _STACKED.get(type(layer))
        if kind is None:
            raise ValueError(f"layers of type {type(layer).__name__} can't be stacked ({path})")
        stack.set_submodule(path, kind([module.get_submodule(path) for module in modules]))
    return stack


class MemberStreams(TorchFunctionMode):
    """Within, a draw of shape ``(…, M, n)`` from torch's global generator takes each member's part from its own one.

    A member therefore sees the numbers that it would draw if it were alone.

    Args:
        generators: one a member.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.generators = generators

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Draw, or do what was asked."""
        kwargs = {} if kwargs is None else kwargs
        if func not in (torch.rand, torch.randn) or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        size = torch.Size(args if isinstance(args[0], int) else args[0])
        if len(size) < 2 or size[-2] != len(self.generators):
            raise ValueError(f"a draw of shape {tuple(size)} has no dimension of {len(self.generators)} members")
        parts = [func(size[:-2] + size[-1:], **{**kwargs, "generator": g}) for g in self.generators]
        return torch.stack(parts, -2)
