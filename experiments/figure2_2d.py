"""Flows fitted to two-dimensional targets, KL(q‖p) in nats against quadrature.

    python experiments/figure2_2d.py                 # figure 2 of the ConvFlow paper: one target, many flows
    python experiments/figure2_2d.py --all-targets   # ConvFlow and planar flows on every other target

Figure 2: the target, ConvFlow with K = 1, 2, 4 (the paper's 40 parameters: 8 layers) and 8 blocks, and the flows of
others at no fewer parameters than ConvFlow's K = 8; and ConvFlow with as many layers but a Revert after each, for in
two dimensions the second layer of the paper's block (dilation 2) mixes nothing. ConvFlow has tanh here: with the
paper's leaky ReLU the reparameterised gradient misses the boundary term of its jumping log-determinant.

One rule for every flow, ours included: each learning rate and seed is tried in a short run, the two with the least
training objectives (no quadrature) are run to the end, and the better by that objective is kept. The record holds the
trials.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from vi_flows.cli.outcome import exit_with
from vi_flows.distributions.energies import target_2d
from vi_flows.fit2d import Fit2D
from vi_flows.fit2d.plotting import INNER, picture_of_draws, picture_of_target, plot_panels_2d
from vi_flows.records import Clock, Record, provenance, row_key

HERE = Path(__file__).parent
FIGURE_2 = [
    ("wave", "conv_flow", 1, (1, 2)), ("wave", "conv_flow", 2, (1, 2)), ("wave", "conv_flow", 4, (1, 2)),
    ("wave", "conv_flow", 8, (1, 2)), ("wave", "conv_flow", 16, (1,)),
    ("wave", "planar", 8, (1, 2)), ("wave", "radial", 8, (1, 2)), ("wave", "iaf", 8, (1, 2)),
    ("wave", "spline", 8, (1, 2)),
]  # fmt: skip
# U2 is the wave.
TARGETS = [
    (target, *flow)
    for target in ("wave", "u1", "u3", "u4", "funnel", "banana", "rings")
    for flow in (("conv_flow", 8, (1, 2)), ("conv_flow", 16, (1,)), ("planar", 8, (1, 2)))
]
VIEWS = {"funnel": (-4.0, 5.0, -8.0, 8.0), "banana": (-6.0, 6.0, -4.0, 8.0)}


@dataclass(frozen=True)
class Options:
    """What to run."""

    all_targets: bool = False
    """Every other target in place of figure 2."""
    num_steps: int = 4000
    """Optimizer steps of each flow."""
    batch_size: int = 512
    """Draws a step."""
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.06)
    """Rates to choose from."""
    restarts: int = 2
    """Seeds to choose from."""
    probe_steps: int = 500
    """Steps of each trial."""
    finalists: int = 2
    """How many trials are run to the end."""
    results: Path = HERE / "results"
    """Folder of the record."""
    figures: Path = HERE.parent / "figures"
    """Folder of the picture."""


def main(options: Options) -> None:
    """Fit every flow, write the record after each, draw."""
    torch.set_num_threads(1)
    rows, name = (TARGETS, "fit2d-targets") if options.all_targets else (FIGURE_2, "fit2d-wave")
    panels, rows_found, clock = [], [], Clock()
    settings = {key: value for key, value in asdict(options).items() if key not in ("results", "figures")}
    for target, flow_name, blocks, dilations in rows:
        job = Fit2D(
            target, flow_name, blocks, dilations, "tanh",
            options.num_steps, options.batch_size, options.learning_rates, options.restarts, options.probe_steps,
            options.finalists,
        )  # fmt: skip
        flow, result, trials = job.fit()
        rows_found.append(job.record(result, trials).to_dict())
        label = f"{flow_name} {blocks} × {len(dilations)}" if flow_name == "conv_flow" else flow_name
        title = f"{label}, {result.num_parameters} par.\nKL {result.kl:.3f}"
        view = VIEWS.get(target, INNER)
        if f"target {target}" not in [panel[0] for panel in panels]:
            panels.append((f"target {target}", picture_of_target(target_2d(target)), view))
        panels.append((title, picture_of_draws(flow), view))
        print(target, title.replace("\n", "  "), f"± {result.kl_se:.4f}  {result.seconds:.0f} s", trials[0], flush=True)
        Record(
            kind="fit2d_table",
            key=row_key(name, settings),
            label=name,
            settings=settings,
            figures={"rows": rows_found},
            provenance=provenance(clock=clock),
        ).write(options.results / f"{name}.json", overwrite=True)
    plot_panels_2d(panels, options.figures / f"{name}.png", columns=4 if options.all_targets else 5)


if __name__ == "__main__":
    exit_with("figure2_2d", lambda words: main(tyro.cli(Options, args=words)))
