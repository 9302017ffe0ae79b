"""Negative log-likelihood by importance sampling, chunked, with its own diagnostics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from vi_flows.evaluation.parts import NOT_KEPT, Parts
from vi_flows.evaluation.psis import effective_sample_size, psis
from vi_flows.objectives.bounds import ELBO
from vi_flows.progress import progress_bar
from vi_flows.settings import check_counts, check_tensors

__all__ = [
    "NLLResult", "bootstrap_interval", "bootstrap_intervals", "check_level", "estimate_nll", "half_width",
    "interval_in_words", "pyro_log_weights", "student_half_width",
]  # fmt: skip

RESAMPLES_AT_ONCE = 200  # of 10 000 rows, 16 MB

LogWeights = Callable[[Tensor, int], Tensor]
"""``log_weights(rows (B, D), P) -> (P, B)``: independent draws of ``log p(x, z) − log q(z|x)``."""


@dataclass(frozen=True)
class NLLResult:
    """Per-row estimates and their diagnostics, float64 on the CPU, in nats.

    Attributes:
        nll: ``−log (1/S) Σ_s w_s`` of each row, ``S = num_samples``.
        nll_coarse: the same from the first ``num_coarse`` draws (a looser bound).
        elbo: mean log-weight of each row.
        ess: effective sample size ``(Σw)²/Σw²`` of each row, between 1 and ``S``.
        k_hat: Pareto shape of each row's largest weights; above 0.7 the estimate is not to be trusted.
        num_samples: draws ``S`` a row.
        num_coarse: draws of ``nll_coarse``.
        seed: of the draws.
    """

    nll: Tensor
    nll_coarse: Tensor
    elbo: Tensor
    ess: Tensor
    k_hat: Tensor
    num_samples: int
    num_coarse: int
    seed: int

    def summary(self) -> dict[str, Any]:
        """Means over rows, with a bootstrap 95 % interval of the mean NLL."""
        return {
            "nll": self.nll.mean().item(),
            "interval": bootstrap_interval(self.nll),
            "elbo": self.elbo.mean().item(),
            f"nll_{self.num_coarse}": self.nll_coarse.mean().item(),
            "num_samples": self.num_samples,
            "num_rows": self.nll.numel(),
            "mean_ess": self.ess.mean().item(),
            # PyTorch's median of an even number is the lower one of the middle two.
            "median_k_hat": math.nan if self.k_hat.isnan().any() else statistics.median(self.k_hat.tolist()),
            # Unknown where k_hat is, as of a few draws: a NaN is not below 0.7.
            "share_k_hat_above_0.7": (self.k_hat > 0.7).double().where(~self.k_hat.isnan(), torch.nan).mean().item(),
            "evaluation_seed": self.seed,
        }

    def scores(self) -> dict[str, Tensor]:
        """The per-row figures by the names of :meth:`summary`, float32."""
        columns = {
            "nll": self.nll,
            f"nll_{self.num_coarse}": self.nll_coarse,
            "elbo": self.elbo,
            "ess": self.ess,
            "k_hat": self.k_hat,
        }
        return {name: values.float() for name, values in columns.items()}


def check_level(level: float) -> None:
    """Refuse what is no coverage of an interval.

    Raises:
        ValueError: it does not lie between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}; 0.95 is usual")


