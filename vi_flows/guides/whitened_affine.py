"""The affine part of a flow guide, learned in coordinates where the start is standard normal."""

from __future__ import annotations

import torch
from torch import Tensor

from vi_flows.transforms import Affine
from vi_flows.transforms.vector.affine import solve_lower

__all__ = ["WhitenedAffine"]


class WhitenedAffine(Affine):
    r"""``x = c + C (loc + s ⊙ (M z))``: an :class:`~vi_flows.transforms.Affine` layer after a fixed one.

    ``c`` and the lower triangular ``C`` are buffers. Optimizers such as Adam take steps of a fixed size in every
    parameter; with ``C`` the Cholesky factor of a rough covariance, a step means the same fraction of a posterior
    standard deviation in every direction, whatever the units of the model's parameters and their correlations.

    Args:
        center: ``c``, shape ``(d,)``.
        init_scale: the initial ``s``; ``C`` starts at the identity.
        kind: of the learned part, see :class:`~vi_flows.transforms.Affine`.
        rank: of a low-rank part.
        gain: of the learned part, see :class:`~vi_flows.transforms.Affine`.
        dense: whether ``C`` is a full triangle, or else diagonal.

    Raises:
        ValueError: see :class:`~vi_flows.transforms.Affine`.
    """

    center: Tensor
    whitening: Tensor

    def __init__(
        self,
        center: Tensor,
        init_scale: float = 0.1,
        kind: str = "full",
        rank: int | None = None,
        dense: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__(torch.zeros_like(center), init_scale, kind, rank, gain)
        self.register_buffer("center", center.detach().clone())
        unit = torch.eye(len(center)).to(center) if dense else torch.ones_like(center)
        self.register_buffer("whitening", unit)

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``c + C (loc + s ⊙ (M z))``."""
        y, ladj = super().forward_and_ladj(x)
        y = y * self.whitening if self.whitening.dim() == 1 else y @ self.whitening.T
        return self.center + y, ladj + self._log_det_whitening()

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``M⁻¹ ((C⁻¹ (x − c) − loc) / s)``."""
        self._check_last_dim(y, self.input_dim)
        v = y - self.center
        v = v / self.whitening if self.whitening.dim() == 1 else solve_lower(self.whitening, v)
        x, ladj = super().inverse_and_ladj(v)
        return x, ladj - self._log_det_whitening()

    def matrix(self) -> Tensor:
        """``C diag(s) M``, shape ``(d, d)``."""
        matrix = super().matrix()
        return self.whitening[:, None] * matrix if self.whitening.dim() == 1 else self.whitening @ matrix

    @torch.no_grad()
    def set_gaussian(self, loc: Tensor, covariance: Tensor) -> None:
        """Make the layer map a standard normal to ``N(loc, covariance)``, as well as its kind can.

        The fixed part takes all of it that it can hold; the learned part starts at the rest: the identity, or, where
        ``C`` is diagonal, the correlations.

        Args:
            loc: shape ``(d,)``.
            covariance: shape ``(d, d)``, positive definite, or ``(d,)`` for a diagonal one.

        Raises:
            torch.linalg.LinAlgError: the covariance is not positive definite.
        """
        covariance = covariance.to(torch.float64)
        self.center.copy_(loc)
        rest = torch.ones(self.input_dim, dtype=torch.float64)
        if covariance.dim() == 2 and self.whitening.dim() == 2:
            self.whitening.copy_(torch.linalg.cholesky(covariance))
            rest = torch.eye(self.input_dim, dtype=torch.float64)
        else:
            scale = (covariance if covariance.dim() == 1 else covariance.diagonal()).sqrt()
            self.whitening.copy_(torch.diag(scale) if self.whitening.dim() == 2 else scale)
            if covariance.dim() == 2:
                rest = covariance / scale[:, None] / scale
        super().set_gaussian(torch.zeros(self.input_dim, dtype=torch.float64), rest)

    def _log_det_whitening(self) -> Tensor:
        diagonal = self.whitening if self.whitening.dim() == 1 else self.whitening.diagonal()
        return diagonal.log().sum()
