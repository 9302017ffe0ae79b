"""Posteriors whose moments are known in closed form, or by quadrature in one or two dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from torch import Tensor

from experiments.verdicts.known import Known, Moments
from vi_flows.distributions.energies import target_2d

LogDensity = Callable[[Tensor], Tensor]
DOUBLE = torch.float64


def density(log_prob: LogDensity, dim: int) -> Callable[[], None]:
    """A program of one site ``x`` of ``dim`` numbers with that density."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(dim), 1.0).to_event(1).mask(False))
        pyro.factor("target", log_prob(x))

    return model


def site(law: Callable[[], dist.TorchDistribution]) -> Callable[[], None]:
    """A program of one site ``x`` of that law, made at each run so that it has the default type of then."""

    def model() -> None:
        pyro.sample("x", law())

    return model


def every(mean: list[float], sd: list[float]) -> Moments:
    """Of the numbers of a vector ``x``."""
    return {f"x[{j}]": pair for j, pair in enumerate(zip(mean, sd, strict=True))}


def law(name: str, make: Callable[[], dist.TorchDistribution], mean: float, sd: float, size: int = 0) -> Known:
    """One site, of a scalar or of ``size`` numbers of the same moments."""
    truth = every([mean] * size, [sd] * size) if size else {"x": (mean, sd)}
    return Known(name, site(make), (), truth, "closed form")


# Gaussian.


def ar1(dim: int, correlation: float) -> Known:
    """Neighbours correlated by a power of the distance."""
    steps = torch.arange(dim)
    covariance = torch.tensor(correlation).pow((steps[:, None] - steps).abs())
    make = lambda: dist.MultivariateNormal(torch.ones(dim), covariance)  # noqa: E731
    return Known(f"ar1-{dim}", site(make), (), every([1.0] * dim, [1.0] * dim), "closed form")


def scales() -> Known:
    """Standard deviations from a thousandth to a thousand."""
    sd = 10.0 ** torch.arange(-3.0, 4.0)
    make = lambda: dist.Normal(3 * sd, sd).to_event(1)  # noqa: E731
    return Known("scales-7", site(make), (), every((3 * sd).tolist(), sd.tolist()), "closed form")


def wishart() -> Known:
    """Thirty dimensions, correlated at random."""
    generator = torch.Generator().manual_seed(5)
    factor = torch.randn(30, 40, generator=generator)
    covariance = factor @ factor.T / 40 + 0.05 * torch.eye(30)
    make = lambda: dist.MultivariateNormal(torch.zeros(30), covariance)  # noqa: E731
    truth = every([0.0] * 30, covariance.diagonal().sqrt().tolist())
    return Known("wishart-30", site(make), (), truth, "closed form")


def conjugate() -> Known:
    """Mean and variance of normal data with a normal-inverse-gamma prior."""
    y = torch.tensor([2.1, -0.3, 1.7, 0.4, 3.3, 1.2, -1.0, 0.8])
    n, a0, b0 = len(y), 2.0, 1.0
    a, kappa = a0 + n / 2, 1.0 + n
    ybar = float(y.mean())
    b = b0 + 0.5 * float((y - ybar).square().sum()) + 0.5 * n * ybar**2 / kappa

    def model() -> None:
        variance = pyro.sample("variance", dist.InverseGamma(torch.tensor(a0), torch.tensor(b0)))
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), variance.sqrt()))
        pyro.sample("y", dist.Normal(mu, variance.sqrt()).expand([n]).to_event(1), obs=y)

    truth = {
        "variance": (b / (a - 1), b / (a - 1) / math.sqrt(a - 2)),
        "mu": (n * ybar / kappa, math.sqrt(b / (a - 1) / kappa)),
    }
    return Known("conjugate-normal", model, (), truth, "closed form")


def dirichlet() -> Known:
    """Shares after counts 3, 0, 9, 1 under a flat prior."""
    alpha = torch.tensor([4.0, 1.0, 10.0, 2.0])
    mean = alpha / alpha.sum()
    sd = (mean * (1 - mean) / (alpha.sum() + 1)).sqrt()
    make = lambda: dist.Dirichlet(alpha)  # noqa: E731
    return Known("dirichlet-4", site(make), (), every(mean.tolist(), sd.tolist()), "closed form")


# Skewed, bent and heavy.


def skew_normal() -> Known:
    """``2 φ(x) Φ(5 x)``."""
    delta = 5 / math.sqrt(26)
    mean = delta * math.sqrt(2 / math.pi)
    log_prob = lambda x: (-0.5 * x.square() + torch.special.log_ndtr(5 * x)).sum(-1)  # noqa: E731
    return Known("skew-normal", density(log_prob, 1), (), every([mean], [math.sqrt(1 - mean**2)]), "closed form")


def truncated() -> Known:
    """A standard normal on 0.5…2."""

    def model() -> None:
        x = pyro.sample("x", dist.Uniform(0.5, 2.0))
        pyro.factor("target", -0.5 * x.square())

    law_ = stats.truncnorm(0.5, 2.0)
    return Known("truncated-normal", model, (), {"x": (law_.mean(), law_.std())}, "closed form")


