"""Amortised inference for simulators: the posterior for all data at once, learnt from draws of a program."""

from vi_flows.guides.amortize.fit_amortized import AmortizedFit, fit_amortized
from vi_flows.guides.amortize.joint_draws import JointDraws, Simulator
from vi_flows.guides.amortize.posterior import AmortizedPosterior, SitesDistribution

__all__ = ["AmortizedFit", "AmortizedPosterior", "JointDraws", "Simulator", "SitesDistribution", "fit_amortized"]
