"""Linear regressions: flat or wide priors, covariates in their own units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import constraints

from experiments.posteriordb.programs import Data, Program, flat, tensor

Columns = Callable[[Data], tuple[Sequence[np.ndarray], np.ndarray]]
"""From the data to the columns of the design matrix and the response."""
Values = Mapping[str, np.ndarray]


def regression(x: Tensor, y: Tensor, cauchy: float) -> None:
    """y ~ N(xβ, σ²), flat on β; σ half-Cauchy of that scale, or flat for 0."""
    beta = flat("beta", constraints.real, x.shape[-1])
    if cauchy:
        sigma = pyro.sample("sigma", dist.HalfCauchy(torch.tensor(cauchy)))
    else:
        sigma = flat("sigma", constraints.positive)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal((x * beta).sum(-1), sigma), obs=y)


def arguments(columns: Columns, cauchy: float, data: Data) -> tuple[Tensor, Tensor, float]:
    """Design matrix, response, scale of the half-Cauchy."""
    x, y = columns(data)
    return tensor(np.stack(x, -1)), tensor(y), cauchy


def formula(columns: Columns, cauchy: float, data: Data, values: Values) -> float:
    """The sum over rows of Stan's ``normal``, with ``sigma ~ cauchy``."""
    x, y = columns(data)
    mean = sum(b * column for b, column in zip(values["beta"], x, strict=True))
    prior = stats.cauchy.logpdf(values["sigma"], 0, cauchy) if cauchy else 0.0
    return float(stats.norm.logpdf(y, mean, values["sigma"]).sum() + prior)


def exact(columns: Columns, cauchy: float, data: Data, chains: int = 10, draws: int = 1000) -> dict[str, Tensor]:
    """Independent draws of the posterior: σ² is inverse gamma, β given σ normal (flat priors).

    Under ``p(β, σ) = 1`` the marginal of ``u = σ²`` is ``u^{−(n−k+1)/2} e^{−RSS/2u}``. A half-Cauchy on σ accepts such
    draws with probability ``1 / (1 + u/c²)``.
    """
    x, y = columns(data)
    design, answer = np.stack(x, -1), np.asarray(y, float)
    num_rows, size = design.shape
    rng = np.random.default_rng(0)
    # Not from the normal equations: covariates in raw units square their condition.
    q, r = np.linalg.qr(design)
    center = np.linalg.solve(r, q.T @ answer)
    residual = float(np.square(answer - design @ center).sum())
    found: list[np.ndarray] = []
    while sum(map(len, found)) < chains * draws:
        square = stats.invgamma.rvs((num_rows - size - 1) / 2, scale=residual / 2, size=100_000, random_state=rng)
        found.append(square[rng.random(len(square)) * (1 + square / cauchy**2) < 1] if cauchy else square)
    sigma = np.sqrt(np.concatenate(found)[: chains * draws])
    beta = center + sigma[:, None] * np.linalg.solve(r, rng.standard_normal((size, len(sigma)))).T
    scalars = {f"beta[{j + 1}]": beta[:, j] for j in range(size)} | {"sigma": sigma}
    return {name: torch.from_numpy(value.reshape(chains, draws).copy()) for name, value in scalars.items()}


def _kidscore(*names: str) -> Columns:
    def columns(data: Data) -> tuple[list[np.ndarray], np.ndarray]:
        return [np.ones(data["N"]), *(np.array(data[name], float) for name in names)], np.array(data["kid_score"])

    return columns


def _kidscore_interaction(data: Data) -> tuple[list[np.ndarray], np.ndarray]:
    school, quotient = np.array(data["mom_hs"], float), np.array(data["mom_iq"], float)
    return [np.ones(data["N"]), school, quotient, school * quotient], np.array(data["kid_score"])


def _height(data: Data) -> tuple[list[np.ndarray], np.ndarray]:
    return [np.ones(data["N"]), np.array(data["height"], float)], np.array(data["earn"], float)


def _log_height(data: Data) -> tuple[list[np.ndarray], np.ndarray]:
    columns, earnings = _height(data)
    return columns, np.log(earnings)


def _log10_height(data: Data) -> tuple[list[np.ndarray], np.ndarray]:
    return [np.ones(data["N"]), np.array(data["height"], float)], np.log10(np.array(data["earn"], float))


def _log_interaction(data: Data) -> tuple[list[np.ndarray], np.ndarray]:
    height, male = np.array(data["height"], float), np.array(data["male"], float)
    return [np.ones(data["N"]), height, male, height * male], np.log(np.array(data["earn"], float))


def _log_volume(data: Data) -> tuple[list[np.ndarray], np.ndarray]:
    volume = np.prod([data[name] for name in ("diam1", "diam2", "canopy_height")], axis=0)
    return [np.ones(data["N"]), np.log(volume)], np.log(np.array(data["weight"], float))