def funnel(dim: int, sd: float) -> Known:
    """``v ~ N(0, sd²)`` and ``dim`` numbers ``x | v ~ N(0, eᵛ)``."""

    def model() -> None:
        v = pyro.sample("v", dist.Normal(0.0, sd))
        pyro.sample("x", dist.Normal(torch.zeros(dim), (0.5 * v).exp()).to_event(1))

    return Known(
        f"funnel-{dim + 1}", model, (), {"v": (0.0, sd), **every([0.0] * dim, [math.exp(sd**2 / 4)] * dim)},
        "closed form",
    )  # fmt: skip


def banana(dim: int, sd: float, bend: float, noise: float) -> Known:
    """``x₀ ~ N(0, sd²)``, ``x₁ | x₀ ~ N(bend (x₀² − sd²), noise²)``, the others standard normal."""

    def log_prob(x: Tensor) -> Tensor:
        first, second, rest = x[..., 0] / sd, x[..., 1] - bend * (x[..., 0].square() - sd**2), x[..., 2:]
        return -0.5 * (first.square() + (second / noise).square() + rest.square().sum(-1))

    deviations = [sd, math.sqrt(noise**2 + 2 * bend**2 * sd**4)] + [1.0] * (dim - 2)
    return Known(f"banana-{dim}", density(log_prob, dim), (), every([0.0] * dim, deviations), "closed form")


def outliers() -> Known:
    """In three dimensions, a tenth of the mass in a normal five times as wide."""

    def log_prob(x: Tensor) -> Tensor:
        return mixture(x, [[0.0] * 3] * 2, [1.0, 5.0], [0.9, 0.1])

    return Known("outliers-3", density(log_prob, 3), (), every([0.0] * 3, [math.sqrt(0.9 + 2.5)] * 3), "closed form")


# Several modes.


def mixture(x: Tensor, locs: list[list[float]], sds: list[float], weights: list[float]) -> Tensor:
    """The log density of a mixture of isotropic normals."""
    parts = [
        dist.Normal(x.new_tensor(loc), sd).to_event(1).log_prob(x) + math.log(weight)
        for loc, sd, weight in zip(locs, sds, weights, strict=True)
    ]
    return torch.logsumexp(torch.stack(parts), 0)


def modes(name: str, locs: list[list[float]], sds: list[float], weights: list[float], at: int = 0) -> Known:
    """A mixture of isotropic normals; ``at``: which of them a guide that misses the others is in."""
    loc, sd, weight = torch.tensor(locs, dtype=DOUBLE), torch.tensor(sds, dtype=DOUBLE), torch.tensor(weights).double()
    mean = weight @ loc
    variance = weight @ (sd[:, None].square() + (loc - mean).square())
    return Known(
        name, density(partial(mixture, locs=locs, sds=sds, weights=weights), len(locs[0])), (),
        every(mean.tolist(), variance.sqrt().tolist()), "closed form",
        modes=({"x": torch.tensor(locs[at])}, 0.5 * sds[at]),
    )  # fmt: skip


def on_the_plane(name: str) -> Known:
    """An energy of :mod:`vi_flows.distributions.energies`, its moments by its quadrature."""
    target = target_2d(name)
    z, _ = target.grid()
    z = z.reshape(-1, 2)
    weight = torch.softmax(target.unnormalized_log_prob(z), 0)
    mean = weight @ z
    sd = (weight @ (z - mean).square()).sqrt()
    truth = every(mean.tolist(), sd.tolist())
    return Known(f"plane-{name}", density(target.unnormalized_log_prob, 2), (), truth, "quadrature")


LABELS = torch.tensor([-2.3, -1.9, -2.8, -1.4, 1.6, 2.2, 2.9, 1.8, 2.4, 2.0])


def labels() -> Known:
    """The two means of a mixture of normals whose parts nothing tells apart."""

    def log_prob(x: Tensor) -> Tensor:
        y = LABELS.to(x)
        parts = dist.Normal(x.unsqueeze(-1), 1.0).log_prob(y) + x.new_tensor([0.5, 0.5]).log().unsqueeze(-1)
        return torch.logsumexp(parts, -2).sum(-1) + dist.Normal(0.0, 3.0).log_prob(x).sum(-1)

    axis = torch.linspace(-8, 8, 801, dtype=DOUBLE)
    grid = torch.cartesian_prod(axis, axis)
    weight = torch.softmax(log_prob(grid), 0)
    mean = weight @ grid
    sd = (weight @ (grid - mean).square()).sqrt()
    return Known(
        "label-switching", density(log_prob, 2), (), every(mean.tolist(), sd.tolist()), "quadrature",
        modes=({"x": torch.tensor([-2.0, 2.0])}, 0.2),
    )  # fmt: skip


