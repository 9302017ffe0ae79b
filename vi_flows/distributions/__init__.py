"""Distributions that Pyro lacks or that cost less than Pyro's composed ones."""

from vi_flows.distributions.lean import BernoulliLogits, FlowNormal

__all__ = ["BernoulliLogits", "FlowNormal"]
