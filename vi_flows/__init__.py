"""Variational inference with normalizing flows on Pyro and PyTorch.

The names below are what most users need; each is imported at its first use, so that ``import vi_flows`` costs next to
nothing. The rooms behind them: :mod:`vi_flows.transforms` (bijections), :mod:`vi_flows.flows` (flows by name),
:mod:`vi_flows.guides` (guides for any Pyro model), :mod:`vi_flows.vae` (flow-augmented VAEs),
:mod:`vi_flows.objectives` (bounds), :mod:`vi_flows.evaluation` (likelihoods), :mod:`vi_flows.diagnostics`,
:mod:`vi_flows.data` and :mod:`vi_flows.training`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vi_flows.data import load as load
    from vi_flows.diagnostics import Calibration as Calibration
    from vi_flows.diagnostics import Diagnosis as Diagnosis
    from vi_flows.diagnostics import expected_coverage as expected_coverage
    from vi_flows.diagnostics import simulation_based_calibration as simulation_based_calibration
    from vi_flows.diagnostics.diagnose import diagnose as diagnose
    from vi_flows.distributions import ConditionalImageDensity as ConditionalImageDensity
    from vi_flows.distributions import FlowNormal as FlowNormal
    from vi_flows.distributions import ImageDensity as ImageDensity
    from vi_flows.evaluation import estimate_nll as estimate_nll
    from vi_flows.evaluation import psis as psis
    from vi_flows.flows import FLOWS as FLOWS
    from vi_flows.flows import conditional_conv_flow as conditional_conv_flow
    from vi_flows.flows import conv_flow as conv_flow
    from vi_flows.guides import AmortizedFit as AmortizedFit
    from vi_flows.guides import AmortizedFlowGuide as AmortizedFlowGuide
    from vi_flows.guides import AmortizedPosterior as AmortizedPosterior
    from vi_flows.guides import AutoConvFlow as AutoConvFlow
    from vi_flows.guides import AutoFlow as AutoFlow
    from vi_flows.guides import FitResult as FitResult
    from vi_flows.guides import fit_amortized as fit_amortized
    from vi_flows.guides.fit import fit as fit
    from vi_flows.objectives import ELBO as ELBO
    from vi_flows.objectives import IWAE as IWAE
    from vi_flows.objectives import DReG as DReG
    from vi_flows.objectives import RenyiBound as RenyiBound
    from vi_flows.objectives import StickingTheLanding as StickingTheLanding
    from vi_flows.transforms import Bijection as Bijection
    from vi_flows.transforms import Chain as Chain
    from vi_flows.transforms import FromPyro as FromPyro
    from vi_flows.transforms import Inverse as Inverse
    from vi_flows.vae import VAE as VAE
    from vi_flows.vae import VAEConfig as VAEConfig
    from vi_flows.vae import build_vae as build_vae

__version__ = "0.1.0"

ROOM_OF = {
    "AmortizedFit": "guides",
    "AmortizedFlowGuide": "guides",
    "AmortizedPosterior": "guides",
    "AutoConvFlow": "guides",
    "AutoFlow": "guides",
    "Bijection": "transforms",
    "Chain": "transforms",
    "Calibration": "diagnostics",
    "ConditionalImageDensity": "distributions",
    "DReG": "objectives",
    "Diagnosis": "diagnostics",
    "ELBO": "objectives",
    "FLOWS": "flows",
    "FitResult": "guides",
    "FlowNormal": "distributions",
    "FromPyro": "transforms",
    "IWAE": "objectives",
    "ImageDensity": "distributions",
    "Inverse": "transforms",
    "RenyiBound": "objectives",
    "StickingTheLanding": "objectives",
    "VAE": "vae",
    "VAEConfig": "vae",
    "build_vae": "vae",
    "conditional_conv_flow": "flows",
    "conv_flow": "flows",
    "diagnose": "diagnostics",
    "estimate_nll": "evaluation",
    "expected_coverage": "diagnostics",
    "fit": "guides",
    "fit_amortized": "guides",
    "load": "data",
    "psis": "evaluation",
    "simulation_based_calibration": "diagnostics",
}
"""Where each public name lives."""

__all__ = sorted(ROOM_OF)


def __getattr__(name: str) -> Any:
    """Import a public name, or one of the rooms, at its first use.

    Raises:
        AttributeError: there is no such name.
    """
    if name in ROOM_OF.values():
        return importlib.import_module(f"{__name__}.{name}")
    room = ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *ROOM_OF})
