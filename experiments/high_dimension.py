"""Hundreds of latents: a correlated Gaussian, a regression and a logistic regression, by default settings.

    python -m experiments.high_dimension                          # what has no row yet
    python -m experiments.high_dimension ar1 --again              # one of the posteriors anew
    python -m experiments.high_dimension --only-table

Each row is a process of its own on one thread: CPU seconds of set-up and fit, the peak of its resident memory (with
PyTorch and Pyro in it), the ELBO beside the log evidence where that is known, and the sds beside the true ones.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
import tyro
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal
from torch import Tensor

from experiments.comparison import Comparison, Row
from experiments.posteriordb.apart import apart
from vi_flows.cli.outcome import exit_with
from vi_flows.guides import AutoConvFlow, fit
from vi_flows.records import Record, provenance

RESULTS = Path(__file__).parent / "results" / "high_dimension"


@dataclass(frozen=True)
class Target:
    """A posterior with its truth.

    Attributes:
        model: without arguments; its one site is ``x``.
        truth: gives its means and sds, of shape ``(d,)`` in float64, and the log evidence in nats (``None`` where that
            has no closed form).
    """

    model: Callable[[], object]
    truth: Callable[[], tuple[Tensor, Tensor, float | None]]


def ar1(dim: int = 500, correlation: float = 0.99) -> Target:
    """A stationary autoregression of unit variance: a prior alone, so the evidence is one."""
    steps = torch.arange(dim, dtype=torch.float64)
    factor = torch.linalg.cholesky(correlation ** (steps[:, None] - steps).abs()).float()

    def model() -> None:
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(dim), scale_tril=factor))

    return Target(model, lambda: (torch.zeros(dim).double(), torch.ones(dim).double(), 0.0))


def regression(num_data: int = 400, dim: int = 350) -> Target:
    """Standard normal covariates, coefficients and noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_data, dim, generator=generator)
    y = x @ torch.randn(dim, generator=generator) + torch.randn(num_data, generator=generator)

    def model() -> None:
        beta = pyro.sample("x", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ beta, 1.0).to_event(1), obs=y)

    def truth() -> tuple[Tensor, Tensor, float]:
        design, answer = x.double(), y.double()
        covariance = torch.linalg.inv(torch.eye(dim).double() + design.T @ design)
        marginal = torch.eye(num_data).double() + design @ design.T
        evidence = torch.distributions.MultivariateNormal(torch.zeros(num_data).double(), marginal).log_prob(answer)
        return covariance @ design.T @ answer, covariance.diagonal().sqrt(), float(evidence)

    return Target(model, truth)


def logistic(num_data: int = 2000, dim: int = 1000) -> Target:
    """Covariates of variance ``4 / d``, standard normal coefficients; the truth by Hamiltonian Monte Carlo."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_data, dim, generator=generator) * 2 / dim**0.5
    y = torch.bernoulli(torch.sigmoid(x @ torch.randn(dim, generator=generator)), generator=generator)

    def model() -> None:
        beta = pyro.sample("x", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
        pyro.sample("y", dist.Bernoulli(logits=x @ beta).to_event(1), obs=y)

    return Target(model, lambda: (*hamiltonian(x, y, generator), None))


def hamiltonian(
    x: Tensor, y: Tensor, generator: torch.Generator, chains: int = 50, warm_up: int = 30, draws: int = 150
) -> tuple[Tensor, Tensor]:
    """Means and sds of a logistic regression's coefficients under ``N(0, I)``.

    Hamiltonian Monte Carlo in the coordinates that the curvature at the mode whitens, where a trajectory of a quarter
    of a turn forgets its start; six leapfrog steps of it.

    Args:
        x: covariates ``(n, d)``.
        y: zeros and ones ``(n,)``.
        generator: source of all draws.
        chains: all at once.
        warm_up: iterations of each that are left out.
        draws: iterations of each that count.

    Returns:
        Shapes ``(d,)``, float64.
    """
    dim = x.shape[1]
    mode = torch.zeros(dim).double()
    design, answer = x.double(), y.double()
    for _ in range(20):
        p = torch.sigmoid(design @ mode)
        precision = torch.eye(dim).double() + design.T @ ((p * (1 - p))[:, None] * design)
        mode = mode + torch.linalg.solve(precision, design.T @ (answer - p) - mode)
    root = torch.linalg.inv(torch.linalg.cholesky(precision)).T.float()
    around, sign = mode.float(), 2 * y - 1
    whitened = x @ root  # logits of the whitened coordinates, but for a constant
    constant = x @ around

    def energy(z: Tensor) -> tuple[Tensor, Tensor]:
        logits, beta = constant + z @ whitened.T, around + z @ root.T
        value = 0.5 * beta.square().sum(-1) + torch.nn.functional.softplus(-sign * logits).sum(-1)
        return value, beta @ root - (sign * torch.sigmoid(-sign * logits)) @ whitened

    z = torch.randn(chains, dim, generator=generator)
    value, slope = energy(z)
    total, squares = torch.zeros(dim).double(), torch.zeros(dim).double()
    for iteration in range(warm_up + draws):
        step = 1.5 / 6 * (0.9 + 0.2 * float(torch.rand((), generator=generator)))
        momentum = torch.randn(chains, dim, generator=generator)
        before = value + 0.5 * momentum.square().sum(-1)
        there, new_slope = z, slope
        for _ in range(6):
            momentum = momentum - 0.5 * step * new_slope
            there = there + step * momentum
            new_value, new_slope = energy(there)
            momentum = momentum - 0.5 * step * new_slope
        after = new_value + 0.5 * momentum.square().sum(-1)
        taken = torch.rand(chains, generator=generator) < (before - after).exp()
        z, slope = (torch.where(taken[:, None], a, b) for a, b in ((there, z), (new_slope, slope)))
        value = torch.where(taken, new_value, value)
        if iteration >= warm_up:
            beta = (z @ root.T).double()
            total, squares = total + beta.sum(0), squares + beta.square().sum(0)
    mean = total / (chains * draws)
    return mode + mean, (squares / (chains * draws) - mean.square()).sqrt()


TARGETS: dict[str, Callable[[], Target]] = {"ar1": ar1, "regression": regression, "logistic": logistic}


@dataclass(frozen=True)
class Settings:
    """What the methods are run with, where they leave a choice."""

    svi_steps: int = 2000
    """Of Pyro's guides: Adam, one draw a step."""
    svi_learning_rate: float = 0.01
    """Likewise."""
    num_draws: int = 10_000
    """Draws of a guide that are compared with the truth."""
    seed: int = 0
    """Of starts and draws."""
    limit: int = 900
    """CPU seconds of one method on one posterior; what takes longer is a failure."""


