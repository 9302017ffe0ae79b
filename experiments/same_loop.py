"""This library's guide and AutoMultivariateNormal in one and the same loop: Pyro's SVI, Adam 0.01, one draw a step.

    VI_FLOWS_DATA=… python -m experiments.same_loop

Five of posteriordb's posteriors: a regression, an autoregression, a heteroscedastic time series, a mixture and a
hierarchical model. Both guides are made by their default settings and take the same number of steps; their ELBOs and
marginals are compared on fresh draws.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
import tyro
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal

from experiments.posteriordb.collection import PROGRAMS, load
from experiments.posteriordb.methods import measure
from vi_flows.cli.outcome import exit_with
from vi_flows.guides import AutoConvFlow
from vi_flows.records import Clock, Record, provenance, row_key

NAMES = (
    "kidiq-kidscore_momiq", "arK-arK", "garch-garch11", "low_dim_gauss_mix-low_dim_gauss_mix",
    "eight_schools-eight_schools_noncentered",
)  # fmt: skip
GUIDES = {"AutoConvFlow": AutoConvFlow, "AutoMultivariateNormal": AutoMultivariateNormal}


@dataclass(frozen=True)
class Options:
    """What to run."""

    names: tuple[str, ...] = NAMES
    """Posteriors."""
    steps: int = 2000
    """Of the loop."""
    learning_rate: float = 0.01
    """Adam's."""
    num_draws: int = 4000
    """Fresh ones, for the ELBO and the marginals."""
    seed: int = 0
    """Of starts and draws."""
    record: Path = Path(__file__).parent / "results" / "same-loop.json"
    """Record to write."""


def run(name: str, kind: str, options: Options) -> dict[str, Any]:
    """One guide on one posterior."""
    program = PROGRAMS[name]
    data, chains = load(name)
    args = program.arguments(data)
    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    began = time.process_time()
    guide = GUIDES[kind](program.model)
    svi = SVI(program.model, guide, pyro.optim.Adam({"lr": options.learning_rate}), Trace_ELBO())
    for _ in range(options.steps):
        svi.step(*args)
    seconds = time.process_time() - began
    # The unconstrained coordinates of both guides are the same.
    scorer = AutoConvFlow(program.model, warm_start=False, prototype_args=args)
    log_density, posterior = scorer.log_density_fn(*args), guide.get_posterior()
    with torch.no_grad():
        x = posterior.sample((options.num_draws,))
        weights = (log_density(x) - posterior.log_prob(x)).double()
        draws = program.scalars(scorer.constrain(x)[0])
    se = float(weights.std() / len(weights) ** 0.5)
    row = {"posterior": name, "guide": kind, "elbo": round(float(weights.mean()), 3), "elbo_se": round(se, 3)}
    return row | {"cpu_seconds": round(seconds, 1), **measure(draws, chains)}


def main(options: Options) -> None:
    """Run both guides on all posteriors, print the comparison and write the record."""
    clock = Clock()
    unknown = [name for name in options.names if name not in PROGRAMS]
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    Record.refuse_to_replace(options.record, overwrite=True)
    torch.set_num_threads(1)
    rows = []
    for name in options.names:
        for kind in GUIDES:
            rows.append(run(name, kind, options))
            row = rows[-1]
            spread = f"sd ratios {row['least_sd_ratio']:.2f}…{row['largest_sd_ratio']:.2f}"
            elbo = f"ELBO {row['elbo']:.3f} ± {row['elbo_se']:.3f}  mean error {row['mean_error']:.3f}"
            print(f"{name:42s} {kind:24s} {elbo}  {spread}  {row['cpu_seconds']} s", flush=True)
    settings = {key: value for key, value in asdict(options).items() if key != "record"}
    settings["names"] = list(options.names)
    Record(
        kind="same-loop",
        key=row_key("same-loop", settings),
        label="Plain SVI with Adam 0.01 and one draw: AutoConvFlow and AutoMultivariateNormal",
        settings=settings,
        figures={"rows": rows},
        provenance=provenance(clock=clock),
    ).write(options.record, overwrite=True)


if __name__ == "__main__":
    exit_with("same_loop", lambda words: main(tyro.cli(Options, description=__doc__, args=words)))
