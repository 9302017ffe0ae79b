"""Pyro guides made of flows: for any model, for local latents, and one call that fits them."""

from vi_flows.guides.amortize import AmortizedFit, AmortizedPosterior, SitesDistribution, fit_amortized
from vi_flows.guides.amortized import AmortizedFlowGuide
from vi_flows.guides.auto_conv_flow import AutoConvFlow, mixed_conv_flow
from vi_flows.guides.auto_flow import AutoFlow
from vi_flows.guides.datatree import datatree
from vi_flows.guides.fit import FitResult, fit
from vi_flows.guides.initial import init_to_median_or_origin
from vi_flows.guides.log_joint import LogJoint
from vi_flows.guides.prototype import SubsampledLatentError
from vi_flows.guides.start.gaussians import GaussianStart
from vi_flows.guides.start.pathfinder import pathfinder
from vi_flows.guides.supports import DependentSupportError

__all__ = [
    "AmortizedFit",
    "AmortizedFlowGuide",
    "AmortizedPosterior",
    "AutoConvFlow",
    "AutoFlow",
    "DependentSupportError",
    "FitResult",
    "GaussianStart",
    "LogJoint",
    "SitesDistribution",
    "SubsampledLatentError",
    "datatree",
    "fit",
    "fit_amortized",
    "init_to_median_or_origin",
    "mixed_conv_flow",
    "pathfinder",
]
