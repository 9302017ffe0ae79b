"""Gradient variance of ELBO, STL, IWAE and DReG along a fit of AutoConvFlow to the kidscore regression.

    VI_FLOWS_DATA=… python -m experiments.gradient_variance

At the start (a Gaussian at the mode) and after 100, 300 and 600 steps: the trace of the gradient's covariance over
repeated estimates, and the squared norm of its mean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyro
import torch
import tyro

from experiments.gallery.kidscore import load, model
from vi_flows.guides import AutoConvFlow, fit
from vi_flows.objectives import ELBO, IWAE, DReG, StickingTheLanding

HERE = Path(__file__).parent
ESTIMATORS = {"ELBO": ELBO, "STL": StickingTheLanding, "IWAE-8": IWAE, "DReG-8": DReG}


@dataclass(frozen=True)
class Options:
    """What to run."""

    repeats: int = 40
    """Estimates at each point."""
    num_particles: int = 8
    """Draws of each estimate."""
    results: Path = HERE / "results" / "gradient-variance.json"
    """Record."""
    figure: Path = HERE.parent / "figures" / "gradient-variance.png"
    """Picture."""


def measure(guide: AutoConvFlow, args: tuple, options: Options) -> dict[str, dict[str, float]]:
    """Variance (summed over parameters) and squared norm of the mean gradient, by estimator."""
    found = {}
    for name, kind in ESTIMATORS.items():
        pyro.set_rng_seed(0)
        loss = kind(options.num_particles, vectorize_particles=True, max_plate_nesting=1)
        grads = []
        for _ in range(options.repeats):
            guide.zero_grad()
            loss.differentiable_loss(model, guide, *args).backward()
            grads.append(torch.cat([p.grad.flatten() for p in guide.parameters() if p.grad is not None]))
        stacked = torch.stack(grads).double()
        found[name] = {"variance": float(stacked.var(0).sum()), "mean_norm2": float(stacked.mean(0).square().sum())}
    guide.zero_grad()
    return found


def main(options: Options) -> None:
    """Measure along a fit, write the record, draw."""
    from matplotlib.figure import Figure

    args, _ = load()
    pyro.set_rng_seed(0)
    guide = AutoConvFlow(model, prototype_args=args)
    rows, step = [], 0
    for until in (0, 100, 300, 600):
        if until > step:
            fit(model, guide, *args, num_steps=until - step)
            step = until
        rows.append({"step": step, **measure(guide, args, options)})
        print(step, {k: f"{v['variance']:.3g}" for k, v in rows[-1].items() if k != "step"}, flush=True)
    record = {"model": "kidiq-kidscore_momhsiq", "num_particles": options.num_particles, "repeats": options.repeats}
    options.results.write_text(json.dumps({**record, "rows": rows}, indent=1) + "\n")
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axis = figure.subplots()
    for name in ESTIMATORS:
        axis.semilogy([r["step"] for r in rows], [r[name]["variance"] for r in rows], "o-", label=name)
    axis.set(xlabel="optimiser steps", ylabel="gradient variance, summed", title="AutoConvFlow on kidscore, 8 draws")
    axis.legend()
    options.figure.parent.mkdir(exist_ok=True)
    figure.savefig(options.figure, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Options))
