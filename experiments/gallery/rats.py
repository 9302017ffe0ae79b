"""Hierarchical regression: the growth of thirty young rats, each with an intercept and a slope of its own.

    python -m experiments.gallery rats

Data: Gelfand, Hills, Racine-Poon and Smith (1990), section 6: weights in grams at five ages. 65 latents.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from experiments.gallery.common import Posterior
from experiments.gallery.reference import Draws, nuts

AGES = [8.0, 15.0, 22.0, 29.0, 36.0]
"""Days."""
WEIGHTS = [
    [151, 199, 246, 283, 320], [145, 199, 249, 293, 354], [147, 214, 263, 312, 328], [155, 200, 237, 272, 297],
    [135, 188, 230, 280, 323], [159, 210, 252, 298, 331], [141, 189, 231, 275, 305], [159, 201, 248, 297, 338],
    [177, 236, 285, 350, 376], [134, 182, 220, 260, 296], [160, 208, 261, 313, 352], [143, 188, 220, 273, 314],
    [154, 200, 244, 289, 325], [171, 221, 270, 326, 358], [163, 216, 242, 281, 312], [160, 207, 248, 288, 324],
    [142, 187, 234, 280, 316], [156, 203, 243, 283, 317], [157, 212, 259, 307, 336], [152, 203, 246, 286, 321],
    [154, 205, 253, 298, 334], [139, 190, 225, 267, 302], [146, 191, 229, 272, 302], [157, 211, 250, 285, 323],
    [132, 185, 237, 286, 331], [160, 207, 257, 303, 345], [169, 216, 261, 295, 333], [157, 205, 248, 289, 316],
    [137, 180, 219, 258, 291], [153, 200, 244, 286, 324],
]  # fmt: skip
"""Grams."""


def model(age: Tensor, weight: Tensor) -> None:
    """weight ~ N(αᵢ + βᵢ (age − 22), σ²), αᵢ ~ N(μ_α, τ_α²), βᵢ ~ N(μ_β, τ_β²); weakly informative priors."""
    mu_alpha = pyro.sample("mu_alpha", dist.Normal(250.0, 100.0))
    mu_beta = pyro.sample("mu_beta", dist.Normal(0.0, 10.0))
    tau_alpha = pyro.sample("tau_alpha", dist.HalfCauchy(torch.tensor(25.0)))
    tau_beta = pyro.sample("tau_beta", dist.HalfCauchy(torch.tensor(1.0)))
    sigma = pyro.sample("sigma", dist.HalfCauchy(torch.tensor(10.0)))
    with pyro.plate("rats", weight.shape[0], dim=-1):
        alpha = pyro.sample("alpha", dist.Normal(mu_alpha, tau_alpha))
        beta = pyro.sample("beta", dist.Normal(mu_beta, tau_beta))
        line = alpha.unsqueeze(-1) + beta.unsqueeze(-1) * (age - age.mean())
        pyro.sample("weight", dist.Normal(line, sigma[..., None]).to_event(1), obs=weight)


def least_squares(age: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """A line for each rat, and the spread of the lines: where NUTS begins."""
    centred = age - age.mean()
    alpha, beta = weight.mean(-1), (weight * centred).sum(-1) / centred.square().sum()
    sigma = (weight - alpha[:, None] - beta[:, None] * centred).std()
    return {
        "mu_alpha": alpha.mean(), "mu_beta": beta.mean(), "tau_alpha": alpha.std(), "tau_beta": beta.std(),
        "sigma": sigma, "alpha": alpha, "beta": beta,
    }  # fmt: skip


def quantities(draws: Draws) -> Draws:
    """The five global scalars and the lines of the first ten rats."""
    scalars = {name: draws[name] for name in ("mu_alpha", "mu_beta", "tau_alpha", "tau_beta", "sigma")}
    lines = {f"{name}[{i}]": draws[name][:, i] for name in ("alpha", "beta") for i in range(10)}
    return scalars | lines


def load() -> tuple[Tensor, Tensor]:
    """Ages and weights."""
    return torch.tensor(AGES), torch.tensor(WEIGHTS, dtype=torch.float32)


def posterior() -> Posterior:
    """The gallery's entry."""
    args = load()
    truth = lambda: nuts(model, args, quantities, num_draws=500, warmup=250, start=least_squares(*args))  # noqa: E731
    return Posterior("rats", "growth of 30 rats, hierarchical regression", model, args, quantities, truth)
