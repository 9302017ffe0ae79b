"""Draws that follow the density of a program: observed sites anew, and others where PyTorch's own don't."""

from __future__ import annotations

import copy
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.hmm import HiddenMarkovModel
from pyro.poutine.uncondition_messenger import UnconditionMessenger

from vi_flows.guides.sites import WRAPPERS, innermost, is_fixed

__all__ = ["DrawnAnew", "with_right_draws"]

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


class DrawnAnew(UnconditionMessenger):
    """Draws the observed sites anew, in the shape of their observations; what is computed stays as it is.

    Without a plate a distribution may be narrower than its observations, each of which its density counts on its own:
    ``pyro.sample("y", Normal(mu, 1), obs=y)`` has ``len(y)`` independent draws, and not one.

    Raises:
        ValueError: in the run, a hidden Markov model has no duration; names the site.
    """

    def _pyro_sample(self, msg: Any) -> None:
        # A pyro.factor has no value to draw.
        if is_fixed(msg["fn"]) or isinstance(innermost(msg["fn"]), dist.Unit):
            return
        if isinstance(innermost(msg["fn"]), HiddenMarkovModel) and innermost(msg["fn"]).duration is None:
            raise ValueError(
                f"site {msg['name']!r} is a {type(innermost(msg['fn'])).__name__} without a duration, so that it can't "
                "be drawn: give it one, duration=len(y)"
            )
        if msg["is_observed"]:
            msg["fn"] = _as_wide_as(msg["fn"], torch.as_tensor(msg["value"]))
        msg["fn"] = with_right_draws(msg["fn"])
        super()._pyro_sample(msg)


def _as_wide_as(fn: Any, value: torch.Tensor) -> Any:
    try:
        batch = torch.broadcast_shapes(fn.batch_shape, value.shape[: max(value.dim() - fn.event_dim, 0)])
    except RuntimeError:
        return fn  # the two don't meet: the value has no density, and stands for no shape
    return fn if batch == fn.batch_shape else fn.expand(batch)
