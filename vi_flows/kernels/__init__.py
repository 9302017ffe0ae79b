"""The ConvFlow stack's arithmetic: `conv_flow_forward` and `conv_flow_inverse`, by the fastest kernel that is there."""

from vi_flows.kernels.activations import ACTIVATIONS
from vi_flows.kernels.dispatch import (
    KERNELS,
    active_kernel,
    conv_flow_forward,
    conv_flow_inverse,
    instruction_set,
    kernel_reason,
    use_kernel,
)
from vi_flows.kernels.reference import ConvFlowSpec

__all__ = [
    "ACTIVATIONS",
    "KERNELS",
    "ConvFlowSpec",
    "active_kernel",
    "conv_flow_forward",
    "conv_flow_inverse",
    "instruction_set",
    "kernel_reason",
    "use_kernel",
]
