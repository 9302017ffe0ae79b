"""Objectives: ELBO and IWAE for any Pyro program, and their gradient estimators."""

from vi_flows.objectives.bounds import ELBO, IWAE, elbo_bound, iwae_bound
from vi_flows.objectives.gradient_estimators import DReG, RenyiBound, StickingTheLanding

__all__ = ["ELBO", "IWAE", "DReG", "RenyiBound", "StickingTheLanding", "elbo_bound", "iwae_bound"]
