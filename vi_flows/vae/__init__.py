"""The papers' variational autoencoders as Pyro programs: generative models G1 and G2, amortised guides with flows."""

from vi_flows.vae.annealing import AnnealingSpace
from vi_flows.vae.config import VAEConfig, build_vae
from vi_flows.vae.evidence import AISSettings, VAEEvidence, annealed_vae, evaluate_vae, simulated_bounds
from vi_flows.vae.flow_likelihood import FlowLikelihoodVAE
from vi_flows.vae.guide import AmortizedGuide
from vi_flows.vae.model import GenerativeModel, LatentChain
from vi_flows.vae.pixel_decoder import LatentUse, PixelDecoderModel, build_pixel_vae, latent_use, others_of
from vi_flows.vae.refinement import RefinedGuide, RefinementSettings, refine
from vi_flows.vae.vae import VAE, LogWeightTerms

__all__ = [
    "VAE",
    "AISSettings",
    "AmortizedGuide",
    "AnnealingSpace",
    "FlowLikelihoodVAE",
    "GenerativeModel",
    "LatentChain",
    "LatentUse",
    "LogWeightTerms",
    "PixelDecoderModel",
    "RefinedGuide",
    "RefinementSettings",
    "VAEConfig",
    "VAEEvidence",
    "annealed_vae",
    "build_pixel_vae",
    "build_vae",
    "evaluate_vae",
    "latent_use",
    "others_of",
    "refine",
    "simulated_bounds",
]
