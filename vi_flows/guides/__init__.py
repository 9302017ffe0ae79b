"""Pyro guides made of flows."""

from vi_flows.guides.affine import Affine
from vi_flows.guides.auto_flow import AutoConvFlow, AutoFlow, SubsampledLatentError, init_to_median_or_origin
from vi_flows.guides.log_joint import LogJoint
from vi_flows.guides.warm_start import GaussianStart, pathfinder

__all__ = [
    "Affine",
    "AutoConvFlow",
    "AutoFlow",
    "GaussianStart",
    "LogJoint",
    "SubsampledLatentError",
    "init_to_median_or_origin",
    "pathfinder",
]
