"""The log density of a Pyro program with its discrete latents summed out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.traceenum_elbo import _compute_model_factors
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.runtime import InferDict, Message
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from vi_flows.guides import log_einsum
from vi_flows.guides.sites import can_be_enumerated, innermost, is_fixed, latent_sites, unmasked
from vi_flows.guides.supports import within_fixed_bounds
from vi_flows.traces import Site, is_subsample, nodes
from vi_flows.transforms.regions import bounds_of

__all__ = ["EnumerationError", "SummedOut"]

ADVICE = (
    "write the model for parallel enumeration (its values come with extra dimensions on the left: index with "
    "pyro.ops.indexing.Vindex, don't branch on them or sum over them, repeat in pyro.plate or pyro.markov), or sum it "
    "out in the model (for instance dist.MixtureSameFamily)"
)


WEIGHTED = (
    "its rows have weights of their own (poutine.scale), which stand outside of the sum; sum it out in the model, as "
    "dist.MixtureSameFamily, and weigh that"
)

INFINITE = (
    "its values are no finite list; sum it out in the model (a Poisson count with a gamma rate, for instance, by "
    "dist.GammaPoisson), or give it the values from 0 to a largest one by dist.Categorical"
)


class EnumerationError(ValueError):
    """A discrete latent site can't be summed out."""


class SummedOut:
    r"""``log Σ_k p(x, z, k)`` over the discrete latents ``k`` of a program whose continuous ones are given.

    Sites in plates and in ``pyro.markov`` are eliminated one after another, as in Pyro's ``TraceEnum_ELBO``; a scale
    (subsampling, ``poutine.scale``) stands outside of the logarithm of the sum, a mask inside.

    Args:
        model: the program, its continuous latents observed.
        args: its arguments.
        kwargs: its keyword arguments.
        concrete: a trace of it with one value of each discrete latent.

    Attributes:
        amend: called with each trace and its log densities before they are summed.

    Raises:
        EnumerationError: a discrete site has no finite list of values, stands outside of every plate with a batch of
            its own, or the program can't follow its extra dimensions.
    """

    def __init__(self, model: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any], concrete: Trace) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.amend: Callable[[Trace], None] = _nothing
        self.nesting = max((len(site["fn"].batch_shape) for _, site in _samples(concrete)), default=0)
        for _, site in _samples(concrete):
            self.nesting = max(self.nesting, *(-f.dim for f in site["cond_indep_stack"] if f.vectorized), 0)
        for name, site in _discrete(concrete).items():
            if not can_be_enumerated(site["fn"]):
                advice = ADVICE if innermost(site["fn"]).has_enumerate_support else INFINITE
                raise EnumerationError(
                    f"discrete latent site {name!r} ({type(site['fn']).__name__} of shape "
                    f"{tuple(site['fn'].shape())}) can't be enumerated: {advice}"
                )
            plates = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
            batch = site["fn"].batch_shape
            if any(size > 1 and dim - len(batch) not in plates for dim, size in enumerate(batch)):
                raise EnumerationError(
                    f"discrete latent site {name!r} has the batch shape {tuple(batch)} outside of a plate, so that its "
                    f"values can't be summed out one by one: {ADVICE}"
                )
        self.check(concrete)

    def of(self, trace: Trace) -> Tensor:
        """The log density from an enumerated, packed trace."""
        costs, factors, _, dims, scale = _compute_model_factors(trace, Trace())
        total = sum((cost.sum() for terms in costs.values() for cost in terms), torch.zeros(()))
        if factors:
            total = total + scale * contract_to_tensor(factors, dims, target_ordinal=frozenset(), ring=_Ring())
        return total

    def trace(self, replayed: Trace | None = None) -> Trace:
        """Run the program with all values of its discrete latents side by side."""
        model = self.model if replayed is None else poutine.replay(self.model, trace=replayed)
        marked = poutine.infer_config(model, _mark)
        program = poutine.trace(_Enumerate(first_available_dim=-1 - self.nesting)(marked))
        trace = prune_subsample_sites(program.get_trace(*self.args, **self.kwargs))
        return self._packed(trace)

    def _packed(self, trace: Trace) -> Trace:
        trace.compute_log_prob()
        self.amend(trace)
        for site in _discrete(trace).values():
            if isinstance(site["fn"], dist.MaskedDistribution):
                # Like a site under poutine.mask: its values keep their probabilities and add up to one.
                site["unscaled_log_prob"] = site["fn"].base_dist.log_prob(site["value"])
        for _, site in _samples(trace):
            plates = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
            for key in ("log_prob", "unscaled_log_prob"):
                # A batch of its own outside of every plate (a vector without to_event) is a product.
                loose = [d for d in range(-min(self.nesting, site[key].dim()), 0) if d not in plates]
                site[key] = site[key].sum(loose, keepdim=True) if loose else site[key]
        trace.pack_tensors()
        return trace

    def check(self, concrete: Trace) -> None:
        """Compare the terms of the sum at the values of a trace with the trace's own.

        A program that computes with its discrete values across their extra dimensions (``z.sum()``) would be summed to
        something else.

        Args:
            concrete: as above; the program must give the same continuous latents now.

        Raises:
            EnumerationError: they differ.
        """
        fixed = Trace()
        for name, site in nodes(concrete).items():
            if site["type"] == "sample" and is_subsample(site):
                fixed.add_node(name, **{key: value for key, value in site.items() if key != "name"}, name=name)
        try:
            trace = self.trace(fixed)
            value = self.of(trace)
        except EnumerationError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError) as error:
            names = ", ".join(repr(name) for name in _discrete(concrete))
            advice = WEIGHTED if "only supports scalar poutine.scale" in str(error) else ADVICE
            raise EnumerationError(
                f"the discrete latent sites {names} can't be summed out ({_first_line(error)}): {advice}"
            ) from error
        single = self._packed(prune_subsample_sites(concrete.copy()))
        chosen = {}
        for name, site in _discrete(trace).items():
            support = site["fn"].enumerate_support(expand=False)
            event = site["fn"].event_dim
            support = support.reshape(len(support), *support.shape[support.dim() - event :])
            taken = nodes(concrete)[name]["value"]
            taken = taken.unsqueeze(taken.dim() - event)
            match = (taken == support).flatten(taken.dim() - event).all(-1) if event else taken == support
            plates = {f.dim: trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized}
            chosen[site["infer"]["_enumerate_symbol"]] = packed.pack(match.long().argmax(-1), plates)
        for name, site in _samples(trace):
            got: Any = site["packed"]["unscaled_log_prob"]
            for symbol, index in chosen.items():
                if symbol in got._pyro_dims:  # an attribute that Pyro puts on tensors
                    got = packed.gather(got, index, symbol)
            want = nodes(single)[name]["packed"]["unscaled_log_prob"]
            got, want = packed.broadcast_all(got, want)
            if not torch.allclose(got, want, rtol=1e-4, atol=1e-5, equal_nan=True):
                names = ", ".join(repr(other) for other in _discrete(concrete))
                raise EnumerationError(
                    f"site {name!r} has another density at single values of the discrete latents {names} than when all "
                    f"their values are side by side, so that they can't be summed out: {ADVICE}"
                )
        if value.dim():
            raise EnumerationError(f"the model's log density has the shape {tuple(value.shape)}: {ADVICE}")

    def check_latents(self, names: Iterable[str]) -> None:
        """Refuse continuous latents that are masked, or have other bounds, at some values of the discrete ones.

        Whether the model uses what is masked has another answer in each term of the sum, and no one map keeps to bounds
        that differ between them.

        Args:
            names: of the continuous latents.

        Raises:
            EnumerationError: there is one; names it.
        """
        trace = self.trace()
        for name in names:
            fn, kept = unmasked(nodes(trace)[name])
            event = nodes(trace)[name]["fn"].event_dim
            if any(_in_front(bound, self.nesting + event) > 1 for bound in bounds_of(fn.support)):
                raise EnumerationError(
                    f"the support of latent site {name!r} depends on the discrete latents, which are summed out, so "
                    f"that no map keeps to it: {within_fixed_bounds(name)}"
                )
            if _in_front(kept, self.nesting + event - fn.event_dim) > 1:
                raise EnumerationError(
                    f"latent site {name!r} is masked at some values of the discrete latents that are summed out, and "
                    "has no density there: sample it without the mask, which changes nothing where the model doesn't "
                    "use it"
                )


