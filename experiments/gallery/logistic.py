"""Logistic regression on the breast-cancer data with raw, unscaled covariates.

python -m experiments.gallery logistic
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor

from experiments.gallery.common import Posterior
from experiments.gallery.reference import Draws, nuts


def model(x: Tensor, y: Tensor) -> None:
    """y ~ Bernoulli(σ(β x)), priors N(0, 10²) on the effect of one standard deviation of each covariate."""
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0 / x.std(0).clamp(min=0.1)).to_event(1))
    with pyro.plate("patients", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=(x * beta).sum(-1)), obs=y)


def quantities(draws: Draws) -> Draws:
    """One scalar a coefficient."""
    return {f"beta[{j}]": draws["beta"][:, j] for j in range(draws["beta"].shape[1])}


def load() -> tuple[Tensor, Tensor]:
    """A constant and four covariates (mean radius, texture, smoothness, concavity), whose scales differ by 300."""
    data = load_breast_cancer()
    x = torch.tensor(data.data[:, [0, 1, 4, 6]], dtype=torch.float32)
    x = x - x.mean(0)
    return torch.cat([torch.ones(len(x), 1), x], -1), torch.tensor(data.target, dtype=torch.float32)


def posterior() -> Posterior:
    """The gallery's entry."""
    args = load()
    truth = lambda: nuts(model, args, quantities)  # noqa: E731
    return Posterior("logistic", "breast cancer, logistic regression", model, args, quantities, truth)
