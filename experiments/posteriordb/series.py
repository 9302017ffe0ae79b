"""Time series: autoregressions, volatility, hidden Markov models, differential equations."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from scipy.integrate import solve_ivp
from scipy.special import logsumexp
from torch import Tensor
from torch.distributions import constraints

from experiments.posteriordb.programs import Data, Draws, Program, flat, tensor

Values = Mapping[str, np.ndarray]


def recurrence(inputs: Tensor, factor: Tensor) -> Tensor:
    """``e_t = inputs_t + factor e_{t−1}`` by doubling: in ``log₂ T`` steps, not in ``T``."""
    e, step, power = inputs, 1, factor
    while step < inputs.shape[-1]:
        e = e + power * torch.nn.functional.pad(e[..., :-step], (step, 0))
        step, power = 2 * step, power * power
    return e


def autoregression(lags: Tensor, y: Tensor) -> None:
    """AR(K): y_t ~ N(α + Σ β_k y_{t−k}, σ²)."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, torch.tensor(10.0)))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(lags.shape[-1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(torch.tensor(2.5)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(alpha + (lags * beta).sum(-1), sigma), obs=y)


def _autoregression_arguments(data: Data) -> tuple[Tensor, Tensor]:
    y, order = np.array(data["y"]), data["K"]
    lags = np.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], -1)
    return tensor(lags), tensor(y[order:])


def _autoregression_formula(data: Data, values: Values) -> float:
    y, order = data["y"], data["K"]
    log_p = stats.norm.logpdf(values["alpha"], 0, 10) + stats.norm.logpdf(values["beta"], 0, 10).sum()
    log_p += stats.cauchy.logpdf(values["sigma"], 0, 2.5)
    for t in range(order, data["T"]):
        mean = values["alpha"] + sum(values["beta"][k] * y[t - k - 1] for k in range(order))
        log_p += stats.norm.logpdf(y[t], mean, values["sigma"])
    return float(log_p)


def arma(y: Tensor) -> None:
    """ARMA(1, 1): err_t = y_t − μ − φ y_{t−1} − θ err_{t−1} ~ N(0, σ²)."""
    mu = pyro.sample("mu", dist.Normal(0.0, torch.tensor(10.0)))
    phi = pyro.sample("phi", dist.Normal(0.0, torch.tensor(2.0)))
    theta = pyro.sample("theta", dist.Normal(0.0, torch.tensor(2.0)))
    sigma = pyro.sample("sigma", dist.HalfCauchy(torch.tensor(2.5)))
    before = torch.cat([mu.reshape(1), y[:-1]])
    err = recurrence(y - mu - phi * before, -theta)
    pyro.factor("y", dist.Normal(0.0, sigma).log_prob(err).sum())


def _arma_formula(data: Data, values: Values) -> float:
    y, (mu, phi, theta, sigma) = data["y"], (float(values[k]) for k in ("mu", "phi", "theta", "sigma"))
    err = [y[0] - (mu + phi * mu)]
    for t in range(1, data["T"]):
        err.append(y[t] - (mu + phi * y[t - 1] + theta * err[-1]))
    log_p = stats.norm.logpdf(mu, 0, 10) + stats.norm.logpdf([phi, theta], 0, 2).sum()
    return float(log_p + stats.cauchy.logpdf(sigma, 0, 2.5) + stats.norm.logpdf(err, 0, sigma).sum())


def garch(y: Tensor, sigma1: float) -> None:
    """GARCH(1, 1), flat; β₁ lies within 1 − α₁, of which the site ``fraction`` is its share."""
    mu = flat("mu", constraints.real)
    alpha0 = flat("alpha0", constraints.positive)
    alpha1 = flat("alpha1", constraints.unit_interval)
    fraction = flat("fraction", constraints.unit_interval)
    # The map from the fraction to β₁ stretches by 1 − α₁.
    pyro.factor("jacobian", torch.log1p(-alpha1))
    first = torch.full_like(y[:1], sigma1**2)
    variance = recurrence(torch.cat([first, alpha0 + alpha1 * (y[:-1] - mu).square()]), (1 - alpha1) * fraction)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, variance.sqrt()), obs=y)


def _garch_derived(draws: Draws) -> Draws:
    beta1 = (1 - draws["alpha1"]) * draws["fraction"]
    return {"mu": draws["mu"], "alpha0": draws["alpha0"], "alpha1": draws["alpha1"], "beta1": beta1}


def _garch_formula(data: Data, values: Values) -> float:
    y, alpha1 = data["y"], float(values["alpha1"])
    beta1 = (1 - alpha1) * float(values["fraction"])
    sigma = [data["sigma1"]]
    for t in range(1, data["T"]):
        sigma.append(np.sqrt(values["alpha0"] + alpha1 * (y[t - 1] - values["mu"]) ** 2 + beta1 * sigma[-1] ** 2))
    return float(stats.norm.logpdf(y, values["mu"], sigma).sum() + np.log(1 - alpha1))


