"""Pyro's own flows under this library's contract: the peers that the 2-D fits and the benchmark measure against."""

from __future__ import annotations

from collections.abc import Callable

from torch.distributions import Transform

from vi_flows.flows.base import chain
from vi_flows.settings import check_counts
from vi_flows.transforms import Bijection, Chain, FromPyro

__all__ = ["repeat_pyro"]


def repeat_pyro(make: Callable[[], Transform], num_layers: int, revert: bool = False) -> Chain:
    """``num_layers`` of Pyro's transforms.

    Args:
        make: one of the factories of :mod:`pyro.distributions.transforms`, such as ``lambda: planar(2)``.
        num_layers: repetitions.
        revert: flip the order of the entries between them.

    Raises:
        ValueError: ``num_layers`` is less than 1.
    """
    check_counts(1, num_layers=num_layers)

    def layer() -> Bijection:
        return FromPyro(make())

    return chain(layer, num_layers) if revert else Chain([layer() for _ in range(num_layers)])
