"""Bijections: the contract, ConvFlow, image layers, and Pyro's own transforms under the same contract."""

from vi_flows.transforms.act_norm import ActNorm, ImageBatchNorm, Scaling
from vi_flows.transforms.affine import Affine
from vi_flows.transforms.base import Bijection, Chain, ConditionalBijection, ConditionalChain, EvaluationState, Inverse
from vi_flows.transforms.checkpointing import Checkpointed
from vi_flows.transforms.circular_conv import CircularConv
from vi_flows.transforms.conv1x1 import Conv1x1
from vi_flows.transforms.conv_flow import ConditionalConvFlow, ConvBlock, ConvFlow, ConvFlowStack, Revert
from vi_flows.transforms.coupling import ChannelGroups, Checkerboard, ConditionalCoupling, Coupling
from vi_flows.transforms.coupling_maps import AdditiveMap, AffineMap, ConvMap, MConvMap
from vi_flows.transforms.from_pyro import FromPyro
from vi_flows.transforms.inv_conv import EmergingConv2d, OneSidedConv2d
from vi_flows.transforms.logit import Logit
from vi_flows.transforms.quadratic_tails import QuadraticTails
from vi_flows.transforms.split import MultiScale, SplitPrior
from vi_flows.transforms.squeeze import ChannelPermutation, Squeeze
from vi_flows.transforms.triangular_scale import TriangularScale

__all__ = [
    "ActNorm",
    "AdditiveMap",
    "Affine",
    "AffineMap",
    "Bijection",
    "Chain",
    "ChannelGroups",
    "ChannelPermutation",
    "Checkerboard",
    "Checkpointed",
    "CircularConv",
    "ConditionalBijection",
    "ConditionalChain",
    "ConditionalConvFlow",
    "ConditionalCoupling",
    "Conv1x1",
    "ConvBlock",
    "ConvFlow",
    "ConvFlowStack",
    "ConvMap",
    "Coupling",
    "EmergingConv2d",
    "EvaluationState",
    "FromPyro",
    "ImageBatchNorm",
    "Inverse",
    "Logit",
    "MConvMap",
    "MultiScale",
    "OneSidedConv2d",
    "QuadraticTails",
    "Revert",
    "Scaling",
    "SplitPrior",
    "Squeeze",
    "TriangularScale",
]
