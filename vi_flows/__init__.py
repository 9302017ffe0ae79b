"""Variational inference with normalizing flows on Pyro and PyTorch.

The rooms: :mod:`vi_flows.transforms` (bijections), :mod:`vi_flows.flows` (flows by name), :mod:`vi_flows.vae`
(flow-augmented VAEs as Pyro programs), :mod:`vi_flows.objectives` (ELBO, IWAE, NLL), :mod:`vi_flows.data`.
"""

from vi_flows.flows import conditional_conv_flow, conv_flow

__version__ = "0.1.0"

__all__ = ["conditional_conv_flow", "conv_flow"]
