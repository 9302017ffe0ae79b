"""How often default fits miss modes of random mixtures of Gaussians, and whether ``diagnose`` says so.

    python -m experiments.random_mixtures

Each mixture has two to eight modes in one to eight dimensions. Its means are normal draws times five, the standard
deviations along random axes lie between 0.1 and 1, evenly by their logarithm, and the weights are one of Dirichlet(2).
A mode is missed where the guide's draws have less than a tenth of its weight, by the mixture's own responsibilities.
The density is normalised, so that the evidence is known, too: 1.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import tyro
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from vi_flows.cli.outcome import exit_with
from vi_flows.diagnostics import diagnose
from vi_flows.guides import AutoConvFlow, fit
from vi_flows.records import Clock, Record, provenance, row_key
from vi_flows.settings import Positive, Seed, check_settings

MISSED = 0.1
"""Of a mode's weight, below which the guide's draws do not have the mode."""

HEAVY = 0.01
"""Lighter modes do not count."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    number: Positive = 40
    """Mixtures."""
    seed: Seed = 0
    """Of the first mixture; the others have the next ones."""
    num_draws: Positive = 20_000
    """By which modes are counted."""
    record: Path = Path(__file__).parent / "results" / "random-mixtures.json"
    """Record to write."""

    def __post_init__(self) -> None:
        check_settings(self)


def mixture(seed: int) -> MixtureSameFamily:
    """The mixture of a seed, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    number, dim = (int(torch.randint(low, 9, (), generator=generator)) for low in (2, 1))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    axes = torch.linalg.qr(normal(number, dim, dim)).Q
    scales = 10.0 ** -torch.rand(number, 1, dim, dtype=torch.float64, generator=generator)
    # Gamma(2) is the sum of two exponentials.
    weights = -torch.rand(2, number, dtype=torch.float64, generator=generator).log().sum(0)
    return MixtureSameFamily(
        Categorical(weights / weights.sum()),
        MultivariateNormal(5 * normal(number, dim), scale_tril=torch.linalg.cholesky((axes * scales**2) @ axes.mT)),
    )


def missed_share(target: MixtureSameFamily, x: Tensor) -> tuple[int, float]:
    """How many modes draws ``(S, d)`` miss, and the weight of these together."""
    log_weights = target.mixture_distribution.logits
    joint = log_weights + target.component_distribution.log_prob(x[:, None])
    there = joint.softmax(-1).mean(0)
    weights = log_weights.exp()
    missed = (there < MISSED * weights) & (weights > HEAVY)
    return int(missed.sum()), float(weights[missed].sum())


def run(seed: int, num_draws: int) -> dict[str, Any]:
    """One mixture by default settings."""
    target = mixture(seed)
    clock = time.process_time()

    def model() -> None:
        pyro.sample("x", PyroMixture(target))

    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = AutoConvFlow(model)
    result = fit(model, guide, seed=seed, progress=False)
    found = diagnose(model, guide)
    with torch.no_grad():
        number, share = missed_share(target, guide.sample_posterior(num_draws)["x"].double())
    return {
        "seed": seed,
        "modes": target.mixture_distribution.logits.shape[-1],
        "dim": target.event_shape[0],
        "missed": number,
        "missed_weight": round(share, 4),
        "verdict": found.verdict,
        "reason": found.reason,
        "log_evidence": round(found.log_evidence, 4),
        "elbo": round(found.elbo, 4),
        "steps": result.num_steps,
        "cpu_seconds": round(time.process_time() - clock, 2),
    }


class PyroMixture(dist.MixtureSameFamily):
    """PyTorch's mixture as a distribution of Pyro's."""

    def __init__(self, target: MixtureSameFamily) -> None:
        super().__init__(target.mixture_distribution, target.component_distribution)


def main(options: Options) -> None:
    """Fit all mixtures, print a line each and write the record."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    clock, rows = Clock(), []
    for seed in range(options.seed, options.seed + options.number):
        rows.append(run(seed, options.num_draws))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items() if key != "reason"), flush=True)
    short = [row for row in rows if row["missed"]]
    figures = {
        "mixtures": len(rows),
        "short": len(short),
        "short_and_ok": sum(row["verdict"] == "ok" for row in short),
        "whole": len(rows) - len(short),
        "whole_and_ok": sum(row["verdict"] == "ok" for row in rows if not row["missed"]),
        "rows": rows,
    }
    print("  ".join(f"{key} {value}" for key, value in figures.items() if key != "rows"))
    settings = {key: value for key, value in asdict(options).items() if key != "record"}
    Record(
        kind="random-mixtures",
        key=row_key("random-mixtures", settings),
        label="random mixtures of Gaussians fitted by default settings, and what diagnose says of them",
        settings=settings,
        figures=figures,
        provenance=provenance(clock=clock, threads=1),
    ).write(options.record, overwrite=True)


if __name__ == "__main__":
    exit_with("random_mixtures", lambda words: main(tyro.cli(Options, description=__doc__, args=words)))
