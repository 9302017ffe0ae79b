"""The sites of a flow guide: values with the density that the map to their support gives them."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions.kl import register_kl

__all__ = ["Pushed", "PushedSites"]


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
