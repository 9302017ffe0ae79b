"""The ConvFlow stack's arithmetic: `conv_flow_forward` and `conv_flow_inverse`, with the plain PyTorch reference."""

from vi_flows.kernels.reference import (
    ACTIVATIONS,
    ConvFlowSpec,
    conv_flow_forward,
    conv_flow_inverse,
)

__all__ = ["ACTIVATIONS", "ConvFlowSpec", "conv_flow_forward", "conv_flow_inverse"]
