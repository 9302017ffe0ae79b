"""Draws that follow the density of a program: observed sites anew, and others where PyTorch's own don't."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.hmm import HiddenMarkovModel
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor
from torch.types import _size

from vi_flows.guides.sites import WRAPPERS, innermost, is_counts, is_fixed

__all__ = ["DrawnAnew", "can_be_drawn", "like_its_observations", "with_right_draws"]

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
    return _changed_inside(fn, _right)


class _BelowOne(torch.distributions.Beta):
    """Draws that their type tells from 1: a correlation of ±1 by rounding has no place on the unconstrained scale."""

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """As of any Beta, at most ``1 − 2 eps``."""
        drawn = super().rsample(sample_shape)
        return drawn.clamp(max=1 - 2 * torch.finfo(drawn.dtype).eps)


def _right(fn: Any) -> Any:
    if not isinstance(fn, torch.distributions.LKJCholesky):
        return fn
    row = torch.arange(fn.dim, dtype=fn.concentration.dtype, device=fn.concentration.device).clamp(min=1)
    right = copy.copy(fn)
    right._beta = _BelowOne(row / 2, fn.concentration[..., None] + (fn.dim - 1 - row) / 2)
    return right


def _changed_inside(fn: Any, change: Callable[[Any], Any]) -> Any:
    """The distribution with its innermost one changed; itself where that stays as it is."""
    if not isinstance(fn, _AROUND):
        return change(fn)
    base = _changed_inside(fn.base_dist, change)
    if base is fn.base_dist:
        return fn
    around = copy.copy(fn)
    around.base_dist = base
    return around


def like_its_observations(fn: Any, value: Tensor) -> Any:
    """The distribution of an observed site, over all rows of its observations and with their totals.

    Without a plate it may be narrower than its observations, each of which its density counts on its own. Counts whose
    totals differ from row to row have one ``total_count``, the largest (PyTorch's ``Multinomial`` takes no other, and
    its density reads the counts alone), or can't be drawn by Pyro (``DirichletMultinomial``).

    Args:
        fn: distribution of the site.
        value: its observations.
    """
    return _changed_inside(_as_wide_as(fn, value), partial(_with_totals, value=value))


def _with_totals(fn: Any, value: Tensor) -> Any:
    if not is_counts(fn):
        return fn
    most, totals = torch.as_tensor(fn.total_count).to(value), value.sum(-1)
    # What a mask leaves out may be anything.
    totals = torch.where((totals >= 0) & (totals <= most) & (totals == totals.round()), totals, most)
    return fn if bool((totals == most.flatten()[0]).all()) else _Totals(fn, totals.expand(fn.batch_shape))


class _Totals(TorchDistribution):
    """Draws of counts with a total of its own in every row; it has no density.

    ``k₁ ~ Binomial(n, p₁)``, ``k₂ ~ Binomial(n − k₁, p₂ / (1 − p₁))`` and so on, with ``p`` drawn where it has a
    Dirichlet prior.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, counts: Any, totals: Tensor) -> None:
        self.counts, self.totals = counts, totals
        super().__init__(counts.batch_shape, counts.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """That of the counts."""
        return self.counts.support

    @torch.no_grad()
    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Whole numbers in the parameters' type."""
        shape = torch.Size(sample_shape) + self.batch_shape
        if isinstance(self.counts, dist.DirichletMultinomial):
            share = dist.Dirichlet(self.counts.concentration).sample(torch.Size(sample_shape))
        else:
            share = self.counts.probs
        share = share.expand(shape + self.event_shape)
        rest = share.flip(-1).cumsum(-1).flip(-1)
        # Of the shares' draws, too: `vmap` draws many binomials of one count with a complaint.
        left = self.totals + torch.zeros_like(rest[..., 0])
        drawn = []
        for part, whole in zip(share.unbind(-1)[:-1], rest.unbind(-1)[:-1], strict=True):
            drawn.append(torch.binomial(left, (part / whole).nan_to_num().clamp(0, 1)))
            left = left - drawn[-1]
        return torch.stack([*drawn, left], -1)


def can_be_drawn(fn: Any, value: Tensor) -> bool:
    """Whether there is a way to draw an observed site anew; some densities of Pyro's come without one.

    Args:
        fn: distribution of the site.
        value: its observations.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            with_right_draws(like_its_observations(fn, value)).sample()
    except Exception as fault:  # any other is said by its name in the run that draws
        return not isinstance(fault, NotImplementedError)
    return True


class DrawnAnew(UnconditionMessenger):
    """Draws the observed sites anew, in the shape of their observations; what is computed stays as it is.

    See :func:`like_its_observations`: ``pyro.sample("y", Normal(mu, 1), obs=y)`` has ``len(y)`` independent draws.

    Args:
        kept: names of observed sites that keep their observations.

    Raises:
        ValueError: in the run, a hidden Markov model has no duration; names the site.
    """

    def __init__(self, kept: Collection[str] = ()) -> None:
        super().__init__()
        self.kept = kept

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.kept:
            return
        # A pyro.factor has no value to draw.
        if is_fixed(msg["fn"]) or isinstance(innermost(msg["fn"]), dist.Unit):
            return
        if isinstance(innermost(msg["fn"]), HiddenMarkovModel) and innermost(msg["fn"]).duration is None:
            raise ValueError(
                f"site {msg['name']!r} is a {type(innermost(msg['fn'])).__name__} without a duration, so that it can't "
                "be drawn: give it one, duration=len(y)"
            )
        if msg["is_observed"]:
            msg["fn"] = like_its_observations(msg["fn"], torch.as_tensor(msg["value"]))
        msg["fn"] = with_right_draws(msg["fn"])
        super()._pyro_sample(msg)


def _as_wide_as(fn: Any, value: Tensor) -> Any:
    try:
        batch = torch.broadcast_shapes(fn.batch_shape, value.shape[: max(value.dim() - fn.event_dim, 0)])
    except RuntimeError:
        return fn  # the two don't meet: the value has no density, and stands for no shape
    return fn if batch == fn.batch_shape else fn.expand(batch)
