"""The sites of a flow guide: values with the density that the map to their support gives them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions.kl import register_kl

from vi_flows.traces import Site

__all__ = ["Place", "Pushed", "PushedSites", "sample_pushed"]


class Pushed(dist.Delta):
    """A ``Delta`` whose ``log_density`` counts in Kullback-Leibler divergences, too.

    Pyro's ``TraceMeanField_ELBO`` takes the divergence of a guide's site from the model's, where it knows one. Of a
    ``Delta`` it knows ``−log p(value)``, without the ``Delta``'s own density, so that the log-determinants of the maps
    to the supports are lost from the ELBO.
    """


@register_kl(Pushed, dist.Distribution)
def _kl_pushed(q: Pushed, p: Any) -> Tensor:
    return q.log_density - p.log_prob(q.v)


class PushedSites(Messenger):
    """Makes the ``Delta`` sites within :class:`Pushed` ones."""

    def _pyro_sample(self, msg: Any) -> None:
        if type(msg["fn"]) is dist.Delta:
            msg["fn"] = Pushed(msg["fn"].v, msg["fn"].log_density, msg["fn"].event_dim)


class Place(NamedTuple):
    """Where a site stands in a program.

    Attributes:
        shape: of its value.
        event_dim: how many of its dimensions are of one event.
        plates: the names, sizes and dimensions of its plates.
    """

    shape: torch.Size
    event_dim: int
    plates: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, site: Site) -> Place:
        """That of a site of a trace."""
        plates = tuple((f.name, f.size, f.dim) for f in site["cond_indep_stack"] if f.vectorized)
        return cls(site["value"].shape, site["fn"].event_dim, plates)


def sample_pushed(
    values: Mapping[str, Tensor],
    ladjs: Mapping[str, Tensor],
    batch: torch.Size,
    places: Mapping[str, Place],
    plates: Mapping[str, pyro.plate],
) -> dict[str, Tensor]:
    """Sample every site at its value, with the density that the map to its support gives it, in its plates.

    Args:
        values: by site, ``batch`` before the site's own dimensions.
        ladjs: ``log|det|`` of the maps, entry by entry or one an event.
        batch: of the latents: empty, or that of particles, to the left of all plates.
        places: of the sites.
        plates: by name.
    """
    result = {}
    for name, place in places.items():
        shape = torch.broadcast_shapes(place.shape, batch + (1,) * place.event_dim)
        log_density = -ladjs[name].reshape(*shape[: len(shape) - place.event_dim], -1).sum(-1)
        with ExitStack() as stack:
            for plate, *_ in place.plates:
                stack.enter_context(plates[plate])
            result[name] = pyro.sample(name, Pushed(values[name].reshape(shape), log_density, place.event_dim))
    return result
