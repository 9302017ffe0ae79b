"""What the gallery shares: four guides under one budget against one posterior, and the record of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from experiments.gallery.reference import Quantities, Reference
from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, FitResult, fit
from vi_flows.records import provenance

RESULTS = Path(__file__).parents[1] / "results"

GUIDES: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "AutoNormal": (AutoNormal, (0.01, 0.1)),
    "AutoMultivariateNormal": (AutoMultivariateNormal, (0.01, 0.1)),
    "AutoIAFNormal": (lambda model: AutoIAFNormal(model, num_transforms=2), (0.01, 0.03)),
    "AutoConvFlow": (AutoConvFlow, (0.01,)),
}
"""Guides, and the learning rates tried. Pyro's guides keep the run with the higher ELBO of two: the default rate of
``fit``, and a larger one, which they need where the posterior lies far from their start. Ours has its default alone."""


@dataclass(frozen=True)
class Posterior:
    """One entry of the gallery.

    Attributes:
        name: of the record.
        title: of the table.
        model: a Pyro program.
        args: its arguments.
        quantities: from draws of the sites ``(draws, …)`` to the compared scalars ``(draws,)``.
        reference: finds the truth (NUTS takes a minute or so).
    """

    name: str
    title: str
    model: Callable
    args: tuple
    quantities: Quantities
    reference: Callable[[], Reference]

    @property
    def path(self) -> Path:
        """The record."""
        return RESULTS / f"gallery-{self.name}.json"


@dataclass(frozen=True)
class Budget:
    """What every guide gets alike."""

    num_steps: int = 2000
    """Optimizer steps at most; the one stopping rule of ``fit`` may end earlier."""
    num_particles: int = 16
    """Draws a step."""
    num_draws: int = 40_000
    """Draws that are compared with the truth."""
    seed: int = 0
    """Of parameters and draws."""


def errors(draws: Mapping[str, Tensor], reference: Reference) -> dict[str, Any]:
    """Errors of the means in posterior standard deviations (largest and mean) and the range of the sd ratios."""
    z = {k: abs(float(v.double().mean()) - reference.mean[k]) / reference.sd[k] for k, v in draws.items()}
    ratio = {k: float(v.double().std()) / reference.sd[k] for k, v in draws.items()}
    worst, low, high = max(z, key=z.__getitem__), min(ratio, key=ratio.__getitem__), max(ratio, key=ratio.__getitem__)
    return {
        "max_mean_error_sd": round(z[worst], 4), "at": worst, "mean_error_sd": round(sum(z.values()) / len(z), 4),
        "min_sd_ratio": round(ratio[low], 4), "min_at": low,
        "max_sd_ratio": round(ratio[high], 4), "max_at": high,
    }  # fmt: skip


def run_guide(posterior: Posterior, guide_name: str, reference: Reference, budget: Budget) -> dict[str, Any]:
    """Fit one guide (at each of its learning rates, the higher ELBO wins) and compare it with the truth.

    A guide that diverges at every rate gets a row that says so.
    """
    make, rates = GUIDES[guide_name]
    model, args = posterior.model, posterior.args
    best: tuple[Any, FitResult, float, float] | None = None
    elbos: dict[str, float | None] = {}
    for rate in rates:
        pyro.clear_param_store()
        pyro.set_rng_seed(budget.seed)
        began = time.perf_counter()
        guide = make(model)
        try:
            result = fit(
                model, guide, *args,
                num_steps=budget.num_steps, num_particles=budget.num_particles, learning_rate=rate, seed=budget.seed,
            )  # fmt: skip
        except RuntimeError as error:
            # A hundred steps in a row without a finite gradient: this guide diverges here.
            print(f"  {guide_name} at {rate}: {error}", flush=True)
            elbos[str(rate)] = None
            continue
        seconds = time.perf_counter() - began
        elbos[str(rate)] = round(result.elbo, 3)
        if best is None or result.elbo > best[1].elbo:
            best = guide, result, rate, seconds
    common = {"guide": guide_name, "elbo_by_learning_rate": elbos, "settings": asdict(budget), **provenance()}
    if best is None:
        return {**common, "verdict": "diverged"}
    guide, result, rate, seconds = best
    pyro.set_rng_seed(budget.seed + 1)
    with torch.no_grad():
        raw = Predictive(guide, num_samples=budget.num_draws, parallel=True)(*args)
    shapes = {name: site["value"].shape for name, site in guide.prototype_trace.iter_stochastic_nodes()}
    draws = {name: raw[name].reshape(budget.num_draws, *shape) for name, shape in shapes.items()}
    report = diagnose(model, guide, *args)
    return {
        **common, **errors(posterior.quantities(draws), reference),
        "elbo": round(report.elbo, 3), "elbo_se": round(report.elbo_se, 3),
        "log_evidence": round(report.log_evidence, 3), "k_hat": round(report.k_hat, 3), "verdict": report.verdict,
        "learning_rate": rate, "steps": result.num_steps,
        "parameters": sum(p.numel() for p in guide.parameters()), "seconds": round(seconds, 1),
    }  # fmt: skip


def describe(row: Mapping[str, Any]) -> str:
    """A line for the terminal."""
    if row["verdict"] == "diverged":
        return f"  {row['guide']:23s} diverged"
    return (
        f"  {row['guide']:23s} mean {row['max_mean_error_sd']:.3f} sd  ratios {row['min_sd_ratio']:.3f}…"
        f"{row['max_sd_ratio']:.3f}  ELBO {row['elbo']:.3f}  k-hat {row['k_hat']:.2f}  {row['verdict']}  "
        f"{row['steps']} steps at {row['learning_rate']}, {row['seconds']:.0f} s"
    )
