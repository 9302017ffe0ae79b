"""Importance resampling: draws of a guide turned into draws of the posterior."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from vi_flows.evaluation.psis import NEARLY_EQUAL, psis, usable_k_hat

__all__ = ["resampled_indices"]


def resampled_indices(log_weights: Tensor, num_samples: int) -> Tensor:
    r"""Which draws to take so that they follow the posterior: Pareto-smoothed weights, systematic resampling.

    With normalised smoothed weights ``w̄`` draw ``i`` is taken ``⌊num_samples w̄ᵢ⌋`` or one more times: every draw at
    most once where the guide is right and the pool is no smaller than the sample. The order is random.

    Args:
        log_weights: ``log p − log q`` of the pool, shape ``(S,)``.
        num_samples: how many to take.

    Returns:
        Indices of the pool, shape ``(num_samples,)``.

    Warns:
        UserWarning: the Pareto shape is above :func:`~vi_flows.evaluation.psis.usable_k_hat`, where no weighting makes
            the draws those of the posterior, and the weights are not nearly equal (an ESS of 98 % of the draws), in
            which case the shape says nothing.
    """
    smoothed = psis(log_weights)
    k_hat = float(smoothed.k_hat)
    usable = usable_k_hat(len(log_weights))
    if k_hat > usable and float(smoothed.ess) < NEARLY_EQUAL * len(log_weights):
        warnings.warn(
            f"importance resampling with k-hat {k_hat:.2f} (above {usable:.2g}): the guide misses mass that its draws "
            "can't bring back; improve the guide",
            stacklevel=3,
        )
    edges = smoothed.log_weights.exp().cumsum(0)
    places = (torch.arange(num_samples, dtype=edges.dtype) + torch.rand((), dtype=edges.dtype)) / num_samples
    chosen = torch.searchsorted(edges, places * edges[-1]).clamp(max=len(edges) - 1)
    return chosen[torch.randperm(num_samples)]
