"""What an autoregressive model says of one entry: the family of its conditional distribution."""

from __future__ import annotations

import math
import operator
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from vi_flows.settings import check_counts

__all__ = ["Bernoulli", "Categorical", "Gaussian", "LogisticMixture", "Output"]


@runtime_checkable
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
        check_counts(2, num_bins=num_bins)
        self.num_params = operator.index(num_bins)
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


class LogisticMixture:
    r"""One of ``0 … n−1`` by a mixture of ``K`` logistic distributions, each cut into the ``n`` bins.

    With levels scaled to ``y ∈ [−1, 1]`` and half a bin ``h = 1/(n−1)``, a component has
    ``P(y) = σ((y+h−μ)/s) − σ((y−h−μ)/s)``; the first bin reaches down to ``−∞`` and the last up to ``∞``, so that the
    bins sum to one. The parameters are ``K`` logits of the weights, ``K`` means and ``K`` log-scales, of which those
    under −7 count as −7. Salimans et al. 2017, *PixelCNN++*, section 2.1; channels are left to the network's masks.

    Args:
        num_bins: ``n``.
        num_components: ``K``.

    Raises:
        ValueError: there are fewer than two values, or no component.
    """

    def __init__(self, num_bins: int = 256, num_components: int = 5) -> None:
        check_counts(2, num_bins=num_bins)
        check_counts(1, num_components=num_components)
        self.num_bins, self.num_components = num_bins, num_components
        self.num_params = 3 * num_components
        self.support: constraints.Constraint = constraints.integer_interval(0, num_bins - 1)

    def encode(self, x: Tensor) -> Tensor:
        """``2 x / (n−1) − 1``."""
        return 2 * x / (self.num_bins - 1) - 1

    def logits(self, params: Tensor) -> Tensor:
        """``(…, 3 K)``: logits of the weights, means, log-scales."""
        return params

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, loc, log_scale = params.unflatten(-1, (3, self.num_components)).unbind(-2)
        return logits, loc, log_scale.clamp(min=-7.0)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """``log Σ_k w_k P_k(x)``."""
        logits, loc, log_scale = self._parts(params)
        inverse = (-log_scale).exp()
        middle = (self.encode(x)[..., None] - loc) * inverse
        half = inverse / (self.num_bins - 1)
        above, below = middle + half, middle - half
        # σ(b) − σ(a) = σ(b) σ(−a) (1 − e^{a−b}): no difference of two numbers near one. At an end one edge is infinite.
        last, first = (x == self.num_bins - 1)[..., None], (x == 0)[..., None]
        log_up = F.logsigmoid(above).masked_fill(last, 0.0)
        log_down = F.logsigmoid(-below).masked_fill(first, 0.0)
        width = (-torch.expm1(-2 * half)).log().masked_fill(first | last, 0.0)
        return (logits.log_softmax(-1) + log_up + log_down + width).logsumexp(-1)

    def sample(self, params: Tensor) -> Tensor:
        """Integers as floats."""
        logits, loc, log_scale = self._parts(params)
        chosen = torch.multinomial(logits.reshape(-1, self.num_components).softmax(-1), 1).reshape(*loc.shape[:-1], 1)
        loc, log_scale = (part.gather(-1, chosen).squeeze(-1) for part in (loc, log_scale))
        uniform = torch.rand_like(loc).clamp(1e-7, 1 - 1e-7)
        y = loc + log_scale.exp() * uniform.logit()
        return ((y + 1) / 2 * (self.num_bins - 1)).round().clamp(0, self.num_bins - 1)