class _Ring(LogRing):
    _backend = log_einsum.__name__


class _Enumerate(EnumMessenger):
    def _pyro_post_sample(self, msg: Message) -> None:
        # It asks for the shape alone, but by way of `.data`, which vmap does not allow.
        value = msg["value"]
        shape_only = torch.empty(value.shape, device="meta") if isinstance(value, Tensor) else value
        super()._pyro_post_sample(cast("Message", {**cast("Site", msg), "value": shape_only}))


def _in_front(value: Tensor, num_dims: int) -> int:
    """How many there are of the last ``num_dims`` dimensions."""
    return value.shape[: max(value.dim() - num_dims, 0)].numel()


def _nothing(trace: Trace) -> None:
    pass


def _mark(message: Message) -> InferDict:
    site = cast("Site", message)
    if site["type"] != "sample" or site["is_observed"] or not site["fn"].has_enumerate_support:
        return {}
    return cast("InferDict", {"enumerate": "parallel", "num_samples": None})  # Pyro takes None: all values


def _samples(trace: Trace) -> list[tuple[str, Site]]:
    return [(n, s) for n, s in nodes(trace).items() if s["type"] == "sample" and not is_subsample(s)]


def _discrete(trace: Trace) -> dict[str, Site]:
    return {name: site for name, site in latent_sites(trace) if not is_fixed(site["fn"])}


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