def forward_algorithm(emission: Tensor, transition: Tensor) -> Tensor:
    """Log likelihood of a hidden Markov model by a tree of products of matrices.

    Args:
        emission: log densities ``(T, K)``; every state may come first, with weight one.
        transition: probabilities ``(K, K)``, from row to column.
    """
    steps = transition.log() + emission[1:, None, :]
    while steps.shape[0] > 1:
        rest = steps[2 * (steps.shape[0] // 2) :]
        left, right = steps[: 2 * (steps.shape[0] // 2) : 2], steps[1::2]
        steps = torch.cat([torch.logsumexp(left[:, :, :, None] + right[:, None, :, :], 2), rest])
    return torch.logsumexp(emission[0, :, None] + steps[0], (0, 1))


def _forward(emission: np.ndarray, transition: np.ndarray) -> float:
    gamma = emission[0]
    for t in range(1, len(emission)):
        gamma = logsumexp(gamma[:, None] + np.log(transition), axis=0) + emission[t]
    return float(logsumexp(gamma))


def hmm(y: Tensor) -> None:
    """Two states, normal emissions of variance one with ordered means, transition rows uniform on the simplex."""
    theta = [pyro.sample(f"theta{k}", dist.Dirichlet(torch.ones(2))) for k in (1, 2)]
    mu = flat("mu", dist.constraints.positive_ordered_vector, 2)
    prior = dist.Normal(torch.tensor([3.0, 10.0]), 1.0).log_prob(mu).sum()
    emission = dist.Normal(mu, 1.0).log_prob(y[:, None])
    pyro.factor("y", prior + forward_algorithm(emission, torch.stack(theta)))


def _hmm_formula(data: Data, values: Values) -> float:
    mu = values["mu"]
    emission = np.stack([stats.norm.logpdf(data["y"], mu[k], 1) for k in range(2)], -1)
    prior = stats.norm.logpdf(mu[0], 3, 1) + stats.norm.logpdf(mu[1], 10, 1)
    return float(prior + _forward(emission, np.stack([values["theta1"], values["theta2"]])))


def drive(u: Tensor, v: Tensor, alpha: Tensor) -> None:
    """Two states, two exponential emissions with ordered rates."""
    theta = [pyro.sample(f"theta{k + 1}", dist.Dirichlet(alpha[k])) for k in range(2)]
    phi, rate = (flat(name, dist.constraints.positive_ordered_vector, 2) for name in ("phi", "lambda"))
    prior = dist.Normal(torch.tensor([0.0, 3.0]), 1.0)
    emission = dist.Exponential(phi).log_prob(u[:, None]) + dist.Exponential(rate).log_prob(v[:, None])
    likelihood = forward_algorithm(emission, torch.stack(theta))
    pyro.factor("y", prior.log_prob(phi).sum() + prior.log_prob(rate).sum() + likelihood)


def _drive_formula(data: Data, values: Values) -> float:
    u, v = np.array(data["u"]), np.array(data["v"])
    log_p = sum(stats.dirichlet.logpdf(values[f"theta{k + 1}"], data["alpha"][k]) for k in range(2))
    log_p += sum(stats.norm.logpdf(values[name], [0, 3], 1).sum() for name in ("phi", "lambda"))
    emission = np.stack(
        [
            stats.expon.logpdf(u, scale=1 / values["phi"][k]) + stats.expon.logpdf(v, scale=1 / values["lambda"][k])
            for k in range(2)
        ],
        -1,
    )
    return float(log_p + _forward(emission, np.stack([values["theta1"], values["theta2"]])))


def runge_kutta(slope: Callable[[float, Tensor], Tensor], start: Tensor, times: list[float], steps: int) -> Tensor:
    """The solution of ``dz/dt = slope(t, z)`` at ``times``, from ``z(0)``; a fixed number of steps an interval."""
    z, t, found = start, 0.0, []
    for end in times:
        h = (end - t) / steps
        for _ in range(steps):
            k1 = slope(t, z)
            k2 = slope(t + h / 2, z + h / 2 * k1)
            k3 = slope(t + h / 2, z + h / 2 * k2)
            k4 = slope(t + h, z + h * k3)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            t += h
        t = end
        found.append(z)
    return torch.stack(found)


def lotka_volterra(y_init: Tensor, y: Tensor, times: list[float]) -> None:
    """Hares and lynxes: a predator–prey system with log-normal errors."""
    theta = flat("theta", constraints.positive, 4)
    prior = dist.Normal(torch.tensor([1.0, 0.05, 1.0, 0.05]), torch.tensor([0.5, 0.05, 0.5, 0.05]))
    pyro.factor("theta_prior", prior.log_prob(theta).sum())
    log_ten = torch.full((2,), 10.0).log()
    z_init = pyro.sample("z_init", dist.LogNormal(log_ten, 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(-torch.ones(2), 1.0).to_event(1))
    birth, eaten = torch.stack([theta[0], -theta[2]]), torch.stack([-theta[1], theta[3]])
    # Of the logarithms: they stay positive, and the steps may be longer.
    log_z = runge_kutta(lambda _, x: birth + eaten * x.flip(-1).exp(), z_init.log(), times, 4)
    pyro.sample("y_init", dist.LogNormal(z_init.log(), sigma).to_event(1), obs=y_init)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.LogNormal(log_z, sigma).to_event(1), obs=y)


def _lotka_volterra_formula(data: Data, values: Values) -> float:
    alpha, beta, gamma, delta = values["theta"]
    z_init, sigma = values["z_init"], values["sigma"]
    solution = solve_ivp(
        lambda _, z: [(alpha - beta * z[1]) * z[0], (-gamma + delta * z[0]) * z[1]],
        (0, data["ts"][-1]), z_init, t_eval=data["ts"], method="LSODA", rtol=1e-9, atol=1e-9,
    )  # fmt: skip
    log_p = stats.norm.logpdf([alpha, gamma], 1, 0.5).sum() + stats.norm.logpdf([beta, delta], 0.05, 0.05).sum()
    log_p += stats.lognorm.logpdf(sigma, 1, scale=np.exp(-1)).sum() + stats.lognorm.logpdf(z_init, 1, scale=10).sum()
    for k in range(2):
        log_p += stats.lognorm.logpdf(data["y_init"][k], sigma[k], scale=z_init[k])
        log_p += stats.lognorm.logpdf(np.array(data["y"])[:, k], sigma[k], scale=solution.y[k]).sum()
    return float(log_p)


def pharmacokinetics(measured: Tensor, times: list[float], dose: float, volume: float) -> None:
    """One compartment, first-order absorption, Michaelis–Menten elimination, log-normal errors."""
    k_a, k_m, v_m, sigma = (
        pyro.sample(name, dist.HalfCauchy(torch.tensor(1.0))) for name in ("k_a", "K_m", "V_m", "sigma")
    )

    def slope(t: float, c: Tensor) -> Tensor:
        return torch.exp(-k_a * t) * dose * k_a / volume - v_m / volume * c / (k_m + c)

    # Far from the data a step may overshoot zero.
    c = runge_kutta(slope, torch.zeros_like(k_a), times, 4).clamp(min=1e-6)
    with pyro.plate("data", len(measured)):
        pyro.sample("C_hat", dist.LogNormal(c.log(), sigma), obs=measured)


def _pharmacokinetics_arguments(data: Data) -> tuple[Tensor, list[float], float, float]:
    return tensor(data["C_hat"]), [float(t) for t in data["times"]], float(data["D"]), float(data["V"])


def _pharmacokinetics_formula(data: Data, values: Values) -> float:
    k_a, k_m, v_m, sigma = (float(values[name]) for name in ("k_a", "K_m", "V_m", "sigma"))
    solution = solve_ivp(
        lambda t, c: np.exp(-k_a * t) * data["D"] * k_a / data["V"] - v_m / data["V"] * c / (k_m + c),
        (data["t0"], data["times"][-1]), [0.0], t_eval=data["times"], method="LSODA", rtol=1e-10, atol=1e-10,
    )  # fmt: skip
    log_p = stats.cauchy.logpdf([k_a, k_m, v_m, sigma], 0, 1).sum()
    return float(log_p + stats.lognorm.logpdf(data["C_hat"], sigma, scale=solution.y[0]).sum())


PROGRAMS = [
    Program("arK-arK", autoregression, _autoregression_arguments, _autoregression_formula),
    Program("arma-arma11", arma, lambda data: (tensor(data["y"]),), _arma_formula),
    Program(
        "garch-garch11", garch, lambda data: (tensor(data["y"]), float(data["sigma1"])), _garch_formula, _garch_derived
    ),
    Program("hmm_example-hmm_example", hmm, lambda data: (tensor(data["y"]),), _hmm_formula),
    Program(
        "bball_drive_event_0-hmm_drive_0",
        drive,
        lambda data: tuple(tensor(data[name]) for name in ("u", "v", "alpha")),
        _drive_formula,
    ),
    Program(
        "hudson_lynx_hare-lotka_volterra",
        lotka_volterra,
        lambda data: (tensor(data["y_init"]), tensor(data["y"]), [float(t) for t in data["ts"]]),
        _lotka_volterra_formula,
    ),
    Program(
        "one_comp_mm_elim_abs-one_comp_mm_elim_abs",
        pharmacokinetics,
        _pharmacokinetics_arguments,
        _pharmacokinetics_formula,
    ),
]
