"""Single-site distributions of the VAEs: one log-probability a row, computed in as few passes as it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints
from torch.distributions.kl import register_kl
from torch.types import _size

from vi_flows.expansion import Expandable
from vi_flows.settings import check_tensors
from vi_flows.transforms import Bijection, EvaluationState
from vi_flows.transforms.base import sum_event_dims
from vi_flows.transforms.regions import widened

__all__ = ["BernoulliLogits", "FlowNormal", "StandardNormal"]

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
SCALAR = torch.Size()


def _standardized(difference: Tensor, log_scale: Tensor) -> Tensor:
    """``d e^{−s}``: zero at ``d = 0``, where ``e^{−s}`` is beyond the largest number, too."""
    lost = (difference == 0) & (-log_scale > math.log(torch.finfo(log_scale.dtype).max))
    return difference * torch.where(lost, -math.inf, -log_scale).exp()


def _check_same_size(q: TorchDistribution, p: TorchDistribution) -> None:
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"there is no KL divergence between distributions of vectors of {q.event_shape[0]} and of "
            f"{p.event_shape[0]} dimensions"
        )


class FlowNormal(Expandable):
    r"""A diagonal Gaussian, optionally pushed through a bijection.

    ``x = μ + σ ⊙ ε``, ``z = f(x)``, ``log q(z) = log N(x; μ, σ²) − log|det df/dx|``. A sample's own log-probability
    comes with it: no inverse and no second pass through the flow.

    Args:
        loc: ``μ``, ``batch_shape + (d,)``.
        log_scale: ``log σ``, broadcastable to ``loc``.
        bijection: ``f`` of vectors, or of their entries; ``None`` for the Gaussian itself. One that was conditioned on
            a batch of contexts makes a batch of distributions.
        validate_args: as for every PyTorch distribution.

    Raises:
        TypeError: an argument is of another type.
        ValueError: the bijection acts on events of more than one dimension, or the shapes do not broadcast.
    """

    arg_constraints: ClassVar = {"loc": constraints.real_vector, "log_scale": constraints.real_vector}
    has_rsample = True

    def __init__(
        self, loc: Tensor, log_scale: Tensor, bijection: Bijection | None = None, validate_args: bool | None = None
    ) -> None:
        if bijection is not None and not isinstance(bijection, Bijection):
            raise TypeError(f"FlowNormal takes a Bijection, got {type(bijection).__name__}; wrap it in FromPyro")
        check_tensors(loc=loc, log_scale=log_scale)
        if loc.shape != log_scale.shape:
            try:
                loc, log_scale = torch.broadcast_tensors(loc, log_scale)
            except RuntimeError:
                raise ValueError(
                    f"loc of shape {tuple(loc.shape)} and log_scale of shape {tuple(log_scale.shape)} do not broadcast"
                ) from None
        shape = loc.shape
        if bijection is not None:
            if bijection.event_dim > 1:
                raise ValueError(
                    f"FlowNormal is a distribution of vectors, {type(bijection).__name__} acts on events of "
                    f"{bijection.event_dim} dimensions; TransformedDistribution(base, [bijection]) has no such limit"
                )
            shape = bijection.forward_shape(shape)
            if shape[:-1] != loc.shape[:-1]:  # rows of a context: each has noise of its own
                loc, log_scale = (value.expand(*shape[:-1], value.shape[-1]) for value in (loc, log_scale))
        self.loc, self.log_scale = loc, log_scale
        self.bijection = bijection
        self._own: tuple[Tensor, Tensor, EvaluationState] | None = None
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Real vectors, or what the bijection makes of them."""
        if self.bijection is None:
            return constraints.real_vector
        return widened(self.bijection.codomain, 1)

    def _expanded(self, batch_shape: torch.Size) -> FlowNormal:
        loc, log_scale = (value.expand(batch_shape + self.loc.shape[-1:]) for value in (self.loc, self.log_scale))
        return FlowNormal(loc, log_scale, self.bijection, validate_args=False)

    def rsample_and_log_prob(self, sample_shape: _size = SCALAR) -> tuple[Tensor, Tensor]:
        """A reparameterised sample ``sample_shape + batch_shape + (d,)`` and its log-probability, in one pass."""
        shape = torch.Size(sample_shape) + self.loc.shape
        eps = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        z = torch.addcmul(self.loc, self.log_scale.exp(), eps)
        log_q = -0.5 * eps.square().sum(-1) - self.log_scale.sum(-1) - HALF_LOG_2PI * eps.shape[-1]
        if self.bijection is not None:
            z, ladj = self.bijection.forward_and_ladj(z)
            log_q = log_q - sum_event_dims(ladj, 1 - self.bijection.event_dim)
        return z, log_q

    def rsample(self, sample_shape: _size = SCALAR) -> Tensor:
        """A reparameterised sample; its log-probability is kept for :meth:`log_prob`."""
        z, log_q = self.rsample_and_log_prob(torch.Size(sample_shape))
        state = self._state(z)
        self._own = None if state is None else (z, log_q, state)
        return z

    def _state(self, z: Tensor) -> EvaluationState | None:
        points = (z, self.loc, self.log_scale)
        return EvaluationState.of(points) if self.bijection is None else self.bijection.evaluation_state(*points)

    def log_prob(self, value: Tensor) -> Tensor:
        """``log q(value)``, shape ``batch_shape``; no inverse is needed for its own last sample."""
        if self._own is not None and self._own[0] is value and self._own[2].same(self._state(value)):
            return self._own[1]
        if self._validate_args:
            self._validate_sample(value)
        inverse_ladj = None
        if self.bijection is not None:
            value, inverse_ladj = self.bijection.inverse_and_ladj(value)
            inverse_ladj = sum_event_dims(inverse_ladj, 1 - self.bijection.event_dim)
        eps = _standardized(value - self.loc, self.log_scale)
        log_q = -0.5 * eps.square().sum(-1) - self.log_scale.sum(-1) - HALF_LOG_2PI * eps.shape[-1]
        return log_q if inverse_ladj is None else log_q + inverse_ladj

    @property
    def mean(self) -> Tensor:
        """The Gaussian's mean.

        Raises:
            NotImplementedError: there is a bijection, whose image has no mean in closed form.
        """
        if self.bijection is not None:
            raise NotImplementedError("the mean of a flow is not available in closed form; average samples")
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The Gaussian's variance.

        Raises:
            NotImplementedError: there is a bijection.
        """
        if self.bijection is not None:
            raise NotImplementedError("the variance of a flow is not available in closed form; average samples")
        return (2 * self.log_scale).exp()


@register_kl(FlowNormal, FlowNormal)
def _kl_flow_normal(q: FlowNormal, p: FlowNormal) -> Tensor:
    """Closed form for plain Gaussians (and for a bijection that both share): ``TraceMeanField_ELBO`` uses it."""
    if q.bijection is not p.bijection:
        raise NotImplementedError("no closed form for the KL divergence between flows")
    _check_same_size(q, p)
    log_ratio = q.log_scale - p.log_scale
    squares = _standardized(q.loc - p.loc, p.log_scale).square()
    return 0.5 * (torch.expm1(2 * log_ratio) - 2 * log_ratio + squares).sum(-1)


def _over_batch(value: Tensor, batch_shape: torch.Size) -> Tensor:
    """``value``, the same for every member of a batch that it does not depend on."""
    if value.shape[value.dim() - len(batch_shape) :] == batch_shape:
        return value
    return value.expand(torch.broadcast_shapes(value.shape, batch_shape))


class StandardNormal(Expandable):
    """``N(0, I)``: ``log p(z) = −½ Σ zᵢ² − ½ d log 2π``.

    Args:
        dim: ``d``.
        batch_shape: of the distribution.
        like: a tensor whose dtype and device the samples take.
        validate_args: as for every PyTorch distribution.
    """

    arg_constraints: ClassVar = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, dim: int, batch_shape: Sequence[int] = (), like: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        self.like = torch.empty(0) if like is None else like
        super().__init__(torch.Size(batch_shape), torch.Size([dim]), validate_args=validate_args)

    def _expanded(self, batch_shape: torch.Size) -> StandardNormal:
        return StandardNormal(self.event_shape[0], batch_shape, self.like, validate_args=False)

    def rsample(self, sample_shape: _size = SCALAR) -> Tensor:
        """``sample_shape + batch_shape + (d,)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.randn(shape, dtype=self.like.dtype, device=self.like.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """``log p(value)``, shape ``batch_shape``."""
        if self._validate_args:
            self._validate_sample(value)
        return _over_batch(-0.5 * value.square().sum(-1) - HALF_LOG_2PI * self.event_shape[0], self.batch_shape)

    @property
    def mean(self) -> Tensor:
        """Zero."""
        return self.like.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """One."""
        return self.like.new_ones(self.batch_shape + self.event_shape)


@register_kl(FlowNormal, StandardNormal)
def _kl_flow_normal_standard(q: FlowNormal, p: StandardNormal) -> Tensor:
    """Closed form where there is no bijection."""
    if q.bijection is not None:
        raise NotImplementedError("no closed form for the KL divergence of a flow")
    _check_same_size(q, p)
    return _over_batch(0.5 * (torch.expm1(2 * q.log_scale) - 2 * q.log_scale + q.loc.square()).sum(-1), p.batch_shape)


class BernoulliLogits(Expandable):
    r"""Independent Bernoulli pixels, summed: ``log p(x) = Σᵢ xᵢ lᵢ − log(1 + exp lᵢ)``.

    Values in ``[0, 1]`` of any type are accepted (grey values as Bernoulli means).

    Args:
        logits: ``batch_shape + (D,)``.
        validate_args: as for every PyTorch distribution.
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.unit_interval, 1)

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def _expanded(self, batch_shape: torch.Size) -> BernoulliLogits:
        return BernoulliLogits(self.logits.expand(batch_shape + self.event_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """``σ(logits)``."""
        return torch.sigmoid(self.logits)

    def sample(self, sample_shape: _size = SCALAR) -> Tensor:
        """Zeros and ones, ``sample_shape + batch_shape + (D,)``."""
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(self._extended_shape(torch.Size(sample_shape))))

    def log_prob(self, value: Tensor) -> Tensor:
        """``log p(value)``, summed over pixels, shape ``batch_shape``."""
        if self._validate_args:
            self._validate_sample(value)
        return torch.linalg.vecdot(value.to(self.logits.dtype), self.logits) - F.softplus(self.logits).sum(-1)

    def surrogate_log_prob(self, value: Tensor) -> Tensor:
        """Zeros of shape ``batch_shape`` with the gradient of :meth:`log_prob` in the logits, ``value − σ(logits)``.

        For samplers that follow a gradient and need the value at the end of a trajectory only: it saves the passes over
        the pixels that the value takes, and those that its gradient takes apart from this difference.
        """
        return _BernoulliScore.apply(self.logits, value)


class _BernoulliScore(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(value.to(logits.dtype) - torch.sigmoid(logits))  # of a lower precision in autocast
        return logits.new_zeros(logits.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.unsqueeze(-1) * ctx.saved_tensors[0], None
