"""A small Bayesian neural network: the flow of the Nile as a smooth function of the year.

    python -m experiments.gallery bnn

One hidden layer of four tanh units. Its weights are not identified (units can be permuted and their signs flipped), so
what is compared is the predictive: the network's value in ten years, two of them outside of the data, and the noise.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from experiments.gallery.common import Posterior
from experiments.gallery.nile import NILE
from experiments.gallery.reference import Draws, nuts

UNITS = 4
YEARS = [1861, 1875, 1887, 1896, 1899, 1905, 1920, 1940, 1960, 1980]
"""Where the network is looked at; the data are of 1871…1970."""


def scale_years(year: Tensor) -> Tensor:
    """Years on about −2…2."""
    return (year - 1920.5) / 25.0


def network(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """``b₂ + w₂ · tanh(w₁ x + b₁) / √units`` at ``x`` of shape ``(n,)``, for weights with any leading dimensions."""
    hidden = torch.tanh(w1.unsqueeze(-2) * x.unsqueeze(-1) + b1.unsqueeze(-2))
    return b2.unsqueeze(-1) + (hidden * w2.unsqueeze(-2)).sum(-1) / UNITS**0.5


def model(x: Tensor, y: Tensor) -> None:
    """y ~ N(network(x), σ²), w₁ ~ N(0, 2²), b₁ ~ N(0, 2²), w₂ and b₂ ~ N(0, 1), σ half-normal; y standardised."""
    zeros = torch.zeros(UNITS)
    w1 = pyro.sample("w1", dist.Normal(zeros, 2.0).to_event(1))
    b1 = pyro.sample("b1", dist.Normal(zeros, 2.0).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(zeros, 1.0).to_event(1))
    b2 = pyro.sample("b2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.ones(1)).to_event(1))
    pyro.sample("y", dist.Normal(network(x, w1, b1, w2, b2.squeeze(-1)), sigma).to_event(1), obs=y)


def quantities(draws: Draws) -> Draws:
    """The network in :data:`YEARS`, and the noise."""
    x = scale_years(torch.tensor(YEARS, dtype=torch.float32))
    f = network(x.to(draws["w1"]), *(draws[name] for name in ("w1", "b1", "w2")), draws["b2"].squeeze(-1))
    return {f"f[{year}]": f[:, i] for i, year in enumerate(YEARS)} | {"sigma": draws["sigma"].squeeze(-1)}


def load() -> tuple[Tensor, Tensor]:
    """Scaled years, standardised flows."""
    y = torch.tensor(NILE, dtype=torch.float32)
    return scale_years(torch.arange(1871, 1971, dtype=torch.float32)), (y - y.mean()) / y.std()


def posterior() -> Posterior:
    """The gallery's entry."""
    args = load()
    truth = lambda: nuts(model, args, quantities, 250, 150, precondition=False, max_tree_depth=6)  # noqa: E731
    return Posterior("bnn", "flow of the Nile, Bayesian neural network", model, args, quantities, truth)
