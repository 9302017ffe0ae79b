"""Gradient variance of ELBO, STL, IWAE and DReG along a fit of AutoConvFlow to the kidscore regression.

    VI_FLOWS_DATA=… python -m experiments.gradient_variance

At the start (a Gaussian at the mode) and after 100, 300 and 600 steps: the trace of the gradient's covariance over
repeated estimates, and the squared norm of its mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyro
import torch
import tyro

from experiments.gallery.kidscore import load, model
from vi_flows.cli.outcome import exit_with
from vi_flows.guides import AutoConvFlow, fit
from vi_flows.objectives import ELBO, IWAE, DReG, StickingTheLanding
from vi_flows.records import Clock, Record, provenance, row_key

HERE = Path(__file__).parent
ESTIMATORS = {"ELBO": ELBO, "STL": StickingTheLanding, "IWAE-8": IWAE, "DReG-8": DReG}


@dataclass(frozen=True)
class Options:
    """What to run."""

    repeats: int = 40
    """Estimates at each point."""
    num_particles: int = 8
    """Draws of each estimate."""
    seed: int = 0
    """Of the draws."""
    results: Path = HERE / "results" / "gradient-variance.json"
    """Record."""
    figure: Path = HERE.parent / "figures" / "gradient-variance.png"
    """Picture."""


def measure(guide: AutoConvFlow, args: tuple, options: Options) -> dict[str, dict[str, float]]:
    """Variance (summed over parameters) and squared norm of the mean gradient, by estimator."""
    found = {}
    for name, kind in ESTIMATORS.items():
        pyro.set_rng_seed(options.seed)
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

    torch.set_num_threads(1)
    clock = Clock()
    args, _ = load()
    pyro.set_rng_seed(options.seed)
    guide = AutoConvFlow(model, prototype_args=args)
    rows, step = [], 0
    for until in (0, 100, 300, 600):
        if until > step:
            fit(model, guide, *args, num_steps=until - step, tolerance=0.0, seed=options.seed)
            step = until
        rows.append({"step": step, **measure(guide, args, options)})
        print(step, {k: f"{v['variance']:.3g}" for k, v in rows[-1].items() if k != "step"}, flush=True)
    settings = {
        "model": "kidiq-kidscore_momhsiq", "num_particles": options.num_particles, "repeats": options.repeats,
        "seed": options.seed,
    }  # fmt: skip
    Record(
        kind="gradient_variance",
        key=row_key("gradient_variance", settings),
        label="variance of gradient estimators along a fit",
        settings=settings,
        figures={"rows": rows},
        provenance=provenance(clock=clock),
    ).write(options.results, overwrite=True)
    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    axis = figure.subplots()
    for name in ESTIMATORS:
        axis.semilogy([r["step"] for r in rows], [r[name]["variance"] for r in rows], "o-", label=name)
    axis.set(
        xlabel="optimizer steps",
        ylabel="gradient variance, summed",
        title=f"AutoConvFlow on kidscore, {options.num_particles} draws",
    )
    # Outside, so that no point can lie under it.
    figure.legend(loc="outside right upper")
    options.figure.parent.mkdir(exist_ok=True)
    figure.savefig(options.figure, dpi=110)


if __name__ == "__main__":
    exit_with("gradient_variance", lambda words: main(tyro.cli(Options, args=words)))
