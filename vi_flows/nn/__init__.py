"""Networks: the conditioners of flows, encoders and decoders."""

from vi_flows.nn.attention import AttentionConditioner
from vi_flows.nn.image import ConvConditioner, GatedConditioner, MLPConditioner, ResNetConditioner
from vi_flows.nn.masked import CausalConv1d, ContextBias, MaskedConv2d, MaskedLinear
from vi_flows.nn.masked_lstm import DiagonalBiLSTM, RowLSTM
from vi_flows.nn.mlp import MLP, BatchNorm, GaussianHead

__all__ = [
    "MLP",
    "AttentionConditioner",
    "BatchNorm",
    "CausalConv1d",
    "ContextBias",
    "ConvConditioner",
    "DiagonalBiLSTM",
    "GatedConditioner",
    "GaussianHead",
    "MLPConditioner",
    "MaskedConv2d",
    "MaskedLinear",
    "ResNetConditioner",
    "RowLSTM",
]
