"""Pareto-smoothed importance sampling (Vehtari, Simpson, Gelman, Yao and Gabry 2024), for many columns at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vi_flows.settings import check_counts, check_tensors

__all__ = [
    "NEARLY_EQUAL",
    "PSIS",
    "effective_sample_size",
    "fit_generalised_pareto",
    "psis",
    "tail_size",
    "usable_k_hat",
]

NEARLY_EQUAL = 0.98
"""ESS, as a share of the draws, from which on the weights' tail is the shape of next to nothing."""


LEAST = 1e-300
"""Weights of less than this share of the largest are no numbers to fit a law to."""


@dataclass(frozen=True)
class PSIS:
    """Smoothed importance weights, one set a column.

    Attributes:
        log_weights: smoothed and normalised over the first dimension (``logsumexp`` is 0), in the order of the input.
        k_hat: Pareto shape of the raw weights' tail, one a column; NaN where there are too few weights, −∞ where they
            are equal but for rounding. Below 0.5 the weights have finite variance; up to :func:`usable_k_hat` (0.7 of
            many) smoothed weights still work; above, no importance weight helps.
        ess: effective sample size of the smoothed weights.
        log_mean_weight: log of the mean smoothed weight: the evidence, if the input was ``log p(x, z) − log q(z)``.
    """

    log_weights: Tensor
    k_hat: Tensor
    ess: Tensor
    log_mean_weight: Tensor


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """``(Σw)² / Σw²`` over the first dimension, between 1 and the number of draws.

    Args:
        log_weights: ``(S, …)``, up to a constant a column.

    Raises:
        ValueError: there are no draws.
    """
    check_tensors(log_weights=log_weights)
    if log_weights.dim() < 1 or log_weights.shape[0] < 1:
        raise ValueError(f"expected draws along the first dimension, got shape {tuple(log_weights.shape)}")
    return torch.exp(2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0))


def tail_size(size: int) -> int:
    """How many of ``size`` draws count as their tail: ``min(size/5, 3 √size)``, rounded up."""
    return math.ceil(min(size / 5, 3 * math.sqrt(size)))


def usable_k_hat(num_samples: int) -> float:
    """Up to which Pareto shape smoothed weights of that many draws can be used: ``min(1 − 1 / log₁₀ S, 0.7)``.

    From Vehtari et al. (2024), section 3.2.4; 0.5 of 100 draws, 0.63 of 500, 0.7 from 2155 on.

    Args:
        num_samples: draws ``S``.

    Raises:
        ValueError: there are fewer than two.
    """
    check_counts(2, num_samples=num_samples)
    return min(1 - 1 / math.log10(num_samples), 0.7)


def psis(log_weights: Tensor) -> PSIS:
    r"""Fit a generalised Pareto law to the largest weights of each column and replace them by its quantiles.

    The tail holds ``min(S/5, 3√S)`` of ``S`` weights. For a target N(0, 1) and a narrower proposal N(0, s²), ``k = 1 −
    s²``.
    Where fewer weights are not zero than the tail holds, or all but a few vanish beside the largest (by a factor of
    1e300), they stay as they are: smoothing would give mass to what has none.
    The work is done in float64 where the weights are.

    Args:
        log_weights: ``(S,)`` or ``(S, …)``: log importance weights, draws along the first dimension.

    Raises:
        ValueError: a weight is NaN or +∞, or a whole column is zero (−∞).
    """
    check_tensors(log_weights=log_weights)
    if log_weights.dim() < 1 or log_weights.shape[0] < 1:
        raise ValueError(f"expected draws along the first dimension, got shape {tuple(log_weights.shape)}")
    log_w = log_weights.detach().double()
    if bool((log_w.isnan() | (log_w == math.inf)).any()):
        raise ValueError("a log-weight is NaN or +inf: the model's or the guide's log density is broken there")
    shape, size = log_w.shape[1:], log_w.shape[0]
    log_w = log_w.reshape(size, -1)
    peak = log_w.amax(0)
    if bool((peak == -math.inf).any()):
        raise ValueError("all weights of a column are zero: no draw of the guide lies in the model's support")
    ratio = log_w - peak
    tail = tail_size(size)
    k_hat = torch.full((log_w.shape[1],), math.nan, dtype=torch.float64, device=log_w.device)
    if tail >= 5 and size > tail:
        ordered, order = ratio.sort(0)
        cutoff = ordered[-tail - 1].exp()
        excess = (ordered[-tail:].exp() - cutoff).T
        # A guide that is exact has weights that differ by rounding alone, whose tail means nothing.
        kind = log_weights.dtype if log_weights.is_floating_point() else log_w.dtype
        rounding = 64 * torch.finfo(kind).eps * peak.abs()
        varied = excess[:, -1] > rounding.clamp(min=1e-3)
        k_hat[~varied] = -math.inf
        # Of a tail with zeros, smoothing would bring some to life; of one whose quartile is no number of double
        # precision, what the fit gives is an artefact of that.
        zeros = ordered[-tail] == -math.inf
        vanishing = excess[:, quartile_of(tail)] < LEAST
        if bool(varied.any()):
            k, sigma = fit_generalised_pareto(excess[varied])
            k_hat[varied] = k
            p = ((torch.arange(tail, dtype=torch.float64, device=log_w.device) + 0.5) / tail)[None]
            quantile = torch.where(
                k[:, None].abs() < 1e-12, -torch.log1p(-p), torch.expm1(-k[:, None] * torch.log1p(-p)) / k[:, None]
            )
            smooth = (cutoff[varied, None] + sigma[:, None] * quantile).log().clamp(max=0.0)
            kept = ~(zeros | vanishing)[varied]
            columns = varied.nonzero().squeeze(-1)[kept]
            ratio = ratio.clone()
            ratio[order[-tail:, columns], columns] = smooth[kept].T
    total = torch.logsumexp(ratio, 0)
    normalized = ratio - total
    return PSIS(
        normalized.reshape(size, *shape),
        k_hat.reshape(shape),
        effective_sample_size(normalized).reshape(shape),
        (peak + total - math.log(size)).reshape(shape),
    )


def quartile_of(size: int) -> int:
    """Where the lower quartile stands among so many numbers in order."""
    return int(size / 4 + 0.5) - 1


def fit_generalised_pareto(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Shape ``k`` and scale ``σ`` by Zhang and Stephens (2009), with the weak prior of Vehtari et al. (k near 0.5).

    Args:
        excess: ``(columns, n)``, non-negative, ascending along the last dimension.

    Returns:
        Two tensors of shape ``(columns,)``.
    """
    n = excess.shape[-1]
    grid = 30 + int(math.sqrt(n))
    steps = torch.arange(1, grid + 1, dtype=excess.dtype, device=excess.device)
    quartile = excess[:, quartile_of(n)].clamp(min=LEAST)
    theta = 1 / excess[:, -1:] + (1 - torch.sqrt(grid / (steps - 0.5)))[None] / (3 * quartile[:, None])
    k = torch.log1p(-theta[:, :, None] * excess[:, None, :]).mean(-1)
    profile = n * (torch.log(-theta / k) - k - 1)
    weight = torch.softmax(profile, -1)
    theta = (weight * theta).sum(-1)
    k = torch.log1p(-theta[:, None] * excess).mean(-1)
    sigma = -k / theta
    return (n * k + 5) / (n + 10), sigma
