"""Flows: small typed descriptions that build compositions of bijections, for vectors and for images.

``Planar(num_layers=16).build(50)`` is a bijection with parameters of its own, ``….build(50, context_dim=200)`` a
family whose parameters come from a context: ``condition(context)`` is the bijection.
"""

from vi_flows.flows.autoregressive import IAF, MAF, Spline
from vi_flows.flows.base import VectorFlow
from vi_flows.flows.conv_flow import ConvFlow, conditional_conv_flow, conv_flow
from vi_flows.flows.coupling import NICE, NSF, RealNVP
from vi_flows.flows.elementwise_spline import ElementwiseSpline
from vi_flows.flows.planar import Planar
from vi_flows.flows.pyro_flows import repeat_pyro
from vi_flows.flows.radial import Radial
from vi_flows.flows.sylvester import Sylvester
from vi_flows.flows.vector import FLOWS
from vi_flows.flows.words import flow_from_words, flow_in_words

__all__ = [
    "FLOWS", "IAF", "MAF", "NICE", "NSF", "ConvFlow", "ElementwiseSpline", "Planar", "Radial", "RealNVP", "Spline",
    "Sylvester", "VectorFlow", "conditional_conv_flow", "conv_flow", "flow_from_words",
    "flow_in_words", "repeat_pyro",
]  # fmt: skip
