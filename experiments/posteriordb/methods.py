"""Four ways to a posterior, each by its default settings: our guide, two of Pyro's by plain SVI, and NUTS."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pyro
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal
from torch import Tensor

from experiments.posteriordb.programs import Draws, Program
from vi_flows.diagnostics import diagnose
from vi_flows.evaluation import psis
from vi_flows.guides import AutoConvFlow, fit

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What the methods are run with, where they leave a choice."""

    svi_steps: int = 2000
    """Of Pyro's guides: Adam, one draw a step."""
    svi_learning_rate: float = 0.01
    """Likewise."""
    nuts_warmup: int = 1000
    nuts_draws: int = 1000
    num_draws: int = 40_000
    """Draws of a guide that are compared with the reference."""
    seed: int = 0
    """Of starts and draws."""
    limit: int = 300
    """CPU seconds of one method on one posterior; what takes longer is a failure."""


def conv_flow(program: Program, args: tuple, settings: Settings) -> tuple[Row, Draws]:
    """The guide with the library's ``fit``, and nothing set."""
    began = time.process_time()
    guide = AutoConvFlow(program.model, prototype_args=args)
    set_up = time.process_time()
    result = fit(program.model, guide, *args, progress=False)
    done = time.process_time()
    report = diagnose(program.model, guide, *args)
    row = {
        "cpu_seconds": round(done - began, 2), "set_up_seconds": round(set_up - began, 2), "steps": result.num_steps,
        "stopped": result.stopped, "elbo": round(report.elbo, 3), "log_evidence": round(report.log_evidence, 3),
        "k_hat": round(report.k_hat, 3), "verdict": report.verdict,
    }  # fmt: skip
    return row, guide.sample_posterior(settings.num_draws)


def stock(make: Callable[..., Any], program: Program, args: tuple, settings: Settings) -> tuple[Row, Draws]:
    """A guide of Pyro's in Pyro's own loop."""
    began = time.process_time()
    guide = make(program.model)
    optimizer = pyro.optim.Adam({"lr": settings.svi_learning_rate})
    svi = SVI(program.model, guide, optimizer, Trace_ELBO())
    for _ in range(settings.svi_steps):
        svi.step(*args)
    done = time.process_time()
    # Not every program can be run for many draws by Pyro's own means, as `diagnose` does for guides of Pyro's. The
    # unconstrained coordinates are the same as an AutoFlow's.
    ours = AutoConvFlow(program.model, warm_start=False, prototype_args=args)
    posterior, log_density = guide.get_posterior(), ours.log_density_fn(*args)
    with torch.no_grad():
        log_weights, latents = [], []
        for _ in range(4):
            x = posterior.sample((1000,))
            log_weights.append((log_density(x) - posterior.log_prob(x)).double())
            latents.append(x)
        latents += [posterior.sample((1000,)) for _ in range(settings.num_draws // 1000 - 4)]
        joint = torch.cat(log_weights)
        smoothed = psis(joint)
        sites = ours.constrain(torch.cat(latents))[0]
    row = {
        "cpu_seconds": round(done - began, 2), "steps": settings.svi_steps, "elbo": round(float(joint.mean()), 3),
        "log_evidence": round(float(smoothed.log_mean_weight), 3), "k_hat": round(float(smoothed.k_hat), 3),
    }  # fmt: skip
    return row, sites


def nuts(program: Program, args: tuple, settings: Settings) -> tuple[Row, Draws]:
    """One chain."""
    began = time.process_time()
    kernel = NUTS(program.model)
    mcmc = MCMC(kernel, settings.nuts_draws, warmup_steps=settings.nuts_warmup, disable_progbar=True)
    mcmc.run(*args)
    seconds = time.process_time() - began
    divergences = sum(len(found) for found in mcmc.diagnostics()["divergences"].values())
    return {"cpu_seconds": round(seconds, 2), "divergences": divergences}, mcmc.get_samples()


METHODS: dict[str, Callable[[Program, tuple, Settings], tuple[Row, Draws]]] = {
    "AutoConvFlow": conv_flow,
    "AutoMultivariateNormal": lambda *a: stock(AutoMultivariateNormal, *a),
    "AutoIAFNormal": lambda *a: stock(AutoIAFNormal, *a),
    "NUTS": nuts,
}

DOUBLE = {"NUTS"}
"""Methods that run in double precision: NUTS sums up energy differences along its trajectories."""


def measure(draws: Draws, chains: Draws) -> Row:
    """Errors against the reference draws, in their standard deviations.

    Args:
        draws: by scalar, ``(draws,)``.
        chains: by scalar, ``(chains, draws)``.
    """
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    means, quantiles, ratios = {}, {}, {}
    for name, reference in chains.items():
        x, flat = draws[name].double(), reference.flatten()
        sd = flat.std()
        means[name] = float((x.mean() - flat.mean()).abs() / sd)
        quantiles[name] = float(((torch.quantile(x, levels) - torch.quantile(flat, levels)) / sd).abs().max())
        ratios[name] = float(x.std() / sd)
    return {
        "mean_error": round(sum(means.values()) / len(means), 4),
        "largest_mean_error": round(max(means.values()), 4),
        "largest_mean_error_at": max(means, key=means.__getitem__),
        "largest_quantile_error": round(max(quantiles.values()), 4),
        "least_sd_ratio": round(min(ratios.values()), 4),
        "largest_sd_ratio": round(max(ratios.values()), 4),
    }


def run(method: str, program: Program, data: Any, chains: Draws, settings: Settings) -> Row:
    """One method on one posterior: its row of the record."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64 if method in DOUBLE else torch.float32)
    pyro.clear_param_store()
    pyro.set_rng_seed(settings.seed)
    torch.optim.Adam([torch.zeros((), requires_grad=True)])  # its seconds of imports are nobody's
    args: tuple[Any, ...] = program.arguments(data)
    row, sites = METHODS[method](program, args, settings)
    with torch.no_grad():
        draws: dict[str, Tensor] = program.scalars(sites)
    bad = [name for name, x in draws.items() if not bool(torch.isfinite(x).all())]
    if bad:
        raise ArithmeticError(f"draws of {bad[0]} are not finite")
    return {**row, **measure(draws, chains), "settings": asdict(settings)}
