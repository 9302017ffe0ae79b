"""What an autoregressive model says of one entry: the family of its conditional distribution."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Output"]


class Output(Protocol):
    """A family of distributions of one entry with ``num_params`` parameters in the last dimension."""

    @property
    def num_params(self) -> int:
        """Parameters of one entry."""

    @property
    def support(self) -> constraints.Constraint:
        """Of one entry."""

    def encode(self, x: Tensor) -> Tensor:
        """Entries as the network's input, elementwise."""

    def logits(self, params: Tensor) -> Tensor:
        """``(…, num_params)`` in the family's customary shape."""

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Nats, shape ``(…)``, for parameters ``(…, num_params)`` and entries ``(…)``."""

    def sample(self, params: Tensor) -> Tensor:
        """Entries ``(…)`` for parameters ``(…, num_params)``."""


class Bernoulli:
    """0 or 1 with ``P(1) = σ(logit)``."""

    num_params = 1
    support: constraints.Constraint = constraints.boolean

    def encode(self, x: Tensor) -> Tensor:
        """0 and 1 as they are."""
        return x

    def logits(self, params: Tensor) -> Tensor:
        """``(…)``."""
        return params.squeeze(-1)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """``log σ(±logit)``."""
        return -F.binary_cross_entropy_with_logits(params.squeeze(-1), x, reduction="none")

    def sample(self, params: Tensor) -> Tensor:
        """0.0 or 1.0."""
        return torch.bernoulli(params.squeeze(-1).sigmoid())


class Categorical:
    """One of ``0 … n−1`` by a softmax; the network sees it scaled to ``[−1, 1]``.

    Args:
        num_bins: ``n``.

    Raises:
        ValueError: there are fewer than two values.
    """

    def __init__(self, num_bins: int = 256) -> None:
        if num_bins < 2:
            raise ValueError(f"num_bins must be at least 2, got {num_bins}")
        self.num_params = num_bins
        self.support: constraints.Constraint = constraints.integer_interval(0, num_bins - 1)

    def encode(self, x: Tensor) -> Tensor:
        """``2 x / (n−1) − 1``."""
        return 2 * x / (self.num_params - 1) - 1

    def logits(self, params: Tensor) -> Tensor:
        """``(…, n)``, not normalised."""
        return params

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """``log softmax(params)[x]``."""
        return params.log_softmax(-1).gather(-1, x.long()[..., None]).squeeze(-1)

    def sample(self, params: Tensor) -> Tensor:
        """Integers as floats."""
        drawn = torch.multinomial(params.reshape(-1, self.num_params).softmax(-1), 1)
        return drawn.reshape(params.shape[:-1]).to(params.dtype)


class Gaussian:
    """A normal distribution; the parameters are its mean and the logarithm of its standard deviation."""

    num_params = 2
    support: constraints.Constraint = constraints.real

    def encode(self, x: Tensor) -> Tensor:
        """The entry itself."""
        return x

    def logits(self, params: Tensor) -> Tensor:
        """``(…, 2)``: mean and log standard deviation."""
        return params

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """``−½ ((x−μ)/σ)² − log σ − ½ log 2π``."""
        loc, log_scale = params.unbind(-1)
        return -0.5 * ((x - loc) * (-log_scale).exp()).square() - log_scale - 0.5 * math.log(2 * math.pi)

    def sample(self, params: Tensor) -> Tensor:
        """``μ + σ ε``."""
        loc, log_scale = params.unbind(-1)
        return loc + log_scale.exp() * torch.randn_like(loc)
