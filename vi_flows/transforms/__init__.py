"""Bijections: the contract, ConvFlow, image layers, and Pyro's own transforms under the same contract."""

from vi_flows.transforms.base import Bijection, ConditionalBijection
from vi_flows.transforms.composition import Chain, ConditionalChain, ConditionalInverse, Inverse
from vi_flows.transforms.coupling import ChannelGroups, Checkerboard, ConditionalCoupling, Coupling, VectorGroups
from vi_flows.transforms.coupling_maps import AdditiveMap, AffineMap, ConvMap, MConvMap
from vi_flows.transforms.coupling_mixture import MixtureMap
from vi_flows.transforms.coupling_spline import SplineMap
from vi_flows.transforms.from_pyro import FromPyro
from vi_flows.transforms.image.act_norm import ActNorm, ImageBatchNorm, Scaling
from vi_flows.transforms.image.circular_conv import CircularConv
from vi_flows.transforms.image.conv1x1 import Conv1x1
from vi_flows.transforms.image.finc_conv import FourCornerConv2d
from vi_flows.transforms.image.inv_conv import EmergingConv2d, OneSidedConv2d
from vi_flows.transforms.image.logit import Logit
from vi_flows.transforms.image.multi_scale import MultiScale, SplitPrior
from vi_flows.transforms.image.periodic_conv import PeriodicConv2d
from vi_flows.transforms.image.pixel_spline import PixelSpline
from vi_flows.transforms.image.pointwise import ImageChain
from vi_flows.transforms.image.squeeze import ChannelPermutation, Squeeze
from vi_flows.transforms.memo import EvaluationState
from vi_flows.transforms.recompute import Checkpointed, ConditionalCheckpointed
from vi_flows.transforms.vector.affine import Affine
from vi_flows.transforms.vector.conv_flow import ConditionalConvFlow, ConvBlock, ConvFlow, ConvFlowStack, Revert
from vi_flows.transforms.vector.quadratic_tails import QuadraticTails
from vi_flows.transforms.vector.triangular_scale import TriangularScale

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
    "ConditionalCheckpointed",
    "ConditionalConvFlow",
    "ConditionalCoupling",
    "ConditionalInverse",
    "Conv1x1",
    "ConvBlock",
    "ConvFlow",
    "ConvFlowStack",
    "ConvMap",
    "Coupling",
    "EmergingConv2d",
    "EvaluationState",
    "FourCornerConv2d",
    "FromPyro",
    "ImageBatchNorm",
    "ImageChain",
    "Inverse",
    "Logit",
    "MConvMap",
    "MixtureMap",
    "MultiScale",
    "OneSidedConv2d",
    "PeriodicConv2d",
    "PixelSpline",
    "QuadraticTails",
    "Revert",
    "Scaling",
    "SplineMap",
    "SplitPrior",
    "Squeeze",
    "TriangularScale",
    "VectorGroups",
]
