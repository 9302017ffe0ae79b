"""Objectives: ELBO and IWAE for any Pyro program, and the importance-sampled negative log-likelihood."""

from vi_flows.objectives.bounds import ELBO, IWAE, elbo_bound, iwae_bound
from vi_flows.objectives.gradient_estimators import DReG, RenyiBound, StickingTheLanding
from vi_flows.objectives.nll import NLLResult, estimate_nll, pyro_log_weights

__all__ = [
    "ELBO",
    "IWAE",
    "DReG",
    "NLLResult",
    "RenyiBound",
    "StickingTheLanding",
    "elbo_bound",
    "estimate_nll",
    "iwae_bound",
    "pyro_log_weights",
]
