"""The logit map between pixel values in the unit interval and the reals."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from vi_flows.transforms.image.base import ImageBijection

__all__ = ["Logit"]


class Logit(ImageBijection):
    r"""``y = logit(s)``, ``s = α + (1 − α) v`` (Karami et al., section 5; Dinh et al., *Real NVP*, section 4.1).

    ``log|det| = Σ [log(1 − α) − log s − log(1 − s)]``. The lower end is kept off zero by ``α``; ``s`` is clipped to
    ``1 − ε`` with the machine's ``ε``, which a value just below 1 would otherwise round to.

    Args:
        alpha: ``α``; the papers' 1e-6 for MNIST and 0.05 for CIFAR-10.

    Raises:
        ValueError: ``alpha`` is not within (0, 1).
    """

    def __init__(self, alpha: float = 1e-6) -> None:
        super().__init__()
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be within (0, 1), got {alpha}")
        self.alpha = alpha
        self._low = -alpha / (1 - alpha)

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]  # as in the base class
        """``[−α/(1 − α), 1]``, which all values of the inverse are in."""
        return constraints.independent(constraints.interval(self._low, 1.0), 3)

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Unit interval to reals."""
        self._check_image(x)
        eps = torch.finfo(x.dtype).eps
        s = (self.alpha + (1 - self.alpha) * x).clamp(max=1 - eps)
        log_s, log_rest = s.log(), torch.log1p(-s)
        ladj = torch.log1p(s.new_tensor(-self.alpha)) - log_s - log_rest
        return log_s - log_rest, ladj.flatten(-3).sum(-1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Reals to the unit interval (below zero by at most ``α/(1 − α)``), whose ends rounding does not pass."""
        self._check_image(y)
        ladj = F.logsigmoid(y) + F.logsigmoid(-y) - torch.log1p(y.new_tensor(-self.alpha))
        x = torch.lerp(y.new_full((), self._low), y.new_ones(()), torch.sigmoid(y))
        return x, ladj.flatten(-3).sum(-1)
