"""The detached scorer: densities whose gradients pass through the points alone, as path gradients need them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution, Independent, Transform, TransformedDistribution

from vi_flows.distributions import FlowNormal
from vi_flows.transforms import Bijection

__all__ = [
    "GradientGate",
    "dreg_factor",
    "gradients_through",
    "inverse_with_detached_parameters",
    "supports_path_gradient",
    "transforms_of",
    "with_detached_parameters",
]

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

    Parameters and modules that are shared are detached wherever they are used. Buffers are copies: what ``run`` does to
    them (batch normalisation's running averages) is forgotten, because the same data were seen before.

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
    detached |= {
        f"{prefix}.{name}": buffer.clone()
        for prefix, part in within.named_modules()
        for name, buffer in part.named_buffers(recurse=False, remove_duplicate=False)
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


def transforms_of(distribution: Distribution) -> Iterator[Transform]:
    """The transforms that a distribution pushes its base through, within masks, expansions and ``to_event``, too.

    Args:
        distribution: of a site.
    """
    if isinstance(distribution, Independent | MaskedDistribution | ExpandedDistribution | TransformedDistribution):
        yield from transforms_of(distribution.base_dist)
    if isinstance(distribution, TransformedDistribution):
        yield from distribution.transforms
    if isinstance(distribution, FlowNormal) and distribution.bijection is not None:
        yield distribution.bijection


class _GradientsThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score: Callable[[Sequence[Tensor]], Sequence[Tensor]], *values: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            ctx.points = [value.detach().requires_grad_() for value in values]
            ctx.terms = list(score(ctx.points))
        return tuple(term.detach() for term in ctx.terms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pairs = [(t, grad) for t, grad in zip(ctx.terms, grads, strict=True) if t.requires_grad]
        if not pairs:
            return (None, *(None for _ in ctx.points))
        terms, grads = zip(*pairs, strict=True)
        # Kept, because the caller may go backwards twice; it is freed with the result.
        return (None, *torch.autograd.grad(terms, ctx.points, grads, retain_graph=True, allow_unused=True))


def gradients_through(
    values: Sequence[Tensor], score: Callable[[Sequence[Tensor]], Sequence[Tensor]]
) -> Sequence[Tensor]:
    """``score(values)`` with gradients through ``values`` alone, whatever else ``score`` reads.

    Parameters get none, wherever they are kept: in a module, in a closure, in Pyro's parameter store.

    Args:
        values: floating-point points.
        score: from the points, as leaves of a graph of their own, to tensors.
    """
    if not torch.is_grad_enabled():
        return score(values)
    return _GradientsThrough.apply(score, *values)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gate: GradientGate, event_dim: int, remainder: bool) -> Tensor:
        ctx.gate, ctx.event_dim, ctx.remainder = gate, event_dim, remainder
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        factor = ctx.gate.factor
        if factor is not None:
            factor = 2 - factor if ctx.remainder else factor
            grad = grad * factor.reshape(factor.shape + (1,) * ctx.event_dim)
        return grad, None, None, None


class GradientGate:
    """Multiplies the gradients that pass from importance weights back into draws by a factor known only afterwards.

    Attributes:
        factor: of the draws' batch shape; ``None`` lets the gradients pass. To be set before the backward pass.
    """

    def __init__(self) -> None:
        self.factor: Tensor | None = None

    def __call__(self, value: Tensor, event_dim: int) -> Tensor:
        """``value`` behind the gate.

        Args:
            value: draws, ``batch_shape + event_shape``.
            event_dim: their rightmost dimensions that the factor doesn't have.
        """
        return _ScaleGradient.apply(value, self, event_dim, False)

    def with_statistics(self, value: Tensor, event_dim: int) -> Tensor:
        """``value`` twice along its first dimension, so that gradients through batch statistics pass in full.

        The statistics of a minibatch are the same for ``value`` and for ``value`` twice. What is computed from the
        first half alone sends its own gradient ``d`` into that half, and half of the gradient ``s`` that goes through
        the statistics into each. With factors ``f`` and ``2 − f`` before the halves, ``f (d + s/2) + (2 − f) s/2`` is
        ``f d + s``: only the draw's own weight is gated, as the doubly reparameterised gradient asks.

        Args:
            value: see :meth:`__call__`; particles first.
            event_dim: see :meth:`__call__`.
        """
        return torch.cat([self(value, event_dim), _ScaleGradient.apply(value, self, event_dim, True)])


def dreg_factor(log_weights: Tensor, kl_weight: float | Tensor = 1.0) -> Tensor:
    r"""What the doubly reparameterised gradient multiplies the path gradients of IWAE by, ``1 − β (1 − ŵ_k)``.

    The score term of weights ``p(x|z) (p(z)/q(z|x))^β`` is ``−β Σ_k ŵ_k ∂log q(z_k)``; reparameterised once more
    (Tucker, Lawson, Gu and Maddison 2019, eq. 7) it is ``−β Σ_k (ŵ_k − ŵ_k²) ∂log w_k/∂z_k ∂z_k/∂φ``, to be added to
    the path's ``Σ_k ŵ_k ∂log w_k/∂z_k ∂z_k/∂φ``. At ``β = 1`` that leaves ``ŵ_k²``.

    Args:
        log_weights: ``log w``, particles first.
        kl_weight: ``β``.
    """
    return 1 - kl_weight * (1 - torch.softmax(log_weights.detach(), 0))
