"""A hierarchical model with local latents in minibatches: AutoConvFlow outside the plate, an amortised flow inside.

    python experiments/amortized_hierarchical.py

Groups n = 1…N have an effect z_n ~ N(μ, τ²) and five measurements x_n ~ N(z_n, 1). The global latents (μ, τ) are left
to an AutoConvFlow, each z_n to an AmortizedFlowGuide that reads x_n, inside the user's own plate and with minibatches
of changing size. The exact posterior given (μ, τ) is Gaussian, so the answer can be checked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
import tyro
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList
from pyro.optim import ClippedAdam
from torch import Tensor

from vi_flows.guides import AmortizedFlowGuide, AutoConvFlow

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Options:
    """What to run."""

    num_groups: int = 500
    """Rows of data."""
    num_steps: int = 3000
    """Optimiser steps."""
    seed: int = 0
    """Of data and fit."""
    record: Path = HERE / "results" / "amortized-hierarchical.json"
    """Record to write."""


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


def main(options: Options) -> dict[str, float]:
    """Simulate, fit by minibatches of changing size, compare with the exact conditional posterior."""
    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    truth = 2.0 + 1.5 * torch.randn(options.num_groups)
    x = truth[:, None] + torch.randn(options.num_groups, 5)
    guide = make_guide(x)
    decay = 0.05 ** (1 / options.num_steps)
    svi = SVI(model, guide, ClippedAdam({"lr": 0.01, "lrd": decay}), Trace_ELBO())
    for step in range(options.num_steps):
        size = (20, 50, 35)[step % 3]
        svi.step(x, torch.randperm(len(x))[:size])
    with torch.no_grad():
        draws = [guide(x) for _ in range(400)]
        mu, tau, z = (torch.stack([d[name] for d in draws]) for name in ("mu", "tau", "z"))
    shrink = tau.mean() ** 2 / (tau.mean() ** 2 + 1 / 5)
    exact_mean = mu.mean() + shrink * (x.mean(-1) - mu.mean())
    exact_sd = (shrink / 5).sqrt()
    marginal_sd = (tau.mean() ** 2 + 1 / 5).sqrt() / options.num_groups**0.5
    result = {
        "mu": float(mu.mean()), "mu_sd": float(mu.std()),
        "mu_exact": float(x.mean()), "mu_sd_exact": float(marginal_sd),
        "tau": float(tau.mean()),
        "z_error_in_sd": float(((z.mean(0) - exact_mean) / exact_sd).square().mean().sqrt()),
        "z_sd_ratio": float(z.std(0).mean() / exact_sd),
    }  # fmt: skip
    options.record.parent.mkdir(exist_ok=True)
    options.record.write_text(json.dumps({"num_steps": options.num_steps, **result}, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main(tyro.cli(Options))
