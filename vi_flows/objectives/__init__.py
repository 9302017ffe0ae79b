"""Objectives: ELBO and IWAE for any Pyro program, and their gradient estimators."""

from vi_flows.objectives.bounds import ELBO, IWAE, elbo_bound, iwae_bound
from vi_flows.objectives.direct import DIRECT_OBJECTIVES, DirectObjective
from vi_flows.objectives.gradient_estimators import DReG, RenyiBound, StickingTheLanding

__all__ = [
    "DIRECT_OBJECTIVES",
    "ELBO",
    "IWAE",
    "DReG",
    "DirectObjective",
    "RenyiBound",
    "StickingTheLanding",
    "elbo_bound",
    "iwae_bound",
]
