"""A hierarchical model with local latents in minibatches: AutoConvFlow outside the plate, an amortised flow inside.

    python experiments/amortized_hierarchical.py

Groups n = 1…N have an effect z_n ~ N(μ, τ²) and five measurements x_n ~ N(z_n, 1). The global latents (μ, τ) are left
to an AutoConvFlow, each z_n to an AmortizedFlowGuide that reads x_n, inside the user's own plate and with minibatches
of changing size. The exact answer is known: given (μ, τ) the effects are Gaussian, and the posterior of (μ, τ), with
the effects integrated out, is a quadrature on the plane.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import pyro
import pyro.distributions as dist
import torch
import tyro
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList
from pyro.optim import ClippedAdam
from torch import Tensor

from vi_flows.cli.outcome import exit_with
from vi_flows.guides import AmortizedFlowGuide, AutoConvFlow
from vi_flows.records import Clock, Record, provenance, row_key
from vi_flows.settings import Bounds, Positive, PositiveFloat, check_settings

HERE = Path(__file__).parent
SIZES = (100, 250, 150)
"""Rows of the minibatches, in turn."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    num_groups: Annotated[int, Bounds(least=max(SIZES))] = 500
    """Rows of data, as many as a minibatch or more."""
    num_steps: Positive = 8000
    """Optimizer steps."""
    learning_rate: PositiveFloat = 0.003
    """Adam's, falling to a hundredth."""
    num_draws: Annotated[int, Bounds(least=2)] = 1000
    """Draws that are compared with the exact posterior."""
    seed: int = 0
    """Of data and fit."""
    record: Path = HERE / "results" / "amortized-hierarchical.json"
    """Record to write."""

    def __post_init__(self) -> None:
        check_settings(self)


def model(x: Tensor, index: Tensor | None = None) -> None:
    """Two global latents, one local latent a row of ``x``; ``index`` picks a minibatch."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("groups", len(x), subsample=index) as i:
        z = pyro.sample("z", dist.Normal(mu, tau))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x[i])


def make_guide(x: Tensor) -> AutoGuideList:
    """The two guides in one, with the plate shared."""
    local = AmortizedFlowGuide(context_dim=x.shape[-1], latent_dim=1, scalar=True)

    def plates(x: Tensor, index: Tensor | None = None) -> pyro.plate:
        return pyro.plate("groups", len(x), subsample=index)

    guide = AutoGuideList(model, create_plates=plates)

    def local_guide(x: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        pyro.module("local", local)
        with guide.plates["groups"] as i:
            return {"z": pyro.sample("z", local(x[i]))}

    guide.append(AutoConvFlow(poutine.block(model, hide=["z"]), prototype_args=(x,)))
    guide.append(local_guide)
    return guide


@dataclass(frozen=True)
class Moments:
    """Means and standard deviations of ``mu``, ``tau`` (scalars) and ``z`` (one a group)."""

    mean: dict[str, Tensor]
    sd: dict[str, Tensor]


def exact_posterior(x: Tensor, points: int = 400) -> Moments:
    """By quadrature over (μ, τ) on six standard errors around the sample's moments, and Gaussian algebra for each z.

    For many groups: with fewer than some fifty the posterior of τ is no longer within them.

    With x̄ₙ the mean of the m measurements of group n: x̄ₙ ~ N(μ, τ² + 1/m) and zₙ | μ, τ, x has mean
    μ + s (x̄ₙ − μ) and variance s/m, where s = τ²/(τ² + 1/m).

    Args:
        x: ``(groups, m)``.
        points: cells a side.
    """
    noise = 1 / x.shape[1]
    means = x.double().mean(-1)
    error = means.std() / len(means) ** 0.5
    tau_hat = (means.var() - noise).clamp(min=0).sqrt()
    grid = (torch.arange(points, dtype=torch.float64) + 0.5) / points * 12 - 6
    mu, tau = torch.meshgrid(means.mean() + error * grid, (tau_hat + error * grid).clamp(min=1e-6), indexing="ij")
    prior = torch.distributions.Normal(0.0, 5.0).log_prob(mu) + torch.distributions.HalfNormal(5.0).log_prob(tau)
    total = tau.square() + noise
    # Σₙ (x̄ₙ − μ)² from the sample's first two moments.
    squares = (means - means.mean()).square().sum() + len(means) * (means.mean() - mu).square()
    weight = torch.softmax((prior - 0.5 * len(means) * total.log() - 0.5 * squares / total).flatten(), 0)
    mu, tau, total = mu.flatten(), tau.flatten(), total.flatten()
    shrink = tau.square() / total

    def moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Of a mixture, from the conditional moments ``(points², …)``."""
        first = (weight[:, None] * mean).sum(0)
        second = (weight[:, None] * (variance + mean.square())).sum(0)
        return first, (second - first.square()).sqrt()

    # z is linear in x̄ₙ given the grid point, so its moments need those of shrink and (1 − shrink) μ alone.
    parts = torch.stack([shrink, (1 - shrink) * mu], -1)
    mean = (weight[:, None] * parts).sum(0)
    covariance = (weight[:, None, None] * (parts[:, :, None] * parts[:, None, :])).sum(0) - mean[:, None] * mean
    line = torch.stack([means, torch.ones_like(means)], -1)
    z_var = (weight * shrink * noise).sum() + ((line @ covariance) * line).sum(-1)
    pairs = {name: moments(value[:, None], torch.zeros(1)) for name, value in (("mu", mu), ("tau", tau))}
    return Moments(
        {**{k: v[0][0] for k, v in pairs.items()}, "z": line @ mean},
        {**{k: v[1][0] for k, v in pairs.items()}, "z": z_var.sqrt()},
    )


