"""One optimizer step: gradient, norm, clipping, update, and what is done where a number is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vi_flows.parallel import ALONE, Ranks

__all__ = ["OptimizerStep"]


class OptimizerStep:
    r"""``g = ∂loss/∂θ``, scaled by ``min(1, max_norm / (‖g‖ + 10⁻⁶))``, handed to an optimizer.

    The loss, what is watched with it and the norm are read back together, once, before anything is updated: a step
    with a NaN or an infinity among them changes no parameter. What happens then is the caller's policy.

    For a loop that must not read anything back (a recorded CUDA graph), :meth:`differentiate` and :meth:`update` are
    the two halves, neither of which does.

    Where several processes train one model, ``g`` and all figures are sums over the processes, so that norm, policy and
    update are the same in each. Nothing else has to be added up: batch normalisation sees to its own moments.

    Args:
        optimizer: over the parameters to train.
        not_finite: the policy: gets the figures that are not all finite, one list a model (see :meth:`__call__`), and
            raises, or returns to have the step left out.
        max_norm: largest norm of the gradient; infinite for no clipping. May be set anew between steps.
        stacked: the first dimension of every parameter counts models that are trained at once: losses and norms are
            ``(M,)``, and each model is clipped by its own norm.
        ranks: the processes that train the model; each gives its own part of the loss.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        not_finite: Callable[[list[list[float]]], None],
        max_norm: float = math.inf,
        stacked: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.optimizer = optimizer
        self.not_finite = not_finite
        self.max_norm = max_norm
        self.stacked = stacked
        self.ranks = ranks

    def _gradients(self) -> list[Tensor]:
        return [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def differentiate(self, loss: Tensor, *figures: Tensor) -> Tensor:
        """Replace the gradients by those of ``loss``; returns their norm, a scalar or ``(M,)``, without a graph.

        Args:
            loss: of this process.
            figures: what else to add up over the processes, in place.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.sum().backward() if self.stacked else loss.backward()
        gradients = self._gradients()
        self.ranks.add_([*gradients, *figures])
        if not self.stacked:
            return torch.nn.utils.get_total_norm(gradients)
        parts = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
        return torch.linalg.vector_norm(parts, dim=0)

    @torch.no_grad()
    def update(self, norm: Tensor) -> None:
        """Clip by ``norm`` (from :meth:`differentiate`) and update the parameters."""
        if math.isfinite(self.max_norm):
            factors = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
            for g in self._gradients():
                g.mul_(factors.view(-1, *(1,) * (g.dim() - 1)) if self.stacked else factors)
        self.optimizer.step()

    def __call__(self, loss: Tensor, *watched: Tensor) -> list[list[float]] | None:
        """Take one step.

        Args:
            loss: a scalar with a graph, or ``(M,)`` where models are stacked.
            watched: more figures without a graph, of the same shape, that must be finite too.

        Returns:
            ``[loss, *watched, norm]``, a list a model (one list where they are not stacked), or ``None`` where the
            policy had the step left out.
        """
        sums = torch.stack([loss.detach(), *watched])
        norm = self.differentiate(loss, sums)
        figures = torch.stack([*sums, norm]).reshape(len(watched) + 2, -1).T.tolist()
        if not all(math.isfinite(figure) for one in figures for figure in one):
            self.not_finite(figures)
            return None
        self.update(norm)
        return figures
