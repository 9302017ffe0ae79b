"""Bayesian linear regression of children's test scores with flat priors: strongly correlated, badly scaled.

VI_FLOWS_DATA=… python -m experiments.gallery kidscore
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from experiments.gallery.common import Posterior
from experiments.gallery.reference import Draws, Reference, posteriordb, summarise


def model(x: Tensor, y: Tensor) -> None:
    """score ~ N(β₁ + β₂ high school + β₃ IQ, σ²), flat prior on β, half-Cauchy(2.5) on σ; IQ in its own units."""
    # Flat by a mask, and not an ImproperUniform, from which Pyro's own guides can't start.
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1).mask(False))
    sigma = pyro.sample("sigma", dist.HalfCauchy(torch.tensor(2.5)))
    with pyro.plate("children", len(y)):
        pyro.sample("y", dist.Normal((x * beta).sum(-1), sigma), obs=y)


def quantities(draws: Draws) -> Draws:
    """Scalars by posteriordb's names."""
    beta = draws["beta"]
    return {"sigma": draws["sigma"], **{f"beta[{j + 1}]": beta[:, j] for j in range(beta.shape[1])}}


def load() -> tuple[tuple[Tensor, Tensor], Reference]:
    """Arguments of the model, what the reference draws say."""
    data, chains = posteriordb("kidiq-kidscore_momhsiq")
    columns = [torch.ones(data["N"]), torch.tensor(data["mom_hs"]).float(), torch.tensor(data["mom_iq"]).float()]
    args = torch.stack(columns, -1), torch.tensor(data["kid_score"]).float()
    return args, summarise("posteriordb", chains)


def posterior() -> Posterior:
    """The gallery's entry."""
    args, reference = load()
    return Posterior("kidscore", "test scores of 434 children, regression", model, args, quantities, lambda: reference)
