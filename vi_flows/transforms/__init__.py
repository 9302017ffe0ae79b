"""Bijections: the contract, ConvFlow, and Pyro's own transforms under the same contract."""

from vi_flows.transforms.affine import Affine
from vi_flows.transforms.base import Bijection, Chain, ConditionalBijection, ConditionalChain, EvaluationState, Inverse
from vi_flows.transforms.conv_flow import ConditionalConvFlow, ConvBlock, ConvFlow, ConvFlowStack, Revert
from vi_flows.transforms.from_pyro import FromPyro
from vi_flows.transforms.triangular_scale import TriangularScale

__all__ = [
    "Affine",
    "Bijection",
    "Chain",
    "ConditionalBijection",
    "ConditionalChain",
    "ConditionalConvFlow",
    "ConvBlock",
    "ConvFlow",
    "ConvFlowStack",
    "EvaluationState",
    "FromPyro",
    "Inverse",
    "Revert",
    "TriangularScale",
]
