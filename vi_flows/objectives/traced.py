"""Importance weights of a Pyro model and guide: which dimensions factorise, and what scales them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.elbo import ELBO as PyroELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.util import check_if_enumerated
from torch import Tensor

from vi_flows.parameters import quiet_unless_observed
from vi_flows.settings import check_at_least
from vi_flows.traces import is_deterministic, is_subsample, nodes

__all__ = ["TracedBound", "TracedWeights"]

PARTICLES = "num_particles_vectorized"


@dataclass(frozen=True)
class TracedWeights:
    """The log-weight terms of one program, particles first.

    Attributes:
        log_likelihood: observed sites, ``(P, *common)``.
        log_prior: latent sites under the model, the same shape.
        log_posterior: latent sites under the guide, the same shape.
        common_scale: ``N/B`` of the subsampled plates that all sites share.
        coupled: names of subsampled plates that hold some sites but not all, or that a loop goes through: their terms
            enter the three tensors scaled, and only their average over particles is meaningful.
        dims: where the tensors' dimensions lie in the batch of each site, counted from the right: those of the common
            plates, and before them that of the particles if these are drawn in one pass.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor
    common_scale: float
    coupled: tuple[str, ...]
    dims: tuple[int, ...]

    def log_weights(self, kl_weight: float | Tensor = 1.0) -> Tensor:
        """``log p(x|z) + β (log p(z) − log q(z))``, ``(P, *common)``."""
        ratio = self.log_prior - self.log_posterior
        return self.log_likelihood + kl_weight * ratio

    @property
    def why_coupled(self) -> str:
        """What couples rows, for a message."""
        return (
            "sites outside of them (latents, observations, `pyro.factor`), or a loop over a plate in place of `with "
            "plate`, make the subsampled plate(s) "
            f"{', '.join(self.coupled)} couple their rows"
        )


