"""Eight schools, non-centred and centred, against posteriordb's reference draws.

VI_FLOWS_DATA=… python -m experiments.gallery eight_schools_noncentred eight_schools_centred
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from experiments.gallery.common import Posterior
from experiments.gallery.reference import Draws, Reference, posteriordb, summarise


def noncentred(y: Tensor, sigma: Tensor) -> None:
    """θ = μ + τ η with η ~ N(0, 1)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def centred(y: Tensor, sigma: Tensor) -> None:
    """θ ~ N(μ, τ²): a funnel."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def quantities(draws: Draws) -> Draws:
    """Scalars by posteriordb's names."""
    mu, tau = draws["mu"], draws["tau"]
    theta = draws["theta"] if "theta" in draws else mu[:, None] + tau[:, None] * draws["eta"]
    return {"mu": mu, "tau": tau, **{f"theta[{j + 1}]": theta[:, j] for j in range(theta.shape[1])}}


def load() -> tuple[tuple[Tensor, Tensor], Reference]:
    """Arguments of the models, what the reference draws say."""
    data, chains = posteriordb("eight_schools-eight_schools_noncentered")
    args = torch.tensor(data["y"]).float(), torch.tensor(data["sigma"]).float()
    return args, summarise("posteriordb", chains)


def posterior(model: Callable) -> Posterior:
    """The gallery's entry of one of the two parameterisations."""
    args, reference = load()
    name = model.__name__
    title = {"noncentred": "eight schools, non-centred", "centred": "eight schools, centred"}[name]
    return Posterior(f"eight_schools_{name}", title, model, args, quantities, lambda: reference)
