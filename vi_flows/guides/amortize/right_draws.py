"""Draws that follow the density of a distribution, where PyTorch's own don't."""

from __future__ import annotations

import copy
from typing import Any

import torch

from vi_flows.guides.sites import WRAPPERS

__all__ = ["with_right_draws"]

_AROUND = (*WRAPPERS, torch.distributions.TransformedDistribution)
"""What keeps another distribution as its ``base_dist``."""


def with_right_draws(fn: Any) -> Any:
    r"""The distribution itself, or a copy of the same density whose draws follow it.

    ``LKJCholesky`` of three dimensions and more is the one that is known to need it (as of PyTorch 2.13).
    By the onion method (Lewandowski, Kurowicka and Joe 2009, section 3.2) row ``i = 1 … d − 1`` of the Cholesky factor,
    counted from 0, has the squared length ``Beta(i/2, η + (d − 1 − i)/2)`` left of the diagonal; PyTorch draws
    ``Beta(i − 1/2, …)``. Variances of the correlations in all rows but the first two are too large by that, by a
    quarter for ``d = 3`` and ``η = 3/2``. The density, and so every fit to data, is right.

    Args:
        fn: distribution of a sample site, which stays as it is.
    """
    if isinstance(fn, torch.distributions.LKJCholesky):
        row = torch.arange(fn.dim, dtype=fn.concentration.dtype, device=fn.concentration.device).clamp(min=1)
        right = copy.copy(fn)
        right._beta = torch.distributions.Beta(row / 2, fn.concentration[..., None] + (fn.dim - 1 - row) / 2)
        return right
    if isinstance(fn, _AROUND):
        base = with_right_draws(fn.base_dist)
        if base is not fn.base_dist:
            fn = copy.copy(fn)
            fn.base_dist = base
    return fn
