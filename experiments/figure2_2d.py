"""Figure 2 of the ConvFlow paper with numbers: flows fitted to the wave target, KL(q‖p) against quadrature.

    python experiments/figure2_2d.py

Panels: the target, ConvFlow with K = 1, 2, 4 (the paper's 40 parameters: 8 layers) and 8 blocks, and the flows of
others at no fewer parameters than ConvFlow's K = 8. ConvFlow has tanh here: with the paper's leaky ReLU the
reparameterised gradient misses the boundary term of its jumping log-determinant.

One rule for every flow, ours included: each learning rate and seed is tried in a short run, the one with the least
training objective (no quadrature) is run to the end. The record holds the trials.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from vi_flows.distributions.energies import target_2d
from vi_flows.fit2d import Fit2D
from vi_flows.plotting2d import plot_fits_2d
from vi_flows.train.checkpoint import write_atomic

HERE = Path(__file__).parent
ROWS = [
    ("conv_flow", 1), ("conv_flow", 2), ("conv_flow", 4), ("conv_flow", 8),
    ("planar", 8), ("radial", 8), ("iaf", 8), ("spline", 8),
]  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What to run."""

    num_steps: int = 5000
    """Optimiser steps of each flow."""
    batch_size: int = 512
    """Draws a step."""
    learning_rates: tuple[float, ...] = (0.01, 0.03)
    """Rates to choose from."""
    restarts: int = 2
    """Seeds to choose from."""
    probe_steps: int = 800
    """Steps of each trial."""
    results: Path = HERE / "results" / "fit2d-wave.json"
    """Record."""
    figure: Path = HERE.parent / "figures" / "fit2d-wave.png"
    """Picture."""


def main(options: Options) -> None:
    """Fit every flow, write the record after each, draw."""
    torch.set_num_threads(1)
    fits, records = [], []
    for name, blocks in ROWS:
        job = Fit2D(
            "wave", name, blocks, "tanh",
            options.num_steps, options.batch_size, options.learning_rates, options.restarts, options.probe_steps,
        )  # fmt: skip
        flow, result, trials = job.fit()
        records.append(job.record(result, trials))
        label = f"{name} K={blocks}" if name == "conv_flow" else name
        title = f"{label}, {result.num_parameters} par.\nKL {result.kl:.3f}"
        fits.append((title, flow))
        print(title.replace("\n", "  "), f"± {result.kl_se:.4f}  {result.seconds:.0f} s", trials[0], flush=True)
        options.results.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.results, json.dumps(records, indent=1) + "\n")
        plot_fits_2d(target_2d("wave"), fits, options.figure, columns=5)


if __name__ == "__main__":
    main(tyro.cli(Options))
