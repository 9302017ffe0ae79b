"""Maps from the real line to supports: PyTorch's, and a simplex whose small parts keep their digits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import IndependentTransform, StickBreakingTransform, Transform, biject_to, constraints
from torch.nn.functional import logsigmoid, pad

__all__ = ["StickBreaking", "to_support"]


class StickBreaking(StickBreakingTransform):
    r"""PyTorch's map ``ℝ^{K−1} → simplex`` on the same coordinates, in logarithms throughout.

    With ``u_k = x_k − log(K − k)``, the part ``y_k = σ(u_k) Π_{j<k} σ(−u_j)`` and the last one takes what is left.
    PyTorch computes ``σ(−u)`` as ``1 − σ(u)``, which near 0 knows multiples of 6e-8 only (in ``float32``), and what is
    left as one minus a sum: a last part below that is lost, and with it the mass there of a sparse Dirichlet law.
    ``log|det| = Σ_k (log y_k + log σ(−u_k))``.
    """

    def _logits(self, x: Tensor) -> Tensor:
        return x - torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device).log()

    def _call(self, x: Tensor) -> Tensor:
        u = self._logits(x)
        log_y = pad(logsigmoid(u), (0, 1)) + pad(logsigmoid(-u).cumsum(-1), (1, 0))
        return log_y.exp().clamp(min=torch.finfo(x.dtype).tiny)

    def _inverse(self, y: Tensor) -> Tensor:
        left = y[..., 1:].flip(-1).cumsum(-1).flip(-1).clamp(min=torch.finfo(y.dtype).tiny)
        u = y[..., :-1].log() - left.log()
        return u - self._logits(torch.zeros_like(u))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """See the class."""
        u = self._logits(x)
        log_left = logsigmoid(-u)
        log_y = logsigmoid(u) + pad(log_left.cumsum(-1), (1, 0))[..., :-1]
        return (log_y + log_left).sum(-1)


def to_support(support: constraints.Constraint) -> Transform:
    """The map from the real line to a support: ``biject_to(support)``, a simplex by :class:`StickBreaking`."""
    base = support
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    if base is not constraints.simplex:
        return biject_to(support)
    dims = support.event_dim - base.event_dim
    return IndependentTransform(StickBreaking(), dims) if dims else StickBreaking()
