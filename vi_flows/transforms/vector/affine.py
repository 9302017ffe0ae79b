"""Learned location, scale and mixing of the dimensions: the linear layer of flow guides."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vi_flows.nn.precision import with_32_bits
from vi_flows.settings import check_tensors
from vi_flows.transforms.base import Bijection, expand_ladj

__all__ = ["AFFINE_KINDS", "Affine", "solve_lower"]

AFFINE_KINDS = ("full", "low_rank", "diagonal")
"""Kinds of the linear part."""


class Affine(Bijection):
    r"""``x = loc + s ⊙ (M z)`` with ``s = exp(log_scale)`` and a linear part ``M`` of one of three kinds.

    * ``full``: ``M`` unit lower triangular, so ``diag(s) M`` is a Cholesky factor; ``log|det| = Σ log s``.
    * ``low_rank``: ``M = I + U Uᵀ`` with ``U`` of shape ``(d, rank)``: every value of ``U`` is allowed,
      ``log|det| = Σ log s + log det(I + UᵀU)`` (matrix determinant lemma), the inverse is Woodbury's.
    * ``diagonal``: ``M = I``.

    The scale is learned through its logarithm, so that an optimizer with steps of a fixed size reaches scales of any
    magnitude in few of them.

    Args:
        loc: the initial location, shape ``(d,)``.
        init_scale: the initial scale of every dimension.
        kind: see above.
        rank: of ``U``; default: ``√d``, rounded.
        gain: ``lower``, the parameters of a full ``M``, holds its entries divided by ``gain``, so that optimizers with
            steps of a fixed size take smaller ones in ``M`` where it is below 1.

    Raises:
        TypeError: ``loc`` is no tensor.
        ValueError: an unknown kind, a ``loc`` that is no vector of floating-point numbers, a scale or gain that is not
            positive and finite, or a rank outside 1…d.
    """

    _rows_cols: Tensor

    def __init__(
        self, loc: Tensor, init_scale: float = 0.1, kind: str = "full", rank: int | None = None, gain: float = 1.0
    ) -> None:
        super().__init__(event_dim=1)
        if kind not in AFFINE_KINDS:
            raise ValueError(f"unknown affine part {kind!r}; choose one of {', '.join(AFFINE_KINDS)}")
        check_tensors(loc=loc)
        if loc.dim() != 1 or not loc.numel() or not loc.is_floating_point():
            raise ValueError(
                f"loc must be a vector of floating-point numbers, got a {loc.dtype} tensor of {tuple(loc.shape)}"
            )
        for name, value in (("init_scale", init_scale), ("gain", gain)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        dim = loc.shape[-1]
        rank = max(1, round(dim**0.5)) if rank is None else rank
        if not 1 <= rank <= dim:
            raise ValueError(f"rank must be within 1…{dim}, got {rank}")
        self.kind = kind
        self.gains = {"lower": gain} if kind == "full" else {}
        self.loc = nn.Parameter(loc.detach().clone())
        self.log_scale = nn.Parameter(torch.full_like(loc, init_scale).log())
        if kind == "full":
            self.lower = nn.Parameter(loc.new_zeros(dim * (dim - 1) // 2))
            self.register_buffer("_rows_cols", torch.tril_indices(dim, dim, -1, device=loc.device), persistent=False)
        elif kind == "low_rank":
            # U = 0 is a stationary point of M, so the start is near it and not on it.
            self.factor = nn.Parameter(0.1 * torch.randn(dim, rank, dtype=loc.dtype, device=loc.device) / dim**0.5)

    @property
    def input_dim(self) -> int:
        """Number of dimensions."""
        return self.loc.shape[-1]

    def matrix(self) -> Tensor:
        """``diag(s) M``, shape ``(d, d)``: the scale matrix of the Gaussian that a standard normal is mapped to."""
        eye = torch.eye(self.input_dim, dtype=self.loc.dtype, device=self.loc.device)
        return self._linear(eye).T * self.log_scale.exp()[:, None]

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``loc + s ⊙ (M z)``."""
        self._check(x)
        y = self.loc + self.log_scale.exp() * self._linear(x)
        return y, expand_ladj(self._log_det(), y, 1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``M⁻¹ ((x − loc) / s)``."""
        self._check(y)
        v = (y - self.loc) * (-self.log_scale).exp()
        if self.kind == "full":
            v = solve_lower(self._unit_lower(), v)
        elif self.kind == "low_rank":
            inner = (v @ self.factor).reshape(-1, self.factor.shape[1])
            # Positive definite; PyTorch's `solve` has wrong forward-mode derivatives under `vmap`.
            capacitance, columns = with_32_bits(self._capacitance(), inner.T)
            solved = torch.cholesky_solve(columns, torch.linalg.cholesky(capacitance)).T.to(v.dtype)
            v = v - solved.reshape(*v.shape[:-1], self.factor.shape[1]) @ self.factor.T
        return v, -expand_ladj(self._log_det(), v, 1)

    @torch.no_grad()
    def set_gaussian(self, loc: Tensor, covariance: Tensor) -> None:
        """Make the layer map a standard normal to ``N(loc, covariance)``, as well as its kind can.

        Args:
            loc: shape ``(d,)``.
            covariance: shape ``(d, d)``, positive definite, or ``(d,)`` for a diagonal one.

        Raises:
            ValueError: of another shape.
            torch.linalg.LinAlgError: the covariance is not positive definite; the layer stays as it was.
        """
        dim = self.input_dim
        if loc.shape != (dim,) or covariance.shape not in ((dim,), (dim, dim)):
            raise ValueError(
                f"loc and covariance must be of shape ({dim},) and ({dim}, {dim}) or ({dim},), got {tuple(loc.shape)} "
                f"and {tuple(covariance.shape)}"
            )
        covariance = covariance.to(torch.float64)
        variances = covariance if covariance.dim() == 1 else covariance.diagonal()
        # Only a full M needs all of it to be positive definite; the others are as near as they can be.
        tril, failed = (
            torch.linalg.cholesky_ex(covariance) if covariance.dim() == 2 and self.kind == "full" else (None, 0)
        )
        if failed or not (covariance.isfinite().all() and (variances > 0).all()):
            raise torch.linalg.LinAlgError("covariance must be positive definite and finite")
        self.loc.copy_(loc)
        if covariance.dim() == 1:
            if self.kind == "full":
                self.lower.zero_()
            elif self.kind == "low_rank":
                # M is diagonal, and its entries taken into the scale; U = 0 would be a stationary point.
                gain = torch.full_like(covariance, 0.1)
                gain[self.factor.shape[1] :] = 0.0
                self.factor.copy_(torch.diag(gain)[:, : self.factor.shape[1]])
                self.log_scale.copy_(0.5 * covariance.log() - torch.log1p(gain.square()))
                return
            self.log_scale.copy_(0.5 * covariance.log())
            return
        if tril is not None:
            scale = tril.diagonal()
            rows, cols = self._rows_cols
            self.lower.copy_((tril / scale[:, None])[rows, cols] / self.gains["lower"])
            self.log_scale.copy_(scale.log())
            return
        sd = covariance.diagonal().sqrt()
        if self.kind == "low_rank":
            rank = self.factor.shape[1]
            values, vectors = torch.linalg.eigh(covariance / sd[:, None] / sd)
            rest = values[:-rank].clamp(min=1e-6).mean() if rank < len(values) else values[:1].clamp(min=1e-6).mean()
            gain = ((values[-rank:].clamp(min=1e-6) / rest).sqrt() - 1).clamp(min=1e-6).sqrt()
            self.factor.copy_(vectors[:, -rank:] * gain)
            sd = sd * rest.sqrt()
        self.log_scale.copy_(sd.log())

    def extra_repr(self) -> str:
        """Size and kind."""
        return f"input_dim={self.input_dim}, kind={self.kind}"

    def _check(self, value: Tensor) -> None:
        self._check_last_dim(value, self.input_dim)
        if self.kind != "diagonal":
            self._check_type(value, self.loc)

    def _unit_lower(self) -> Tensor:
        dim = self.input_dim
        matrix = torch.zeros(dim * dim, dtype=self.loc.dtype, device=self.loc.device)
        rows, cols = self._rows_cols
        matrix = matrix.index_copy(0, rows * dim + cols, self.gains["lower"] * self.lower).reshape(dim, dim)
        return matrix + torch.eye(dim, dtype=self.loc.dtype, device=self.loc.device)

    def _linear(self, z: Tensor) -> Tensor:
        if self.kind == "full":
            return z @ self._unit_lower().T
        if self.kind == "low_rank":
            return z + (z @ self.factor) @ self.factor.T
        return z

    def _capacitance(self) -> Tensor:
        rank = self.factor.shape[1]
        return torch.eye(rank, dtype=self.loc.dtype, device=self.loc.device) + self.factor.T @ self.factor

    def _log_det(self) -> Tensor:
        log_det = self.log_scale.sum()
        if self.kind != "low_rank":
            return log_det
        return log_det + torch.linalg.slogdet(*with_32_bits(self._capacitance()))[1].to(log_det.dtype)


def solve_lower(matrix: Tensor, v: Tensor) -> Tensor:
    """``C⁻¹ v`` for vectors along the last dimension, all of them in one solve.

    PyTorch's solver broadcasts: given a batch of vectors, it would copy the matrix for each and solve one by one.

    Args:
        matrix: lower triangular, shape ``(d, d)``.
        v: shape ``(…, d)``.
    """
    matrix, columns = with_32_bits(matrix, v.reshape(-1, v.shape[-1]).T)
    return torch.linalg.solve_triangular(matrix, columns, upper=False).T.reshape(v.shape).to(v.dtype)
