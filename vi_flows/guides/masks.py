"""Latent coordinates that a mask has taken out of a Pyro program: they get their prior back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import constraints

from vi_flows.guides.sites import unmasked
from vi_flows.traces import nodes

__all__ = ["MaskedLatents", "has_masked_latents"]


class MaskedLatents:
    r"""The prior density of latent coordinates that are masked out and that nothing else in the model depends on.

    A masked coordinate (``obs_mask``, ``poutine.mask``, ``fn.mask``) has no density of its own. Where the rest of the
    model does not use it either (the rows of ``obs_mask`` that are observed, the ends of ragged groups) the joint
    density is flat in it and has no integral. With the prior put back, ``p(x, z) Π p(z_masked | parents)``, the
    evidence and the posterior of all other coordinates are those of the model without the masked ones. A masked
    coordinate that the model does use, as in ``dist.Normal(0, 10).mask(False)`` with a ``pyro.factor``, stays flat, as
    the mask says.

    Args:
        density: the model's log joint density of draws by site ``(S, …) → (S,)``, as it is.
        run: the model's trace at one value of each site.
        values: draws by site; up to four of them are used.

    Raises:
        ValueError: a masked coordinate is neither used nor has it a prior, or is used in a way that has no gradient, or
            a vector of one density is used in part.
    """

    def __init__(
        self,
        density: Callable[[Mapping[str, Tensor]], Tensor],
        run: Callable[[Mapping[str, Tensor]], Trace],
        values: Mapping[str, Tensor],
    ) -> None:
        self.unused: dict[str, Tensor] = {}
        draws = {name: value.detach()[:4] for name, value in values.items()}
        trace = run({name: value[0] for name, value in draws.items()})
        masked = [name for name in draws if _is_masked(trace.nodes[name])]
        with torch.enable_grad():
            leaves = {name: draws[name].clone().requires_grad_() for name in masked}
            value = density({**draws, **leaves})
            slopes: tuple[Tensor | None, ...] = (None,) * len(masked)
            if value.requires_grad:
                slopes = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
        for name, slope in zip(masked, slopes, strict=True):
            base, kept = unmasked(trace.nodes[name])
            used = torch.zeros_like(draws[name][0], dtype=torch.bool) if slope is None else (slope != 0).any(0)
            event = tuple(range(used.dim() - base.event_dim, used.dim()))
            anywhere, everywhere = (used.any(event), used.all(event)) if event else (used, used)
            kept = kept.expand(anywhere.shape)
            if event and bool((~kept & anywhere & ~everywhere).any()) and _is_unbounded(base):
                raise ValueError(
                    f"latent site {name!r} is masked, and the model uses some of its coordinates but not all of them, "
                    "which leaves the others without a density: give it its prior, or sample them as sites of their own"
                )
            unused = ~kept & ~anywhere
            if bool(unused.any()):
                self.unused[name] = unused
        self._check(density, run, draws)

    def log_prob(self, trace: Trace) -> Tensor:
        """The prior's log density of the unused coordinates at the values of a trace."""
        total = torch.zeros(())
        for name, unused in self.unused.items():
            site = trace.nodes[name]
            log_prob = unmasked(site)[0].log_prob(site["value"])
            total = total + torch.where(unused, log_prob, torch.zeros_like(log_prob)).sum()
        return total

    def put_back(self, trace: Trace) -> None:
        """Add it to the sites' own log densities, so that it stands inside of a sum over discrete sites.

        Args:
            trace: with its log densities computed; the masks of the sites are used up.
        """
        for name, unused in self.unused.items():
            site = nodes(trace)[name]
            base, _ = unmasked(site)
            extra = base.log_prob(site["value"])
            extra = torch.where(unused, extra, torch.zeros_like(extra))
            extra = sum_rightmost(extra, site["fn"].event_dim - base.event_dim)
            site["unscaled_log_prob"] = scale_and_mask(site["unscaled_log_prob"], 1.0, site["mask"]) + extra
            site["log_prob"] = site["log_prob"] + extra
            site["mask"] = None

    def _check(self, density: Callable, run: Callable, draws: dict[str, Tensor]) -> None:
        """Draw the unused coordinates anew: the density must stay where it was."""
        if not self.unused:
            return
        size = len(next(iter(draws.values())))
        draws = {name: value[torch.arange(16) % size] for name, value in draws.items()}
        moved = {name: draws[name].clone() for name in draws}
        for index in range(16):
            trace = run({name: value[index] for name, value in draws.items()})
            for name, unused in self.unused.items():
                fn = trace.nodes[name]["fn"]
                try:
                    fresh = fn.sample().expand(moved[name][index].shape)
                except NotImplementedError as error:
                    raise ValueError(
                        f"latent site {name!r} is masked and the model uses it nowhere: it has neither a prior nor a "
                        "posterior there; leave it out, or give it a proper prior"
                    ) from error
                where = unused.reshape(unused.shape + (1,) * (fresh.dim() - unused.dim()))
                moved[name][index] = torch.where(where, fresh, moved[name][index])
        with torch.no_grad():
            before, after = density(draws), density(moved)
        if not torch.allclose(before, after, rtol=1e-5, atol=1e-6, equal_nan=True):
            raise ValueError(
                f"latent sites {sorted(self.unused)} are masked, yet the model's density depends on them, by steps "
                "without a gradient: observe only the rows that are known, y[observed], in place of a mask"
            )


def has_masked_latents(trace: Trace, names: Mapping[str, Any]) -> bool:
    """Whether a mask takes coordinates out of the latent sites that are named."""
    return any(_is_masked(trace.nodes[name]) for name in names if name in trace.nodes)


def _is_masked(site: Mapping[str, Any]) -> bool:
    return not bool(unmasked(site)[1].all())


def _is_unbounded(fn: Any) -> bool:
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real
