"""What a flow guide pushes forward: a standard normal, or a mixture of Gaussians for a posterior of several modes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vi_flows.guides.start.mixture import MixtureStart

__all__ = ["Base", "GaussianMixture", "MixtureBase", "NormalBase", "base_like"]


class Base(nn.Module):
    """A base distribution with its parameters; draws are functions of standard normal ``noise``."""

    @abstractmethod
    def distribution(self) -> dist.TorchDistribution:
        """The distribution, of vectors of length ``d``; reparameterised but for weights, which it holds fixed."""

    @abstractmethod
    def detached(self) -> dist.TorchDistribution:
        """The same, handing no gradients to its parameters, as path gradients need it."""

    @abstractmethod
    def noise(self, num_draws: int) -> Tensor:
        """Standard normal draws ``(num_draws, width)`` for :meth:`place`."""

    @property
    @abstractmethod
    def num_components(self) -> int:
        """Components that have parameters; 0 for the standard normal."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers of noise that make one draw."""

    @abstractmethod
    def place(self, noise: Tensor) -> Tensor:
        """From noise ``(…, width)`` to draws ``(…, d)``."""

    @abstractmethod
    def strata(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """About that many draws ``(S, d)``, and weights ``(S,)`` of mean one.

        Averages ``mean(weights · f(draws))`` are unbiased for ``E f``, and so are their derivatives in all parameters.
        """


class NormalBase(Base):
    """``N(0, I_d)``, without parameters.

    Args:
        dim: ``d``.
        like: a tensor of the type and device of the draws.
    """

    zero: Tensor

    def __init__(self, dim: int, like: Tensor) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("zero", like.new_zeros(()), persistent=False)

    def distribution(self) -> dist.TorchDistribution:
        """Standard normal."""
        # Without validation, as the mixture: where a fit runs off, the loop must see NaN rather than an error of this.
        base = dist.Normal(self.zero, torch.ones_like(self.zero), validate_args=False)
        return base.expand([self.dim]).to_event(1)

    detached = distribution

    def noise(self, num_draws: int) -> Tensor:
        """The draws themselves."""
        return self.distribution().sample((num_draws,))

    @property
    def num_components(self) -> int:
        """None has parameters."""
        return 0

    @property
    def width(self) -> int:
        """``d``."""
        return self.dim

    def place(self, noise: Tensor) -> Tensor:
        """The identity."""
        return noise

    def strata(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """There is one stratum."""
        draws = self.noise(num_draws)
        return draws, draws.new_ones(num_draws)


class GaussianMixture(dist.MixtureSameFamily):
    """A mixture of multivariate normals whose draws carry gradients to locations and scales, at fixed weights."""

    has_rsample = True

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Without gradients, and of the chosen components alone."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """A component by its weight, and a reparameterised draw of it."""
        which = self.mixture_distribution.sample(torch.Size(sample_shape))
        parts, index = self.component_distribution, which[..., None, None]
        dim = self.event_shape[0]
        loc = parts.loc.expand(*which.shape, *parts.loc.shape[-2:])
        loc = loc.gather(-2, index.expand(*which.shape, 1, dim)).squeeze(-2)
        tril = parts.scale_tril.expand(*which.shape, *parts.scale_tril.shape[-3:])
        tril = tril.gather(-3, index[..., None].expand(*which.shape, 1, dim, dim)).squeeze(-3)
        return loc + (tril @ torch.randn_like(loc).unsqueeze(-1)).squeeze(-1)

    @property
    def mode(self) -> Tensor:
        """The location of the component where the density is highest among all locations."""
        locs = self.component_distribution.loc
        return locs[self.log_prob(locs).argmax()]


class MixtureBase(Base):
    r"""``Σ_k π_k N(m_k, L_k L_kᵀ)``, all learned.

    Each component is held as :class:`~vi_flows.guides.whitened_affine.WhitenedAffine` holds its Gaussian: a fixed
    ``N(c_k, C_k C_kᵀ)``, and ``m_k = c_k + C_k l_k``, ``L_k = C_k diag(s_k) (I + lower_k)`` with learned ``l_k``,
    ``s_k`` and strictly lower triangles, so that an optimizer's step is the same share of each component's own spread.

    Expectations are sums over the components, ``Σ_k π_k E_k f``, each with its own reparameterised draws: that is exact
    in the weights, and no component index is drawn (Roeder, Wu and Duvenaud 2017, section 5; Morningstar et al. 2021).

    Args:
        log_weights: ``log π``, shape ``(K,)``.
        locs: shape ``(K, d)``.
        trils: lower triangular, shape ``(K, d, d)``.
    """

    center: Tensor
    whitening: Tensor

    def __init__(self, log_weights: Tensor, locs: Tensor, trils: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(log_weights.log_softmax(-1).clone())
        self.loc = nn.Parameter(torch.zeros_like(locs))
        self.log_scale = nn.Parameter(torch.zeros_like(locs))
        # Contiguous, as a matrix of SciPy's is not: of another parameter, Pyro would train a copy.
        self.lower = nn.Parameter(torch.zeros_like(trils, memory_format=torch.contiguous_format))
        self.register_buffer("center", locs.clone())
        self.register_buffer("whitening", trils.clone())

    @classmethod
    def of(cls, found: MixtureStart, like: Tensor) -> MixtureBase:
        """A mixture in coordinates where it has mean 0 and covariance ``I``.

        Args:
            found: the mixture.
            like: a tensor of the type and device of the draws.
        """
        mean, covariance = found.moments()
        root = torch.linalg.cholesky(covariance)
        locs = torch.linalg.solve_triangular(root, (found.locs - mean).T, upper=False).T
        trils = torch.linalg.solve_triangular(root.expand_as(found.trils), found.trils, upper=False)
        return cls(found.log_weights.to(like), locs.to(like), trils.to(like))

    @property
    def num_components(self) -> int:
        """``K``."""
        return len(self.logits)

    @property
    def width(self) -> int:
        """``d + 1``: the first number chooses the component."""
        return self.loc.shape[-1] + 1

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """``log π``, ``m`` and ``L``, of shapes ``(K,)``, ``(K, d)`` and ``(K, d, d)``."""
        unit = torch.eye(self.loc.shape[-1]).to(self.loc) + self.lower.tril(-1)
        loc = self.center + (self.whitening @ self.loc.unsqueeze(-1)).squeeze(-1)
        return self.logits.log_softmax(-1), loc, self.whitening @ (self.log_scale.exp().unsqueeze(-1) * unit)

    def distribution(self) -> dist.TorchDistribution:
        """Weights without gradients: a drawn component hands none to them, :meth:`strata` does."""
        log_weights, loc, tril = self.components()
        return _mixture(log_weights.detach(), loc, tril)

    def detached(self) -> dist.TorchDistribution:
        """All without gradients."""
        return _mixture(*(part.detach() for part in self.components()))

    def noise(self, num_draws: int) -> Tensor:
        """``(num_draws, d + 1)``."""
        return torch.randn(num_draws, self.width, dtype=self.loc.dtype, device=self.loc.device)

    def place(self, noise: Tensor) -> Tensor:
        """The first number's rank among normal ones chooses the component."""
        log_weights, loc, tril = self.components()
        edges = log_weights.detach().exp().cumsum(-1)[:-1]
        which = torch.searchsorted(edges, torch.special.ndtr(noise[..., 0]).contiguous())
        return loc[which] + (tril[which] @ noise[..., 1:, None]).squeeze(-1)

    def strata(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """At least two draws of every component, each with ``K π_k``."""
        log_weights, loc, tril = self.components()
        number, dim = loc.shape
        each = max(2, -(-num_draws // number))
        noise = torch.randn(number, each, dim, dtype=loc.dtype, device=loc.device)
        draws = loc.unsqueeze(-2) + noise @ tril.mT
        return draws.reshape(-1, dim), (number * log_weights.exp()).repeat_interleave(each)


def base_like(base: Base, state: Mapping[str, Any], prefix: str, dim: int, like: Tensor) -> Base:
    """A base of the kind and size of a saved one, to be filled from it: ``base`` itself, whose parameters an optimizer
    may hold, where it is of that kind and size.

    Args:
        base: of the guide now.
        state: of a guide.
        prefix: of the base's names there.
        dim: ``d``.
        like: a tensor of the type and device of the draws.
    """
    logits = state.get(f"{prefix}logits")
    number = 0 if logits is None else len(logits)
    if number == base.num_components:
        return base
    if number == 0:
        return NormalBase(dim, like)
    trils = torch.eye(dim).to(like).expand(number, dim, dim)
    return MixtureBase(like.new_zeros(number), like.new_zeros(number, dim), trils)


def _mixture(log_weights: Tensor, loc: Tensor, tril: Tensor) -> GaussianMixture:
    return GaussianMixture(
        dist.Categorical(logits=log_weights, validate_args=False),
        dist.MultivariateNormal(loc, scale_tril=tril, validate_args=False),
        validate_args=False,
    )