def bootstrap_interval(
    values: Tensor, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over rows; NaN for a single one.

    Args:
        values: one a row.
        level: coverage.
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: there is nothing to resample, no bootstrap sample is asked for, or see :func:`check_level`.
    """
    return bootstrap_intervals(values.reshape(1, -1), level, resamples, seed)[0]


def bootstrap_intervals(
    values: Tensor, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[tuple[float, float]]:
    """:func:`bootstrap_interval` of several quantities of the same rows, all from one set of resamples.

    Both ends are NaN for a single row, as :func:`half_width` is: one row says nothing of how rows differ.

    Args:
        values: ``(quantities, rows)``.
        level: coverage.
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: there is nothing to resample, no bootstrap sample is asked for, or see :func:`check_level`.
    """
    check_level(level)
    if values.numel() < 1 or resamples < 1:
        raise ValueError(f"a bootstrap needs values and resamples of at least 1, got {values.numel()} and {resamples}")
    generator = np.random.default_rng(seed)
    data = values.double().cpu().numpy()
    size = data.shape[1]
    if size == 1:
        return [(math.nan, math.nan)] * len(data)
    means = np.empty((resamples, len(data)))  # a number of resamples that no memory holds fails here, and at once
    for first in range(0, resamples, RESAMPLES_AT_ONCE):
        # Resampling rows with replacement is a multinomial draw of their counts.
        part = min(RESAMPLES_AT_ONCE, resamples - first)
        counts = generator.multinomial(size, np.full(size, 1 / size), size=part).astype(np.float64)
        means[first : first + part] = counts @ data.T / size
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def half_width(values: Tensor) -> float:
    """Half of the normal 95 % interval of a mean over rows, ``1.96 s / √n``; NaN for a single row.

    Args:
        values: one a row, numbers of any type.

    Raises:
        ValueError: they are not one a row.
    """
    if values.dim() != 1:
        raise ValueError(f"half_width is of a mean over rows (n,), got values of shape {tuple(values.shape)}")
    return 1.96 * (values.double().std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan


def interval_in_words(ends: Sequence[float], digits: int) -> str:
    """The 95 % interval of a mean over rows, for people.

    Args:
        ends: both; NaN where there is no interval.
        digits: behind the point.
    """
    low, high = ends
    if math.isnan(low) or math.isnan(high):
        return "no interval of a single row"
    return f"95 % interval [{low:.{digits}f}, {high:.{digits}f}]"


def student_half_width(values: Sequence[float], level: float = 0.95) -> float:
    """Half of Student's interval of a mean of few values, ``t s / √n`` with ``n − 1`` degrees of freedom.

    Args:
        values: of seeds; NaN for a single one.
        level: coverage.

    Raises:
        ValueError: see :func:`check_level`.
    """
    check_level(level)
    if len(values) < 2:
        return math.nan
    quantile = float(stdtrit(len(values) - 1, (1 + level) / 2))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def pyro_log_weights(model: Callable, guide: Callable) -> LogWeights:
    """The log-weights of any Pyro program whose sites all lie in one plate over rows.

    Args:
        model: called with the rows.
        guide: called with the rows.

    Returns:
        A function for :func:`estimate_nll`.

    Raises:
        ValueError: (when called) the weights do not factorise over rows.
    """

    bounds: dict[int, ELBO] = {}  # each finds out about the program's plates, once

    def log_weights(rows: Tensor, num_particles: int) -> Tensor:
        if num_particles not in bounds:
            bounds[num_particles] = ELBO(num_particles, vectorize_particles=True)
        bound = bounds[num_particles]
        weights = bound.log_weights(model, guide, rows).log_weights()
        if weights.shape != (num_particles, rows.shape[0]):
            raise ValueError(
                f"expected weights of shape {(num_particles, rows.shape[0])}, got {tuple(weights.shape)}: "
                "every site must be in one plate over rows"
            )
        return weights

    return log_weights


def devices_of(device: torch.device) -> list[torch.device]:
    """The devices besides the CPU whose generators draw on ``device``, as ``torch.random.fork_rng`` takes them."""
    return [] if device.type == "cpu" else [device]


@torch.no_grad()
def estimate_nll(
    log_weights: LogWeights,
    data: Tensor,
    num_samples: int = 5000,
    *,
    num_coarse: int = 100,
    rows_per_chunk: int = 20,
    samples_per_chunk: int = 100,
    seed: int = 0,
    progress: bool = False,
    parts: Parts = NOT_KEPT,
    part_name: str = "importance",
) -> NLLResult:
    r"""``−log p(x) ≈ −log (1/S) Σ_s p(x, z_s)/q(z_s|x)`` of each row.

    Weights are computed where the data are, in the model's own type, and accumulated in float64. The draws of a chunk
    of rows depend only on ``seed`` and the chunk's position, so that the result is the same to the bit for the same
    arguments.

    Args:
        log_weights: see ``LogWeights``; put the modules in ``eval()`` mode first (batch normalisation in training mode
            is not a likelihood). ``lambda x, p: vae.log_weight_terms(x, p).log_weights()`` for a
            :class:`~vi_flows.vae.VAE`, :func:`pyro_log_weights` for other Pyro programs.
        data: rows ``(N, D)``, or what else ``log_weights`` takes, such as the rows' numbers ``(N,)``.
        num_samples: ``S``.
        num_coarse: draws of the coarser estimate reported beside it.
        rows_per_chunk: rows evaluated together.
        samples_per_chunk: draws a row evaluated together; the two bound the memory, and small products stay in cache.
        seed: of the draws.
        progress: show a progress bar.
        parts: where chunks of rows that were scored before are taken from.
        part_name: what they are called there.

    Raises:
        ValueError: a count is less than 1, there are no rows, the log-weights are not ``(draws, rows)``, one is +∞, or
            all of a row are −∞.
        FloatingPointError: a weight is NaN.
    """
    check_counts(
        1, num_samples=num_samples, num_coarse=num_coarse, rows_per_chunk=rows_per_chunk,
        samples_per_chunk=samples_per_chunk,
    )  # fmt: skip
    check_tensors(data=data)
    if len(data) == 0:
        raise ValueError(f"there are no rows to score: the data have the shape {tuple(data.shape)}")

    def scored(start: int, rows: Tensor) -> dict[str, Tensor]:
        torch.manual_seed((seed * 1_000_003 + start) % 2**63)
        drawn = []
        for first in range(0, num_samples, samples_per_chunk):
            draws = min(samples_per_chunk, num_samples - first)
            drawn.append(log_weights(rows, draws))
            check_tensors(**{"what log_weights gives": drawn[-1]})
            if drawn[-1].shape != (draws, len(rows)):
                raise ValueError(
                    f"log_weights must give {(draws, len(rows))} (draws, rows), got {tuple(drawn[-1].shape)}"
                )
        log_w = torch.cat(drawn).double()
        if log_w.isnan().any():
            bad = start + int(log_w.isnan().any(0).nonzero()[0])
            raise FloatingPointError(
                f"the log-weight of row {bad} is NaN: the model or the guide has diverged; train it anew with a "
                "lower learning rate"
            )
        coarse = log_w[:num_coarse]
        columns = {
            "nll": math.log(num_samples) - torch.logsumexp(log_w, 0),
            "nll_coarse": math.log(len(coarse)) - torch.logsumexp(coarse, 0),
            "elbo": log_w.mean(0),
            "ess": effective_sample_size(log_w),
            "k_hat": psis(log_w).k_hat,
        }
        return {name: values.cpu() for name, values in columns.items()}

    chunks = []
    bar = progress_bar(total=len(data), unit="row", shown=progress)
    with torch.random.fork_rng(devices_of(data.device)), bar:
        for start in range(0, len(data), rows_per_chunk):
            rows = data[start : start + rows_per_chunk]
            chunks.append(parts.part(part_name, start, partial(scored, start, rows)))
            bar.update(len(rows))
    tensors = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return NLLResult(**tensors, num_samples=num_samples, num_coarse=min(num_coarse, num_samples), seed=seed)
