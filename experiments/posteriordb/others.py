"""Hierarchies, a mixture, a Gaussian process."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from torch import Tensor

from experiments.gallery.eight_schools import centred, noncentred
from experiments.posteriordb.programs import Data, Draws, Program, flat, tensor

Values = Mapping[str, np.ndarray]


def _schools(data: Data) -> tuple[Tensor, Tensor]:
    return tensor(data["y"]), tensor(data["sigma"])


def _effects(draws: Draws) -> Draws:
    mu, tau = draws["mu"], draws["tau"]
    return {"theta": mu[:, None] + tau[:, None] * draws["eta"], "mu": mu, "tau": tau}


def _noncentred_formula(data: Data, values: Values) -> float:
    eta, mu, tau = values["eta"], values["mu"], values["tau"]
    log_p = stats.norm.logpdf(eta).sum() + stats.norm.logpdf(mu, 0, 5) + stats.cauchy.logpdf(tau, 0, 5)
    return float(log_p + stats.norm.logpdf(data["y"], eta * tau + mu, data["sigma"]).sum())


def _centred_formula(data: Data, values: Values) -> float:
    theta, mu, tau = values["theta"], values["mu"], values["tau"]
    log_p = stats.cauchy.logpdf(tau, 0, 5) + stats.norm.logpdf(theta, mu, tau).sum() + stats.norm.logpdf(mu, 0, 5)
    return float(log_p + stats.norm.logpdf(data["y"], theta, data["sigma"]).sum())


def mixture(y: Tensor) -> None:
    """Two normals with ordered means, the assignments summed out."""
    mu = flat("mu", dist.constraints.ordered_vector, 2)
    pyro.factor("mu_prior", dist.Normal(0.0, torch.tensor(2.0)).log_prob(mu).sum())
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.full((2,), 2.0)).to_event(1))
    theta = pyro.sample("theta", dist.Beta(torch.tensor(5.0), torch.tensor(5.0)))
    parts = dist.Normal(mu, sigma).log_prob(y[:, None]) + torch.stack([theta, 1 - theta]).log()
    pyro.factor("y", torch.logsumexp(parts, -1).sum())


def _mixture_formula(data: Data, values: Values) -> float:
    mu, sigma, theta, y = values["mu"], values["sigma"], float(values["theta"]), np.array(data["y"])
    log_p = stats.norm.logpdf(sigma, 0, 2).sum() + stats.norm.logpdf(mu, 0, 2).sum() + stats.beta.logpdf(theta, 5, 5)
    first, second = (stats.norm.logpdf(y, mu[k], sigma[k]) for k in range(2))
    return float(log_p + np.logaddexp(np.log(theta) + first, np.log1p(-theta) + second).sum())


def gaussian_process(x: Tensor, y: Tensor) -> None:
    """Eleven points, squared exponential; ``sigma`` is added to the variance."""
    rho = pyro.sample("rho", dist.Gamma(torch.tensor(25.0), torch.tensor(4.0)))
    alpha = pyro.sample("alpha", dist.HalfNormal(torch.tensor(2.0)))
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.tensor(1.0)))
    square = (x[:, None] - x).square()
    covariance = alpha.square() * torch.exp(-0.5 * square / rho.square()) + sigma * torch.eye(len(x)).to(x)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), covariance), obs=y)


def _gaussian_process_formula(data: Data, values: Values) -> float:
    x, (rho, alpha, sigma) = np.array(data["x"]), (float(values[k]) for k in ("rho", "alpha", "sigma"))
    covariance = np.array([[alpha**2 * np.exp(-((a - b) ** 2) / (2 * rho**2)) for b in x] for a in x])
    covariance += sigma * np.eye(data["N"])
    log_p = stats.gamma.logpdf(rho, 25, scale=1 / 4) + stats.norm.logpdf(alpha, 0, 2) + stats.norm.logpdf(sigma)
    return float(log_p + stats.multivariate_normal.logpdf(data["y"], np.zeros(data["N"]), covariance))


PROGRAMS = [
    Program("eight_schools-eight_schools_noncentered", noncentred, _schools, _noncentred_formula, _effects),
    Program("eight_schools-eight_schools_centered", centred, _schools, _centred_formula),
    Program("low_dim_gauss_mix-low_dim_gauss_mix", mixture, lambda data: (tensor(data["y"]),), _mixture_formula),
    Program(
        "gp_pois_regr-gp_regr",
        gaussian_process,
        lambda data: (tensor(data["x"]), tensor(data["y"])),
        _gaussian_process_formula,
    ),
]
