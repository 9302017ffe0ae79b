"""Flows by name: compositions of bijections, for vectors and for images."""

from vi_flows.flows.vector import FLOWS, conditional_conv_flow, conv_flow, iaf, maf, planar, radial, spline

__all__ = ["FLOWS", "conditional_conv_flow", "conv_flow", "iaf", "maf", "planar", "radial", "spline"]
