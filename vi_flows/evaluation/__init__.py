"""Evaluation: importance-sampled likelihoods and how far they can be trusted."""

from vi_flows.evaluation.nll import NLLResult, estimate_nll, pyro_log_weights
from vi_flows.evaluation.psis import PSIS, effective_sample_size, psis

__all__ = ["PSIS", "NLLResult", "effective_sample_size", "estimate_nll", "psis", "pyro_log_weights"]
