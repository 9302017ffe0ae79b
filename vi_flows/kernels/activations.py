"""Activations of ConvFlow: value, derivative, the supremum of the derivative, and brackets for exact inversion."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from vi_flows.recording import is_recorded, is_transformed

__all__ = ["ACTIVATIONS", "Activation", "make_activation"]

PATIENCE = 8
"""Rounds in which Newton's steps are taken as they come; nearly always fewer find the root."""


class Activation(ABC):
    r"""A non-decreasing function ``h`` with ``0 ≤ h′ ≤ slope_bound``, and the root of ``t + A h(t) = v``.

    The root is unique for ``A > −1/slope_bound`` because the left side then increases strictly.
    """

    slope_bound: float = 1.0

    @property
    def continuous_slope(self) -> bool:
        """Whether ``h′`` has no jump."""
        return True

    @property
    def two_slopes(self) -> LeakyReLU | None:
        """Itself, where ``h′`` has but two values, so that sums of logarithms are linear in it."""
        return None

    @abstractmethod
    def value_and_slope(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """``h(a)`` and ``h′(a)``, elementwise."""

    @abstractmethod
    def curvature(self, a: Tensor, value: Tensor, slope: Tensor) -> Tensor | None:
        """``h″(a)``, given ``h(a)`` and ``h′(a)``; ``None`` where it is zero everywhere but at a kink."""

    def evaluate(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """``h(a)`` and ``h′(a)`` without a graph."""
        return self.value_and_slope(a)

    @abstractmethod
    def bracket(self, gain: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the root ``t`` of ``t + gain · h(t) = v``, elementwise."""

    def solve(self, gain: Tensor, v: Tensor) -> Tensor:
        """The root ``t`` of ``t + gain · h(t) = v``: Newton's method kept inside a shrinking bracket.

        Where Newton's steps don't at least halve after the first :data:`PATIENCE` rounds, the bracket is halved
        instead: at steep gains they can go to and fro between the flat sides of ``h`` for ever.

        Differentiable in both arguments: the last two Newton steps are recorded, and each of them doubles the number
        of derivatives that are right.
        """
        # functorch's tensors can't steer the loop, and a trace would keep the number of rounds that its example took:
        # both go through as many as are always enough. The compiler looks again at each call.
        steers = torch.compiler.is_compiling() or not (is_recorded() or is_transformed())
        patience, rounds = (PATIENCE, 200) if steers else (0, 64)
        with torch.no_grad():
            gain_, v_ = torch.broadcast_tensors(gain.detach(), v.detach())
            low, high = self.bracket(gain_, v_)
            low, high = torch.minimum(low, high), torch.maximum(low, high)
            t, moved = v_.clamp(low, high), high - low
            for count in range(rounds):
                h, slope = self.value_and_slope(t)
                residual = t + gain_ * h - v_
                low = torch.where(residual <= 0, t, low)
                high = torch.where(residual >= 0, t, high)
                newton = t - residual / (1 + gain_ * slope)
                trusted = (newton > low) & (newton < high)
                if count >= patience:
                    trusted = trusted & (2 * (newton - t).abs() <= moved)
                new = torch.where(residual == 0, t, torch.where(trusted, newton, 0.5 * (low + high)))
                moved, tolerance = (new - t).abs(), torch.finfo(t.dtype).eps * new.abs()
                t = new
                if steers and bool(((moved <= tolerance) | (high - low <= tolerance)).all()):
                    break
        for _ in range(2):
            h, slope = self.value_and_slope(t)
            t = t - (t + gain * h - v) / (1 + gain * slope)
        return t


class LeakyReLU(Activation):
    """``max(a, 0) + s · min(a, 0)``; its root is in closed form."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        if not 0 <= negative_slope < math.inf:
            raise ValueError(f"negative_slope must be finite and not negative, got {negative_slope}")
        self.negative_slope = negative_slope
        self.slope_bound = max(1.0, negative_slope)

    @property
    def continuous_slope(self) -> bool:
        """Only for ``s = 1``."""
        return self.negative_slope == 1

    @property
    def two_slopes(self) -> LeakyReLU:
        """Itself."""
        return self

    def value_and_slope(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """``h(a)`` and its slope, 1 from zero upwards and ``s`` below."""
        # Filled in the input's own type: torch.where with two Python numbers would give a float32 constant.
        slope = torch.full_like(a, self.negative_slope).masked_fill(a >= 0, 1.0)
        return a * slope, slope

    def curvature(self, a: Tensor, value: Tensor, slope: Tensor) -> None:
        """Zero."""
        return None

    def evaluate(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """By vectorised operations only, which filling by a mask is not."""
        if self.negative_slope > 1:
            return self.value_and_slope(a)
        slope = torch.ge(a, 0, out=torch.empty_like(a)).clamp_(min=self.negative_slope)
        return a * slope, slope

    def linear_logs(self, gain: Tensor) -> tuple[Tensor, Tensor]:
        """``c, e`` of ``log(1 + A h′) = c + e h′``: h′ has but two values, so a line goes through both."""
        s = self.negative_slope
        above, below = torch.log1p(gain), torch.log1p(s * gain)
        e = torch.zeros_like(above) if s == 1 else (above - below) / (1 - s)
        return above - e, e

    def weighted_ratio(self, gain: Tensor, weighted: Tensor, total: Tensor) -> Tensor:
        """``Σ g h′/(1 + A h′)`` from ``Σ g h′`` and ``Σ g``, which tell the sums over ``a ≥ 0`` and below apart."""
        s = self.negative_slope
        if s == 1:
            return weighted / (1 + gain)
        above = (weighted - s * total) / (1 - s)
        return above / (1 + gain) + s * (total - above) / (1 + s * gain)

    def bracket(self, gain: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The closed form itself, twice."""
        t = self.solve(gain, v)
        return t, t

    def solve(self, gain: Tensor, v: Tensor) -> Tensor:
        """``v/(1+A)`` for ``v ≥ 0``, ``v/(1+sA)`` below: the left side is zero at zero, so the signs agree."""
        return v / torch.where(v >= 0, 1 + gain, 1 + self.negative_slope * gain)


class Tanh(Activation):
    """Hyperbolic tangent."""

    def value_and_slope(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """``tanh a`` and ``1 − tanh² a``."""
        h = torch.tanh(a)
        return h, (1 - h) * (1 + h)

    def curvature(self, a: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """``−2 h h′``."""
        return -2 * value * slope

    def bracket(self, gain: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``|h| ≤ 1``."""
        return v - gain.abs(), v + gain.abs()


class Sigmoid(Activation):
    """Logistic sigmoid, whose slope is at most a quarter."""

    slope_bound = 0.25

    def value_and_slope(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """``σ(a)`` and ``σ(a) σ(−a)``."""
        h = torch.sigmoid(a)
        return h, h * torch.sigmoid(-a)

    def curvature(self, a: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """``h′ (1 − 2h)``."""
        return slope * (1 - 2 * value)

    def bracket(self, gain: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``0 ≤ h ≤ 1``."""
        return v - gain, v


class Softplus(Activation):
    """``log(1 + eᵃ)``."""

    def value_and_slope(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """``log(1 + eᵃ)`` and ``σ(a)``."""
        return F.softplus(a), torch.sigmoid(a)

    def curvature(self, a: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """``h′ (1 − h′)``."""
        return slope * (1 - slope)

    def bracket(self, gain: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``h(t) > 0`` and ``h(t) ≤ max(t, 0) + log 2``."""
        loss = gain.clamp(max=0).neg()
        slack = loss * math.log(2.0)
        return v - gain.clamp(min=0) * F.softplus(v), torch.maximum(v + slack, (v + slack) / (1 - loss))


class ELU(Activation):
    """``a`` for ``a ≥ 0`` and ``α (eᵃ − 1)`` below."""

    def __init__(self, alpha: float = 1.0) -> None:
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be finite and positive, got {alpha}")
        self.alpha = alpha
        self.slope_bound = max(1.0, alpha)

    @property
    def continuous_slope(self) -> bool:
        """Only for ``α = 1``."""
        return self.alpha == 1

    def value_and_slope(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """``h(a)`` and its slope, ``α eᵃ`` below zero."""
        below = a.clamp(max=0)
        return torch.where(a >= 0, a, self.alpha * torch.expm1(below)), torch.where(
            a >= 0, torch.ones_like(a), self.alpha * torch.exp(below)
        )

    def curvature(self, a: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """``h′`` below zero, 0 above."""
        return slope.masked_fill(a >= 0, 0.0)

    def bracket(self, gain: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form above zero; below, ``−α ≤ h ≤ 0``."""
        above = v / (1 + gain)
        reach = self.alpha * gain
        low = torch.where(v >= 0, above, v + reach.clamp(max=0))
        high = torch.where(v >= 0, above, (v + reach.clamp(min=0)).clamp(max=0))
        return low, high


ACTIVATIONS: dict[str, type[Activation]] = {
    "leaky_relu": LeakyReLU,
    "tanh": Tanh,
    "sigmoid": Sigmoid,
    "softplus": Softplus,
    "elu": ELU,
}
"""The activations by name, all of which the ConvFlow paper mentions."""


def make_activation(name: str, negative_slope: float = 0.01) -> Activation:
    """The activation called `name`.

    Raises:
        ValueError: there is none of that name, or the slope is out of range.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; choose one of {', '.join(ACTIVATIONS)}")
    return LeakyReLU(negative_slope) if name == "leaky_relu" else ACTIVATIONS[name]()
