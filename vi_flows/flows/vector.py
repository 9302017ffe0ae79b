"""The registry of vector flows: a new one is a file of its own and an entry here."""

from __future__ import annotations

from vi_flows.flows.autoregressive import IAF, MAF, Spline
from vi_flows.flows.base import VectorFlow
from vi_flows.flows.conv_flow import ConvFlow
from vi_flows.flows.coupling import NICE, NSF, RealNVP
from vi_flows.flows.elementwise_spline import ElementwiseSpline
from vi_flows.flows.planar import Planar
from vi_flows.flows.radial import Radial
from vi_flows.flows.sylvester import Sylvester

__all__ = ["FLOWS"]

FLOWS: dict[str, type[VectorFlow]] = {
    flow.name: flow
    for flow in (ConvFlow, Planar, Radial, Sylvester, IAF, MAF, Spline, NICE, RealNVP, NSF, ElementwiseSpline)
}
"""The flows by name; each is a dataclass of settings with ``build(input_dim, context_dim=None)``."""
