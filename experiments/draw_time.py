"""What a draw of the default guide costs as the number of latents grows: CPU time, and the exponent of its growth.

    python -m experiments.draw_time                 # times, prints, and writes experiments/results/draw-time.json
    python -m experiments.draw_time --only-table    # the table of the record that is there

The guide is ``AutoConvFlow`` of a model with ``d`` latents, without a warm start: the time does not depend on the
parameters. Up to 200 dimensions its layers between the ConvFlow blocks are full matrices, beyond there are none; its
affine part is full up to 200 dimensions, then of rank ``√d``, in coordinates whitened by a triangle up to 1000
dimensions, then by a diagonal. All sizes are timed in turn, round by round, at one thread. The exponent is the slope of
log time over log ``d``, by least squares: 1 is linear.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import tyro

from vi_flows.bench.measure import seconds_in_turn
from vi_flows.cli.outcome import exit_with
from vi_flows.guides import AutoConvFlow
from vi_flows.guides.auto_flow import FULL_AFFINE_DIM
from vi_flows.records import Record, provenance, row_key

Row = dict[str, Any]


@dataclass(frozen=True)
class DrawTime:
    """Sizes and repetitions."""

    dims: tuple[int, ...] = (50, 100, 200, 400, 800, 1600)
    """Numbers of latents."""
    num_draws: int = 200
    """In one pass."""
    rounds: int = 9
    """The table has medians over them."""
    out: Path = Path(__file__).parent / "results" / "draw-time.json"
    """Record to write."""
    only_table: bool = False
    """Print the table of the record that is there."""

    def run(self) -> None:
        """Time, write the record, and print its table."""
        if not self.only_table:
            if min(self.dims) < 1 or len(set(self.dims)) < 2 or min(self.num_draws, self.rounds) < 1:
                raise ValueError("at least two sizes, one draw and one round are needed")
            settings = {key: value for key, value in asdict(self).items() if key not in ("out", "only_table")}
            Record(
                kind="draw_time",
                key=row_key("AutoConvFlow", settings),
                label="AutoConvFlow",
                settings=settings,
                figures=measure(self.dims, self.num_draws, self.rounds),
                provenance=provenance(),
            ).write(self.out, overwrite=True)
        print(table(Record.read(self.out).figures))


def guide_of(dim: int) -> AutoConvFlow:
    """The default guide of ``dim`` latents."""

    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(dim), 1.0).to_event(1))

    return AutoConvFlow(model, warm_start=False)


def measure(dims: tuple[int, ...], num_draws: int, rounds: int) -> dict[str, Any]:
    """CPU microseconds of a draw with its log density, alone and with the gradient of that, and the exponents."""
    pyro.set_rng_seed(0)
    works = {}
    for dim in dims:
        transform, noise = guide_of(dim).get_transform(), torch.randn(num_draws, dim)
        works[f"draw {dim}"] = partial(_draw, transform, noise)
        works[f"gradient {dim}"] = partial(_gradient, transform, noise)
    seconds = seconds_in_turn(works, rounds)
    rows: list[Row] = []
    for dim in dims:
        row: Row = {"dim": dim}
        for what in ("draw", "gradient"):
            times = [1e6 * t / num_draws for t in seconds[f"{what} {dim}"]]
            row |= {what: round(median(times), 2), f"{what}_range": [round(min(times), 2), round(max(times), 2)]}
        rows.append(row)
    high = [row for row in rows if row["dim"] > FULL_AFFINE_DIM]
    parts = {"exponent": rows, **({"exponent_high": high} if len(high) > 1 else {})}
    slopes = {f"{w}_{key}": round(exponent(part, w), 3) for key, part in parts.items() for w in ("draw", "gradient")}
    return {"rows": rows, **slopes}


def _draw(transform: Any, noise: torch.Tensor) -> None:
    with torch.no_grad():
        transform.forward_and_ladj(noise)


def _gradient(transform: Any, noise: torch.Tensor) -> None:
    y, ladj = transform.forward_and_ladj(noise)
    torch.autograd.grad(y.square().sum() + ladj.sum(), list(transform.parameters()))


def exponent(rows: list[Row], what: str) -> float:
    """Slope of log time over log dimension."""
    return linear_regression([math.log(row["dim"]) for row in rows], [math.log(row[what]) for row in rows]).slope


def table(figures: dict[str, Any]) -> str:
    """Markdown: a line a size, and the exponents below."""
    lines = [
        "| latents | µs a draw | ns a draw and latent | µs a draw with gradient | ns a draw with gradient and latent |",
        "|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        cells = [f"{row[what]:.1f} | {1e3 * row[what] / row['dim']:.0f}" for what in ("draw", "gradient")]
        lines.append(f"| {row['dim']} | {' | '.join(cells)} |")
    growth = f"power of {figures['draw_exponent']:.2f}, with gradients {figures['gradient_exponent']:.2f}"
    if "draw_exponent_high" in figures:
        high = f"{figures['draw_exponent_high']:.2f} and {figures['gradient_exponent_high']:.2f}"
        growth += f"; beyond {FULL_AFFINE_DIM}, where no layer of the flow is a full matrix, {high}"
    return "\n".join([*lines, "", f"Time grows as the number of latents to the {growth}."])


if __name__ == "__main__":
    exit_with("draw_time", lambda words: tyro.cli(DrawTime, args=words).run())