def _log_mesquite(data: Data) -> tuple[list[np.ndarray], np.ndarray]:
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    logs = [np.log(np.array(data[name], float)) for name in names]
    return [np.ones(data["N"]), *logs, np.array(data["group"], float)], np.log(np.array(data["weight"], float))


def _log_volume_area(data: Data) -> tuple[list[np.ndarray], np.ndarray]:
    (one, volume), weight = _log_volume(data)
    area = np.log(np.array(data["diam1"], float)) + np.log(np.array(data["diam2"], float))
    return [one, volume, area, np.array(data["group"], float)], weight


def _log_volume_area_shape(data: Data) -> tuple[list[np.ndarray], np.ndarray]:
    (one, volume, area, group), weight = _log_volume_area(data)
    first, second, height, density = (
        np.log(np.array(data[name], float)) for name in ("diam1", "diam2", "total_height", "density")
    )
    return [one, volume, area, first - second, height, density, group], weight


def _mesquite(data: Data) -> tuple[list[np.ndarray], np.ndarray]:
    names = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    return [np.ones(data["N"]), *(np.array(data[name], float) for name in names)], np.array(data["weight"], float)


def _nes(data: Data) -> tuple[list[np.ndarray], np.ndarray]:
    age = np.array(data["age_discrete"])
    plain = {name: np.array(data[name], float) for name in ("real_ideo", "race_adj", "educ1", "gender", "income")}
    ages = [(age == level).astype(float) for level in (2, 3, 4)]
    columns = [np.ones(data["N"]), plain["real_ideo"], plain["race_adj"], *ages]
    return [*columns, plain["educ1"], plain["gender"], plain["income"]], np.array(data["partyid7"], float)


def _regression(name: str, columns: Columns, cauchy: float = 0.0) -> Program:
    return Program(name, regression, partial(arguments, columns, cauchy), partial(formula, columns, cauchy))


RowFormula = Callable[[dict[str, float], np.ndarray], tuple[float, float]]
"""Of one row of the data and the coefficients, as the Stan program writes them: the response and its mean."""


def _in_closed_form(name: str, columns: Columns, data_of: str, by_row: RowFormula, cauchy: float = 0.0) -> Program:
    """One whose reference draws are made here; so its formula must not share the columns with the program."""
    return Program(
        name, regression, partial(arguments, columns, cauchy), partial(_by_row, by_row, cauchy), data_of=data_of,
        exact=partial(exact, columns, cauchy),
    )  # fmt: skip


def _by_row(by_row: RowFormula, cauchy: float, data: Data, values: Values) -> float:
    """A sum over rows, one after another."""
    log_p = math.log(1 / (1 + (float(values["sigma"]) / cauchy) ** 2)) if cauchy else 0.0
    for i in range(data["N"]):
        row = {key: float(value[i]) for key, value in data.items() if isinstance(value, list)}
        response, mean = by_row(row, values["beta"])
        log_p += float(stats.norm.logpdf(response, mean, values["sigma"]))
    return log_p


def _kidscore_interaction_row(row: dict[str, float], b: np.ndarray) -> tuple[float, float]:
    return row["kid_score"], b[0] + b[1] * row["mom_hs"] + b[2] * row["mom_iq"] + b[3] * row["mom_hs"] * row["mom_iq"]


def _log_mesquite_row(row: dict[str, float], b: np.ndarray) -> tuple[float, float]:
    sizes = row["diam1"] ** b[1] * row["diam2"] ** b[2] * row["canopy_height"] ** b[3] * row["total_height"] ** b[4]
    return math.log(row["weight"]), b[0] + math.log(sizes) + b[5] * math.log(row["density"]) + b[6] * row["group"]


def _log_volume_area_row(row: dict[str, float], b: np.ndarray) -> tuple[float, float]:
    area = row["diam1"] * row["diam2"]
    volume = area * row["canopy_height"]
    return math.log(row["weight"]), b[0] + b[1] * math.log(volume) + b[2] * math.log(area) + b[3] * row["group"]


def _log_volume_area_shape_row(row: dict[str, float], b: np.ndarray) -> tuple[float, float]:
    area = row["diam1"] * row["diam2"]
    mean = b[0] + b[1] * math.log(area * row["canopy_height"]) + b[2] * math.log(area)
    mean += b[3] * math.log(row["diam1"] / row["diam2"]) + b[4] * math.log(row["total_height"])
    return math.log(row["weight"]), mean + b[5] * math.log(row["density"]) + b[6] * row["group"]


