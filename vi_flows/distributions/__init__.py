"""Distributions that Pyro lacks or that cost less than Pyro's composed ones."""

from vi_flows.distributions.dequantization import Dequantized, UniformDequantizer, VariationalDequantizer
from vi_flows.distributions.image import ImageDensity, ImageOverflowError, bits_per_dim
from vi_flows.distributions.image_conditional import ConditionalImageDensity
from vi_flows.distributions.lean import BernoulliLogits, FlowNormal, StandardNormal

__all__ = [
    "BernoulliLogits",
    "ConditionalImageDensity",
    "Dequantized",
    "FlowNormal",
    "ImageDensity",
    "ImageOverflowError",
    "StandardNormal",
    "UniformDequantizer",
    "VariationalDequantizer",
    "bits_per_dim",
]