class TracedBound(PyroELBO):
    """A Pyro objective that is a function of the importance weights; subclasses reduce them in :meth:`bound`.

    It is accepted wherever Pyro takes an ELBO (``SVI(model, guide, optim, loss)``, ``loss(model, guide)`` as a module).
    All guide sites must be reparameterised.

    Args:
        num_particles: draws ``K``.
        kl_weight: ``β`` of the warm-up; it changes the gradient only: :meth:`loss` always reports the bound itself.
        max_plate_nesting: as in Pyro; guessed when it is needed and not given.
        vectorize_particles: one trace with a particle dimension instead of ``num_particles`` traces.

    Raises:
        ValueError: an option has no meaning.
    """

    def __init__(
        self,
        num_particles: int = 1,
        kl_weight: float = 1.0,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = False,
    ) -> None:
        if not isinstance(num_particles, Integral) or num_particles < 1:
            raise ValueError(f"num_particles must be a whole number of at least 1, got {num_particles!r}")
        check_at_least(0, kl_weight=kl_weight)
        super().__init__(int(num_particles), max_plate_nesting, vectorize_particles=vectorize_particles)
        self.kl_weight: float = kl_weight

    @abstractmethod
    def bound(self, weights: TracedWeights, kl_weight: float) -> Tensor:
        """The bound (a scalar, in nats, for the whole data set) from the weights."""

    def log_weights(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> TracedWeights:
        """Draw from the guide and weigh: particles along the first dimension.

        Raises:
            ValueError: a guide site is not reparameterised.
        """
        with quiet_unless_observed():
            pairs = list(self._get_traces(model, guide, args, kwargs))
        parts = [_weights_of(model_trace, guide_trace) for model_trace, guide_trace in pairs]
        if len(parts) == 1:
            return parts[0]
        likelihood, prior, posterior = (torch.cat([getattr(p, name) for p in parts]) for name in TERMS)
        return TracedWeights(likelihood, prior, posterior, parts[0].common_scale, parts[0].coupled, parts[0].dims)

    @torch.no_grad()
    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The negative bound, without gradients."""
        return -self.bound(self.log_weights(model, guide, *args, **kwargs), 1.0).item()

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The negative bound as a tensor, with ``kl_weight`` applied."""
        return -self.bound(self.log_weights(model, guide, *args, **kwargs), self.kl_weight)

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Backward pass of the (KL-weighted) bound; returns the negative bound itself."""
        weights = self.log_weights(model, guide, *args, **kwargs)
        loss = -self.bound(weights, self.kl_weight)
        if loss.requires_grad:
            loss.backward()
        if self.kl_weight == 1.0:
            return loss.item()
        with torch.no_grad():
            return -self.bound(weights, 1.0).item()

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        if is_validation_enabled() or isinstance(poutine.unwrap(guide), poutine.messenger.Messenger):
            traces = get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)
            check_if_enumerated(traces[1])
            return traces
        # The same without the checks and without the sums of every site, which no bound reads.
        with TraceMessenger() as guide_run:
            guide(*args, **kwargs)
        guide_trace = guide_run.trace
        with TraceMessenger() as model_run, ReplayMessenger(trace=guide_trace):
            model(*args, **kwargs)
        model_trace = model_run.trace
        for site in _sample_sites(guide_trace).values():
            score_parts = site["fn"].score_parts(site["value"], *site["args"], **site["kwargs"])
            site["score_parts"] = score_parts.scale_and_mask(site["scale"], site["mask"])
            site["log_prob"] = site["score_parts"].log_prob
        for site in _sample_sites(model_trace).values():
            log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
            site["log_prob"] = scale_and_mask(log_prob, site["scale"], site["mask"])
        return model_trace, guide_trace


TERMS = ("log_likelihood", "log_prior", "log_posterior")


def _sample_sites(trace: Trace) -> dict[str, Any]:
    """Sample sites that have a density of their own.

    The indices of subsampled plates are drawn on both sides and cancel; values that are only noted have none, and the
    plates that they stand in are nobody's.
    """
    sites = ((n, s) for n, s in nodes(trace).items() if s["type"] == "sample")
    return {n: s for n, s in sites if not is_subsample(s) and not is_deterministic(s)}


def _weights_of(model_trace: Trace, guide_trace: Trace) -> TracedWeights:
    latent, model_sites = _sample_sites(guide_trace), _sample_sites(model_trace)
    for name, site in latent.items():
        _, score_function_term, _ = site["score_parts"]
        if not is_identically_zero(score_function_term):
            raise ValueError(
                f"guide site {name!r} is not reparameterised ({type(site['fn']).__name__}); "
                "use pyro.infer.TraceGraph_ELBO for it"
            )
    sites = [*model_sites.values(), *latent.values()]
    # Plates by (name, dim), with N/B of each: Pyro's frames themselves are slow to hash.
    scales: dict[tuple[str, int], float] = {}
    plates: list[set[tuple[str, int]]] = []
    loops: set[str] = set()  # of ``for i in pyro.plate(…)`` with a part of the rows: no dimension keeps these apart
    for site in sites:
        frames = [f for f in site["cond_indep_stack"] if f.vectorized]
        loops.update(f.name for f in site["cond_indep_stack"] if not f.vectorized and f.full_size not in (None, f.size))
        scales.update({(f.name, f.dim): f.full_size / f.size if f.full_size and f.size else 1.0 for f in frames})
        plates.append({(f.name, f.dim) for f in frames})
    particles = {key for key in scales if key[0] == PARTICLES}
    everywhere = set.intersection(*plates) | particles if plates else set()
    coupled = tuple(sorted(loops.union(key[0] for key in scales if key not in everywhere and scales[key] != 1)))
    keep = {dim for _, dim in everywhere}
    scale = math.prod(scales[key] for key in everywhere - particles)
    parts: dict[str, list[Tensor]] = {term: [] for term in TERMS}
    for name, site in model_sites.items():
        parts["log_prior" if name in latent else "log_likelihood"].append(_reduce(site, scale, keep))
    parts["log_posterior"] = [_reduce(site, scale, keep) for site in latent.values()]
    tensors = [sum(terms[1:], terms[0]) if terms else torch.zeros(()) for terms in parts.values()]
    if len({t.shape for t in tensors}) > 1:
        tensors = list(torch.broadcast_tensors(*tensors))
    if not particles:  # one program of one particle, or no sites at all
        tensors = [t.unsqueeze(0) for t in tensors]
    likelihood, prior, posterior = tensors
    return TracedWeights(likelihood, prior, posterior, scale, coupled, tuple(sorted(keep)))


def _reduce(site: dict[str, Any], scale: float, keep: set[int]) -> Tensor:
    """One site's log-probability, the common plates' scale taken out, summed over all but the dims in ``keep``.

    The particle dimension, the outermost, comes out first; the common plates follow in the order of their dims.
    """
    log_prob = site["log_prob"]
    if scale != 1:
        log_prob = log_prob / scale
    missing = max((-dim for dim in keep), default=0) - log_prob.dim()
    if missing > 0:
        log_prob = log_prob.reshape((1,) * missing + log_prob.shape)
    rest = [dim for dim in range(-log_prob.dim(), 0) if dim not in keep]
    return log_prob.sum(rest) if rest else log_prob
