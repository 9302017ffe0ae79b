"""Evaluation: likelihoods by importance sampling and by annealing, and how far they can be trusted."""

from vi_flows.evaluation.ais import (
    AISResult,
    AISStart,
    annealed_evidence,
    hmc_step,
    pilot_step_sizes,
    reverse_evidence,
)
from vi_flows.evaluation.compare import PairedComparison, paired_bootstrap
from vi_flows.evaluation.nll import NLLResult, estimate_nll, pyro_log_weights
from vi_flows.evaluation.parts import NOT_KEPT, Parts
from vi_flows.evaluation.psis import PSIS, effective_sample_size, psis
from vi_flows.evaluation.spread import evenly, spread_evenly

__all__ = [
    "NOT_KEPT",
    "PSIS",
    "AISResult",
    "AISStart",
    "NLLResult",
    "PairedComparison",
    "Parts",
    "annealed_evidence",
    "effective_sample_size",
    "estimate_nll",
    "evenly",
    "hmc_step",
    "paired_bootstrap",
    "pilot_step_sizes",
    "psis",
    "pyro_log_weights",
    "reverse_evidence",
    "spread_evenly",
]
