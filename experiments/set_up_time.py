"""How long a guide of a small model takes to set up, and what the start is worth.

VI_FLOWS_DATA=… python -m experiments.set_up_time                       # CPU seconds and runs of the model
VI_FLOWS_DATA=… python -m experiments.set_up_time --fit --seeds 0 1 2   # and the fits that follow, beside the truth
VI_FLOWS_DATA=… python -m experiments.set_up_time bioassay --rounds 5

One thread, a warm interpreter: the first guide of the process is not counted. Set-up is what ``AutoConvFlow(model,
prototype_args=…)`` does, the warm start with its checks and the search for more modes. The runs of the model are those
of the Python function; a run under ``vmap`` evaluates many points.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pyro
import pyro.distributions as dist
import torch
import tyro

from experiments.verdicts.known import Known, collection
from vi_flows.cli.outcome import exit_with
from vi_flows.guides import AutoConvFlow, fit
from vi_flows.records import Clock, Record, provenance, row_key

SMALL = (
    "normal-1", "conjugate-normal", "gamma-3", "student-3", "bioassay", "logistic", "discrete-mixture",
    "kilpisjarvi_mod-kilpisjarvi", "earnings-earn_height", "kidiq-kidscore_interaction", "mesquite-mesquite",
    "arK-arK", "arma-arma11", "garch-garch11", "gp_pois_regr-gp_regr", "low_dim_gauss_mix-low_dim_gauss_mix",
    "nes1972-nes", "eight_schools-eight_schools_noncentered", "eight_schools-eight_schools_centered",
    "banana-2", "funnel-3", "two-modes-1", "plane-rings",
)  # fmt: skip
"""One to ten latents: closed forms, regressions, time series, hierarchies, a discrete latent, bends, several modes."""


def discrete_mixture() -> Known:
    """Which of two normals each observation comes from is summed out; the rest is integrated on a grid."""
    y = torch.tensor([-2.3, -1.9, -1.1, -2.6, -1.4, 0.4, 1.8, 2.9, 2.2, 3.1, 1.5, 2.4])

    def model() -> None:
        share = pyro.sample("share", dist.Beta(torch.tensor(2.0), 2.0))
        center = pyro.sample("center", dist.Normal(torch.tensor(2.0), 1.0))
        with pyro.plate("data", len(y)):
            right = pyro.sample("right", dist.Bernoulli(share))
            pyro.sample("y", dist.Normal((2 * right - 1) * center, 1.0), obs=y.to(center))

    share = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)[:, None]
    center = torch.linspace(-4.0, 8.0, 1201, dtype=torch.float64)[None]
    log_p = dist.Beta(2.0, 2.0).log_prob(share) + dist.Normal(2.0, 1.0).log_prob(center)
    for value in y.double():
        left, right = dist.Normal(-center, 1.0).log_prob(value), dist.Normal(center, 1.0).log_prob(value)
        log_p = log_p + torch.logaddexp(share.log() + right, (1 - share).log() + left)
    weight = torch.softmax(log_p.flatten(), 0).reshape(log_p.shape)

    def moments(x: torch.Tensor) -> tuple[float, float]:
        mean = float((weight * x).sum())
        return mean, math.sqrt(float((weight * (x - mean).square()).sum()))

    truth = {"share": moments(share), "center": moments(center)}
    return Known("discrete-mixture", model, (), truth, "quadrature")


def posteriors() -> dict[str, Callable[[], Known]]:
    """Those of the verdicts, and one with discrete latents."""
    return {**collection(), "discrete-mixture": discrete_mixture}


@dataclass(frozen=True)
class SetUpTime:
    """A table of set-up times."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = SMALL
    """Posteriors."""
    rounds: int = 3
    """Of each set-up; the table has the median."""
    fit: bool = False
    """Fit the guides, too, and compare them with the truth."""
    seeds: tuple[int, ...] = (0,)
    """Of starts, fits and draws."""
    record: Path | None = None
    """Write the set-up times there, too."""

    def run(self) -> None:
        """Print a line a posterior."""
        known = posteriors()
        unknown = [name for name in self.names if name not in known]
        if unknown:
            raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        torch.set_num_threads(1)
        logging.getLogger("pyro").setLevel(logging.WARNING)
        warnings.simplefilter("ignore")
        torch.optim.Adam([torch.zeros((), requires_grad=True)])  # its seconds of imports are nobody's
        _made(known["normal-1"](), 0)
        more = " fit, CPU s | steps | largest error of a mean, sd | sd ratios |" if self.fit else ""
        print(f"| posterior | latents | set-up, CPU s | runs of the model |{more}")
        print("|---" * (8 if self.fit else 4) + "|")
        clock, rows = Clock(), []
        for name in self.names:
            one = known[name]()
            made = [_made(one, self.seeds[i % len(self.seeds)]) for i in range(self.rounds)]
            seconds = median(row[0] for row in made)
            runs = median(row[1] for row in made)
            rows.append({"posterior": name, "cpu_seconds": round(seconds, 3), "runs": runs})
            cells = [name, str(made[0][2].latent_dim), f"{seconds:.2f}", f"{runs:.0f}"]
            if self.fit:
                cells += _fitted(one, self.seeds)
            print(f"| {' | '.join(cells)} |", flush=True)
        times = [row["cpu_seconds"] for row in rows]
        print(f"\nmedian {median(times):.2f} s, largest {max(times):.2f} s")
        if self.record is not None:
            settings = {"names": list(self.names), "rounds": self.rounds, "seeds": list(self.seeds)}
            Record(
                kind="set-up-time",
                key=row_key("set-up-time", settings),
                label="CPU seconds and runs of the model in AutoConvFlow(model, prototype_args=…), medians",
                settings=settings,
                figures={"rows": rows, "median": median(times), "largest": max(times)},
                provenance=provenance(clock=clock, threads=1),
            ).write(self.record, overwrite=True)


def _made(known: Known, seed: int) -> tuple[float, int, AutoConvFlow]:
    """CPU seconds, runs of the model, and the guide."""
    runs = 0

    def counted(*args: Any) -> Any:
        nonlocal runs
        runs += 1
        return known.model(*args)

    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    began = time.process_time()
    guide = AutoConvFlow(counted, prototype_args=known.args)
    return time.process_time() - began, runs, guide


def _fitted(known: Known, seeds: tuple[int, ...]) -> list[str]:
    """Medians of seconds and steps over the seeds, and the worst errors of any."""
    rows = []
    for seed in seeds:
        guide = _made(known, seed)[2]
        began = time.process_time()
        steps = fit(guide.model, guide, *known.args, seed=seed, progress=False).num_steps
        seconds = time.process_time() - began
        pyro.set_rng_seed(seed + 1)
        with torch.no_grad():
            errors = known.errors(guide.sample_posterior(40_000))
        rows.append((seconds, steps, errors))
    error = max(row[2]["mean_error"] for row in rows)
    least, largest = (f(row[2][key] for row in rows) for f, key in ((min, "least_sd_ratio"), (max, "largest_sd_ratio")))
    return [
        f"{median(row[0] for row in rows):.1f}", f"{median(row[1] for row in rows):.0f}", f"{error:.3f}",
        f"{least:.2f} – {largest:.2f}",
    ]  # fmt: skip


if __name__ == "__main__":
    exit_with("set_up_time", lambda words: tyro.cli(SetUpTime, args=words).run())