def dose() -> Known:
    """Logistic regression of four groups of five animals (Racine et al. 1986), flat priors, by quadrature."""
    x = torch.tensor([-0.86, -0.30, -0.05, 0.73])
    died = torch.tensor([0.0, 1.0, 3.0, 5.0])

    def log_prob(b: Tensor) -> Tensor:
        logits = b[..., :1] + b[..., 1:] * x.to(b)
        return dist.Binomial(5, logits=logits).log_prob(died.to(b)).sum(-1)

    grid = torch.cartesian_prod(torch.linspace(-8, 14, 1101, dtype=DOUBLE), torch.linspace(-15, 90, 2101, dtype=DOUBLE))
    weight = torch.softmax(log_prob(grid), 0)
    mean = weight @ grid
    sd = (weight @ (grid - mean).square()).sqrt()
    return Known("bioassay", density(log_prob, 2), (), every(mean.tolist(), sd.tolist()), "quadrature")


def _log_normal() -> Known:
    mean, variance = math.exp(0.245), (math.exp(0.49) - 1) * math.exp(0.49)
    return law("log-normal", lambda: dist.LogNormal(0.0, 0.7), mean, math.sqrt(variance))


POSTERIORS: dict[str, Callable[[], Known]] = {
    "normal-1": lambda: law("normal-1", lambda: dist.Normal(5.0, 0.1), 5.0, 0.1),
    "normal-50": lambda: law("normal-50", lambda: dist.Normal(torch.zeros(50), 1.0).to_event(1), 0.0, 1.0, 50),
    "ar1-10": partial(ar1, 10, 0.95),
    "scales-7": scales,
    "wishart-30": wishart,
    "conjugate-normal": conjugate,
    "dirichlet-4": dirichlet,
    "gamma-3": lambda: law("gamma-3", lambda: dist.Gamma(3.0, 1.0), 3.0, math.sqrt(3.0)),
    "beta-2-5": lambda: law("beta-2-5", lambda: dist.Beta(2.0, 5.0), 2 / 7, math.sqrt(10 / (49 * 8))),
    "log-normal": _log_normal,
    "half-normal": lambda: law(
        "half-normal", lambda: dist.HalfNormal(1.0), math.sqrt(2 / math.pi), math.sqrt(1 - 2 / math.pi)
    ),
    "exponential": lambda: law("exponential", lambda: dist.Exponential(2.0), 0.5, 0.5),
    "uniform": lambda: law("uniform", lambda: dist.Uniform(-1.0, 3.0), 1.0, 4 / math.sqrt(12)),
    "laplace-3": lambda: law(
        "laplace-3", lambda: dist.Laplace(torch.zeros(3), 1.0).to_event(1), 0.0, math.sqrt(2.0), 3
    ),
    "student-5": lambda: law(
        "student-5", lambda: dist.StudentT(5.0, torch.zeros(3), 1.0).to_event(1), 0.0, math.sqrt(5 / 3), 3
    ),
    "student-3": lambda: law(
        "student-3", lambda: dist.StudentT(3.0, torch.zeros(2), 1.0).to_event(1), 0.0, math.sqrt(3.0), 2
    ),
    "logistic-4": lambda: law(
        "logistic-4", lambda: dist.Logistic(torch.ones(4), 2.0).to_event(1), 1.0, 2 * math.pi / math.sqrt(3), 4
    ),
    "skew-normal": skew_normal,
    "truncated-normal": truncated,
    "outliers-3": outliers,
    "funnel-3": partial(funnel, 2, 1.5),
    "funnel-10": partial(funnel, 9, 1.0),
    "banana-2": partial(banana, 2, 2.0, 0.25, 0.5),
    "banana-10": partial(banana, 10, 10.0, 0.03, 1.0),
    "bioassay": dose,
    "plane-u1": partial(on_the_plane, "u1"),
    "plane-u3": partial(on_the_plane, "u3"),
    "plane-u4": partial(on_the_plane, "u4"),
    "plane-wave": partial(on_the_plane, "wave"),
    "plane-rings": partial(on_the_plane, "rings"),
    "spike-and-slab": lambda: modes("spike-and-slab", [[0.0], [0.0]], [1.0, 0.05], [0.5, 0.5]),
    "two-modes-1": lambda: modes("two-modes-1", [[-6.0], [6.0]], [1.0, 1.0], [0.3, 0.7]),
    "two-modes-2": lambda: modes("two-modes-2", [[0.0, 0.0], [8.0, 8.0]], [1.0, 2.0], [0.4, 0.6]),
    "two-modes-5": lambda: modes("two-modes-5", [[-5.0] * 5, [5.0] * 5], [1.0, 1.0], [0.7, 0.3]),
    "two-modes-20": lambda: modes("two-modes-20", [[0.0] * 20, [3.0] * 20], [1.0, 1.0], [0.5, 0.5]),
    "three-modes-2": lambda: modes(
        "three-modes-2", [[-5.0, 0.0], [5.0, 0.0], [0.0, 8.0]], [1.0, 0.3, 1.5], [0.5, 0.2, 0.3], 1
    ),
    "small-mode-3": lambda: modes("small-mode-3", [[0.0] * 3, [7.0] * 3], [1.0, 0.5], [0.9, 0.1]),
    "close-modes": lambda: modes("close-modes", [[-2.0], [2.0]], [1.0, 1.0], [0.6, 0.4]),
    "label-switching": labels,
}
