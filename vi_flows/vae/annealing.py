"""Where the annealed chains of a VAE begin, and the coordinates that they move in."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from vi_flows.evaluation import AISStart
from vi_flows.vae.guide import AmortizedGuide
from vi_flows.vae.model import LatentChain
from vi_flows.vae.vae import VAE

__all__ = ["AnnealingSpace", "ForcePrecision", "StartName"]

StartName = Literal["prior", "gaussian", "guide"]
"""``prior``: the model's ``p(z)``. ``gaussian``: the Gaussian with the mean and the covariance of the guide's draws.
``guide``: ``q(z|x)`` itself, for which every flow must have an inverse."""

ForcePrecision = Literal["float32", "bf16"]
"""Of the networks' products in the gradients *inside* a trajectory. A trajectory that follows any function of its
position, rounded or not, keeps volumes and can be walked back; its ends are weighed in float32, so that every step
leaves the exact density invariant and bf16 costs acceptance at most (Neal 2011, section 5.4)."""

MOMENT_DRAWS = 2000


class _PriorStart:
    """``p(z)`` for ``num_rows`` images."""

    def __init__(self, model: LatentChain, num_rows: int) -> None:
        self.model, self.num_rows = model, num_rows

    def rsample(self, sample_shape: torch.Size) -> Tensor:
        latents = torch.cat(self.model.sample_latents(sample_shape.numel() * self.num_rows), -1)
        return latents.reshape(*sample_shape, self.num_rows, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.model.log_prior(value.split(self.model.latent_dims, -1))


class _GuideStart:
    """``q(z|x)``."""

    def __init__(self, guide: AmortizedGuide, x: Tensor) -> None:
        if not guide.has_inverse:
            raise ValueError(
                "a flow of the guide has no inverse, so that its density is known at its own draws only: "
                "let the chains start at gaussian or prior"
            )
        self.guide, self.x = guide, x

    def rsample(self, sample_shape: torch.Size) -> Tensor:
        latents, _ = self.guide.sample_and_log_prob(self.x, sample_shape.numel())
        return torch.cat(latents, -1).reshape(*sample_shape, len(self.x), -1)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.guide.log_prob(self.x, value.split(self.guide.latent_dims, -1))


class AnnealingSpace:
    r"""Both ends of a VAE's annealing path in coordinates ``u`` with ``z = μ + L u``.

    ``μ`` and ``L Lᵀ`` are the mean and the covariance of 2000 draws of the guide for each image, so that HMC with unit
    mass takes long steps in ``u`` although the posterior is narrow in some directions of ``z`` and wide in others.
    All latents of an image lie side by side, from the top down. Densities are those of ``z``: the constant
    ``log|det L|`` that separates them from those of ``u`` cancels in every weight and acceptance.

    Args:
        vae: model and guide; their parameters should need no gradients.
        x: images ``(B, D)`` that :meth:`LatentChain.rows` has let pass.
        name: where the path begins, see :data:`StartName`.
        draws_at_once: of an image, to bound the memory.
        forces: see :data:`ForcePrecision`.

    Raises:
        ValueError: the start is ``guide`` and a flow of the guide has no inverse.
        FloatingPointError: the guide's draws are not finite.
    """

    def __init__(
        self,
        vae: VAE,
        x: Tensor,
        name: StartName,
        draws_at_once: int = MOMENT_DRAWS,
        forces: ForcePrecision = "float32",
    ) -> None:
        self.model, self.x, self.forces = vae.model, x, forces
        self._own: AISStart | None = None
        if name == "prior":
            self._own = _PriorStart(vae.model, len(x))
        elif name == "guide":
            self._own = _GuideStart(vae.guide, x)
        self.mean, self.factor = _moments(vae.guide, x, min(draws_at_once, MOMENT_DRAWS))
        self._log_det = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def to_latents(self, u: Tensor) -> Tensor:
        """``z = μ + L u``, ``(chains, B, d)``."""
        return torch.baddbmm(self.mean.unsqueeze(1), u.transpose(0, 1), self.factor.mT).transpose(0, 1)

    def from_latents(self, z: Tensor) -> Tensor:
        """``u = L⁻¹ (z − μ)``, ``(chains, B, d)`` or ``(B, d)``."""
        points = (z - self.mean).reshape(-1, *self.mean.shape)
        u = torch.linalg.solve_triangular(self.factor, points.permute(1, 2, 0), upper=False)
        return u.permute(2, 0, 1).reshape(z.shape)

    def log_joint(self, u: Tensor) -> Tensor:
        """``log p(x, z(u))``."""
        return self.model.log_joint(self.x, self.to_latents(u), look=False)

    def surrogate(self, u: Tensor) -> Tensor:
        """Of another value than :meth:`log_joint`, but of the same gradient to ``forces``' precision, for less work."""
        z = self.to_latents(u)
        # The weights are cast anew each time: autocast keeps only copies of those that need gradients.
        with torch.autocast(z.device.type, torch.bfloat16, enabled=self.forces == "bf16", cache_enabled=False):
            return self.model.log_joint_surrogate(self.x, z)

    def rsample(self, sample_shape: torch.Size) -> Tensor:
        """Draws of the start, in ``u``."""
        if self._own is None:
            shape = (*sample_shape, *self.mean.shape)
            return torch.randn(shape, dtype=self.mean.dtype, device=self.mean.device)
        return self.from_latents(self._own.rsample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """``log s(z(u))`` of the start ``s``."""
        if self._own is None:
            constant = 0.5 * math.log(2 * math.pi) * value.shape[-1] + self._log_det
            return -0.5 * value.square().sum(-1) - constant
        return self._own.log_prob(self.to_latents(value))


@torch.no_grad()
def _moments(guide: AmortizedGuide, x: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
    """Mean ``(B, d)`` and Cholesky factor ``(B, d, d)`` of the guide's draws; summed about a rough mean."""

    def draw(size: int) -> Tensor:
        return torch.cat(guide.sample_and_log_prob(x, size)[0], -1)

    shift = draw(at_once).mean(0)
    first = torch.zeros_like(shift, dtype=torch.float64)
    second = torch.zeros_like(first).diag_embed()
    for done in range(0, MOMENT_DRAWS, at_once):
        centered = (draw(min(at_once, MOMENT_DRAWS - done)) - shift).transpose(0, 1)
        first = first + centered.double().sum(1)
        second = second + (centered.mT @ centered).double()
    first = first / MOMENT_DRAWS
    covariance = second / MOMENT_DRAWS - first.unsqueeze(-1) * first.unsqueeze(-2)
    finite = covariance.isfinite().all(-1).all(-1)
    if not finite.all():
        bad = int((~finite).nonzero()[0])
        raise FloatingPointError(
            f"the guide's draws for row {bad} have no finite covariance: the guide has diverged; let the chains "
            "start at the prior (--ais-start prior)"
        )
    # A dimension that hardly varies, or rounding, must not end the factorisation.
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    variances.add_(1e-6 * variances.mean(-1, keepdim=True) + 1e-12)
    return (shift + first).to(x.dtype), torch.linalg.cholesky(covariance).to(x.dtype)