def _ours(target: Target, settings: Settings) -> tuple[Row, Callable[..., object]]:
    began = time.process_time()
    guide = AutoConvFlow(target.model)
    set_up = time.process_time()
    result = fit(target.model, guide, progress=False)
    row = {
        "cpu_seconds": round(time.process_time() - began, 1), "set_up_seconds": round(set_up - began, 1),
        "steps": result.num_steps, "stopped": result.stopped,
    }  # fmt: skip
    noise = guide.get_base_dist().sample((200,))
    times = []
    with torch.no_grad():
        for _ in range(5):
            began = time.process_time()
            guide.get_transform().forward_and_ladj(noise)
            times.append((time.process_time() - began) / len(noise))
    return {**row, "draw_microseconds": round(1e6 * median(times), 2)}, guide


def _stock(make: Callable[..., Any], target: Target, settings: Settings) -> tuple[Row, Callable[..., object]]:
    began = time.process_time()
    guide = make(target.model)
    svi = SVI(target.model, guide, pyro.optim.Adam({"lr": settings.svi_learning_rate}), Trace_ELBO())
    for _ in range(settings.svi_steps):
        svi.step()
    return {"cpu_seconds": round(time.process_time() - began, 1), "steps": settings.svi_steps}, guide


METHODS: dict[str, Callable[[Target, Settings], tuple[Row, Callable[..., object]]]] = {
    "AutoConvFlow": _ours,
    "AutoMultivariateNormal": lambda *a: _stock(AutoMultivariateNormal, *a),
    "AutoLowRankMultivariateNormal": lambda *a: _stock(AutoLowRankMultivariateNormal, *a),
}


def measure(name: str, method: str, settings: Settings) -> Row:
    """One method on one posterior."""
    torch.set_num_threads(1)
    pyro.clear_param_store()
    torch.optim.Adam([torch.zeros((), requires_grad=True)])  # its seconds of imports are nobody's
    target = TARGETS[name]()
    pyro.set_rng_seed(settings.seed)
    row, guide = METHODS[method](target, settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with torch.no_grad():
        elbo = [Trace_ELBO().differentiable_loss(target.model, guide) for _ in range(500)]
        draws = Predictive(guide, num_samples=settings.num_draws, parallel=True)()["x"]
    draws = draws.reshape(settings.num_draws, -1).double()
    mean, sd, evidence = target.truth()
    ratios = draws.std(0) / sd
    if not bool(torch.isfinite(ratios).all()):
        raise ArithmeticError("draws are not finite")
    negative = float(torch.stack(elbo).mean())
    gap = {} if evidence is None else {"gap": round(evidence + negative, 3)}
    return {
        **row, "peak_mb": round(peak), "elbo": round(-negative, 3), **gap,
        "largest_mean_error": round(float(((draws.mean(0) - mean).abs() / sd).max()), 4),
        "least_sd_ratio": round(float(ratios.min()), 4), "largest_sd_ratio": round(float(ratios.max()), 4),
    }  # fmt: skip


@dataclass(frozen=True)
class Compare(Comparison):
    """Compare default settings with the truth."""

    kind: ClassVar[str] = "high_dimension"
    results: ClassVar[Path] = RESULTS
    all_names = TARGETS
    all_methods = METHODS

    settings: Settings = field(default_factory=Settings)
    """What the methods are run with."""

    def measure(self, name: str, method: str) -> Row:
        """In a process of its own."""
        row = {"method": method, **apart(measure, name, method, self.settings, limit=self.settings.limit)}
        return row | provenance()

    def table(self) -> str:
        """See :func:`table`."""
        return table()


def table() -> str:
    """Markdown: a line a posterior and method."""
    lines = [
        "| posterior | guide | CPU seconds | peak MB | ELBO | evidence − ELBO | largest mean error, sd | sd ratios |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in TARGETS:
        path = RESULTS / f"{name}.json"
        for row in Record.read(path).figures["rows"] if path.exists() else []:
            if "failed" in row:
                lines.append(f"| {name} | {row['method']} | {row['failed']} | | | | | |")
                continue
            gap = f"{row['gap']:.2f}" if "gap" in row else "–"
            lines.append(
                f"| {name} | {row['method']} | {row['cpu_seconds']:.0f} | {row['peak_mb']} | {row['elbo']:.2f} | {gap} "
                f"| {row['largest_mean_error']:.2f} | {row['least_sd_ratio']:.2f} – {row['largest_sd_ratio']:.2f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    exit_with("high_dimension", lambda words: tyro.cli(Compare, args=words).run())
