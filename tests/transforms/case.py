"""What a bijection case is: the entries of the registry in :mod:`tests.transforms.cases`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vi_flows.transforms import Bijection


@dataclass(frozen=True)
class Case:
    """A named bijection.

    Attributes:
        make: builds it in the default dtype; called under a fixed seed.
        event_shape: of one input.
        scale: standard deviation of the random parameters.
        round_trip: float64 tolerance of x → y → x.
        round_trip32: the same in float32.
        extreme: whether the layer promises to stay bijective for parameters of magnitude 1e3.
        invertible: whether an inverse of points it did not produce exists.
        smooth: whether gradcheck applies (false where the map has kinks that finite differences may straddle).
        moves: whether ``.to`` moves all its tensors (false where some were computed from a context, or where Pyro keeps
            bounds outside of its buffers).
    """

    make: Callable[[], Bijection]
    event_shape: tuple[int, ...]
    scale: float = 0.5
    round_trip: float = 1e-9
    round_trip32: float = 2e-3
    extreme: bool = False
    invertible: bool = True
    smooth: bool = True
    moves: bool = True


def randomise(bijection: Bijection, scale: float) -> Bijection:
    """Give every parameter a random value: a layer at its identity initialization tests nothing."""
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    return bijection
