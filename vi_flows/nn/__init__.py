"""Networks: the conditioners of flows, encoders and decoders."""

from vi_flows.nn.image import ConvConditioner, MLPConditioner, ResNetConditioner
from vi_flows.nn.mlp import MLP, BatchNorm, GaussianHead

__all__ = ["MLP", "BatchNorm", "ConvConditioner", "GaussianHead", "MLPConditioner", "ResNetConditioner"]