def normal_prior(x: Tensor, y: Tensor) -> None:
    """β ~ N(0, 10²), σ half-normal(10), y ~ N(xβ, σ²)."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[-1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.tensor(10.0)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal((x * beta).sum(-1), sigma), obs=y)


def _normal_prior_formula(data: Data, values: Values) -> float:
    mean = np.array(data["X"]) @ values["beta"]
    log_p = stats.norm.logpdf(values["beta"], 0, 10).sum() + stats.norm.logpdf(values["sigma"], 0, 10)
    return float(log_p + stats.norm.logpdf(data["y"], mean, values["sigma"]).sum())


def kilpisjarvi(x: Tensor, y: Tensor, alpha_prior: tuple[float, float], beta_prior: tuple[float, float]) -> None:
    """Temperatures over years around 4000: intercept and slope correlate at −1 + 3e-6."""
    alpha = pyro.sample("alpha", dist.Normal(*map(torch.tensor, alpha_prior)))
    beta = pyro.sample("beta", dist.Normal(*map(torch.tensor, beta_prior)))
    sigma = flat("sigma", constraints.positive)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)


def _kilpisjarvi_arguments(data: Data) -> tuple[Tensor, Tensor, tuple[float, float], tuple[float, float]]:
    alpha, beta = ((float(data[f"pmu{name}"]), float(data[f"ps{name}"])) for name in ("alpha", "beta"))
    return tensor(data["x"]), tensor(data["y"]), alpha, beta


def _kilpisjarvi_formula(data: Data, values: Values) -> float:
    mean = values["alpha"] + values["beta"] * np.array(data["x"])
    log_p = stats.norm.logpdf(values["alpha"], data["pmualpha"], data["psalpha"])
    log_p += stats.norm.logpdf(values["beta"], data["pmubeta"], data["psbeta"])
    return float(log_p + stats.norm.logpdf(data["y"], mean, values["sigma"]).sum())


def diamonds(x: Tensor, y: Tensor) -> None:
    """24 centred covariates, some of them powers of each other, 5000 rows."""
    b = pyro.sample("b", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, torch.tensor(10.0)))
    sigma = flat("sigma", constraints.positive)
    # Half of a Student t: the same up to a constant.
    pyro.factor("sigma_prior", dist.StudentT(3.0, 0.0, torch.tensor(10.0)).log_prob(sigma))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + x @ b, sigma), obs=y)


def _diamonds_arguments(data: Data) -> tuple[Tensor, Tensor]:
    x = np.array(data["X"])[:, 1:]
    return tensor(x - x.mean(0)), tensor(data["Y"])


def _diamonds_formula(data: Data, values: Values) -> float:
    x = np.array(data["X"])
    means = np.array([np.mean(x[:, j]) for j in range(1, data["K"])])
    mean = values["Intercept"] + (x[:, 1:] - means) @ values["b"]
    log_p = stats.norm.logpdf(values["b"], 0, 1).sum() + stats.t.logpdf(values["Intercept"], 3, 8, 10)
    log_p += stats.t.logpdf(values["sigma"], 3, 0, 10) - stats.t.logsf(0, 3, 0, 10)
    return float(log_p + stats.norm.logpdf(data["Y"], mean, values["sigma"]).sum())


PROGRAMS = [
    _regression("kidiq-kidscore_momhs", _kidscore("mom_hs"), 2.5),
    _regression("kidiq-kidscore_momiq", _kidscore("mom_iq"), 2.5),
    _regression("kidiq-kidscore_momhsiq", _kidscore("mom_hs", "mom_iq"), 2.5),
    _regression("earnings-log10earn_height", _log10_height),
    _regression("earnings-logearn_interaction", _log_interaction),
    _regression("mesquite-logmesquite_logvolume", _log_volume),
    _regression("mesquite-mesquite", _mesquite),
    _in_closed_form(
        "kidiq-kidscore_interaction", _kidscore_interaction, "kidiq-kidscore_momhs", _kidscore_interaction_row, 2.5
    ),
    _in_closed_form(
        "earnings-earn_height",
        _height,
        "earnings-log10earn_height",
        lambda row, b: (row["earn"], b[0] + b[1] * row["height"]),
    ),
    _in_closed_form(
        "earnings-logearn_height",
        _log_height,
        "earnings-log10earn_height",
        lambda row, b: (math.log(row["earn"]), b[0] + b[1] * row["height"]),
    ),
    _in_closed_form("mesquite-logmesquite", _log_mesquite, "mesquite-mesquite", _log_mesquite_row),
    _in_closed_form("mesquite-logmesquite_logva", _log_volume_area, "mesquite-mesquite", _log_volume_area_row),
    _in_closed_form(
        "mesquite-logmesquite_logvas", _log_volume_area_shape, "mesquite-mesquite", _log_volume_area_shape_row
    ),
    _regression("nes1972-nes", _nes),
    _regression("nes1976-nes", _nes),
    Program("sblrc-blr", normal_prior, lambda data: (tensor(data["X"]), tensor(data["y"])), _normal_prior_formula),
    Program("kilpisjarvi_mod-kilpisjarvi", kilpisjarvi, _kilpisjarvi_arguments, _kilpisjarvi_formula),
    Program("diamonds-diamonds", diamonds, _diamonds_arguments, _diamonds_formula),
]
