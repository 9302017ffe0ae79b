"""Logistic regression on the breast-cancer data with raw, unscaled covariates.

python -m experiments.gallery.logistic
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor

from experiments.gallery.common import Draws, compare, nuts_reference


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


if __name__ == "__main__":
    args = load()
    reference, seconds = nuts_reference(model, args, quantities, 2000, 500)
    compare("logistic", model, args, quantities, reference, f"Pyro NUTS, 2000 draws, {seconds:.0f} s")
