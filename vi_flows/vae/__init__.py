"""The papers' variational autoencoders as Pyro programs: generative models G1 and G2, amortised guides with flows."""

from vi_flows.vae.config import VAEConfig, build_vae
from vi_flows.vae.flow_likelihood import FlowLikelihoodVAE
from vi_flows.vae.guide import AmortizedGuide
from vi_flows.vae.model import GenerativeModel
from vi_flows.vae.vae import VAE, LogWeightTerms

__all__ = ["VAE", "AmortizedGuide", "FlowLikelihoodVAE", "GenerativeModel", "LogWeightTerms", "VAEConfig", "build_vae"]
