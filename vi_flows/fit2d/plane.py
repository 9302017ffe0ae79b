"""Flows of the plane: which bijections are some, and the type that they compute in."""

from __future__ import annotations

import torch

from vi_flows.settings import check_types
from vi_flows.transforms import Bijection, Chain

__all__ = ["dtype_of", "of_the_plane"]


def of_the_plane(flow: Bijection) -> Bijection:
    """The flow as one of vectors: a map of single entries (``FromPyro(AffineTransform(…))``) changes both.

    Raises:
        TypeError: it is no bijection.
        ValueError: its events are larger than vectors.
    """
    check_types(Bijection, ": a flow's settings build one, ConvFlow().build(2)", flow=flow)
    return flow if flow.event_dim == 1 else Chain([flow], event_dim=1)


def dtype_of(flow: Bijection) -> torch.dtype:
    """The type of its parameters; the default one, where it has none."""
    return next((parameter.dtype for parameter in flow.parameters()), torch.get_default_dtype())