def main(options: Options) -> None:
    """Simulate, fit by minibatches of changing size, compare with the exact posterior, write the record."""
    torch.set_num_threads(1)
    clock = Clock()
    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    x = 2.0 + 1.5 * torch.randn(options.num_groups, 1) + torch.randn(options.num_groups, 5)
    guide = make_guide(x)
    decay = 0.01 ** (1 / options.num_steps)
    svi = SVI(model, guide, ClippedAdam({"lr": options.learning_rate, "lrd": decay}), Trace_ELBO())
    began = time.perf_counter()
    for step in range(options.num_steps):
        svi.step(x, torch.randperm(len(x))[: SIZES[step % len(SIZES)]])
    seconds = time.perf_counter() - began
    with torch.no_grad():
        draws = [guide(x) for _ in range(options.num_draws)]
    stacked = {name: torch.stack([d[name] for d in draws]).double() for name in ("mu", "tau", "z")}
    exact = exact_posterior(x)
    error = {name: (value.mean(0) - exact.mean[name]) / exact.sd[name] for name, value in stacked.items()}
    ratio = {name: value.std(0) / exact.sd[name] for name, value in stacked.items()}
    result = {
        **{f"{name}_mean_error_sd": round(float(error[name]), 4) for name in ("mu", "tau")},
        **{f"{name}_sd_ratio": round(float(ratio[name]), 4) for name in ("mu", "tau")},
        "z_rms_mean_error_sd": round(float(error["z"].square().mean().sqrt()), 4),
        "z_max_mean_error_sd": round(float(error["z"].abs().max()), 4),
        "z_mean_sd_ratio": round(float(ratio["z"].mean()), 4),
        "exact": {name: [float(exact.mean[name]), float(exact.sd[name])] for name in ("mu", "tau")},
        "guide": {name: [float(stacked[name].mean()), float(stacked[name].std())] for name in ("mu", "tau")},
    }
    settings = {name: value for name, value in asdict(options).items() if name != "record"}
    settings["batch_sizes"] = list(SIZES)
    Record(
        kind="amortized_hierarchical",
        key=row_key("amortized_hierarchical", settings),
        label="both guides in one model",
        settings=settings,
        figures={**result, "seconds": round(seconds, 1)},
        provenance=provenance(clock=clock),
    ).write(options.record, overwrite=True)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    exit_with("amortized_hierarchical", lambda words: main(tyro.cli(Options, args=words)))
