"""What a diagnosis found, in words and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vi_flows.diagnostics.chains import Moved
from vi_flows.diagnostics.verdict import K_FINITE_VARIANCE
from vi_flows.evaluation.psis import usable_k_hat
from vi_flows.plotting import save_figure

__all__ = ["Diagnosis"]


@dataclass(frozen=True)
class Diagnosis:
    """What the importance weights ``log p(x, z) − log q(z)`` of fresh draws say; ``print`` it for the report.

    Attributes:
        verdict: ``ok``, ``use importance weights`` or ``don't trust``.
        reason: one sentence.
        num_samples: draws.
        elbo: mean log-weight, nats.
        elbo_se: its standard error, NaN where the model gives a draw no density.
        log_evidence: log of the mean smoothed weight.
        gap: ``log_evidence − elbo``, an estimate of ``KL(q‖p)`` (of a lower bound of it, where ``k_hat`` is high).
        k_hat: joint Pareto shape, of the product of all plates.
        ess: effective sample size of the smoothed weights.
        k_hat_rows: one a data point, where every site lies in one plate over data points; else ``None``.
        ess_rows: likewise.
        shift: by site, how far importance weighting moves the mean, in standard deviations of the draws (guides of
            global latents; ``None`` for others).
        sd_ratio: by site, the guide's standard deviation over the weighted one, likewise.
        invertibility_margin: see :func:`~vi_flows.diagnostics.invertibility_margin`.
        active_units: by site in the data plate, how many of its dimensions respond to the data, and of how many.
        log_weights: the raw log-weights ``(S,)`` of the joint.
        weights: normalised smoothed weights ``(S,)`` of ``draws``.
        draws: the draws by site, where they are of global latents.
        elsewhere: what was found where no draw had come: ``nothing``, a mode in words, or ``not looked``.
        chains: how far short chains of the posterior move the draws' means and spreads; ``None`` where there were none.
        heavy_tails: by site, the largest :func:`~vi_flows.diagnostics.tail_shape` of the draws, where that is at least
            0.5: standard deviations, from 0.7 on means too, rest on the few largest draws of however many.
    """

    verdict: str
    reason: str
    num_samples: int
    elbo: float
    elbo_se: float
    log_evidence: float
    gap: float
    k_hat: float
    ess: float
    k_hat_rows: Tensor | None = field(repr=False)
    ess_rows: Tensor | None = field(repr=False)
    shift: dict[str, Tensor] | None = field(repr=False)
    sd_ratio: dict[str, Tensor] | None = field(repr=False)
    invertibility_margin: float | None
    active_units: dict[str, tuple[int, int]] | None
    log_weights: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    draws: dict[str, Tensor] | None = field(repr=False)
    elsewhere: str
    chains: Moved | None
    heavy_tails: dict[str, float] = field(default_factory=dict)

    def _elbo_in_words(self) -> str:
        if self.elbo == -math.inf:
            return f"ELBO          -inf: the model gives {share_of_zeros(self.log_weights)} of the draws no density"
        return f"ELBO          {self.elbo:.3f} ± {self.elbo_se:.3f} nats ({self.num_samples} draws)"

    def __str__(self) -> str:
        usable = usable_k_hat(self.num_samples)
        lines = [
            f"verdict       {self.verdict}: {self.reason}",
            self._elbo_in_words(),
            f"log evidence  {self.log_evidence:.3f}   gap {self.gap:.3f} nats",
            f"k-hat         {self.k_hat:.2f} joint (below 0.5 good, above {usable:.2g} useless)",
            f"ESS           {self.ess:.0f} of {self.num_samples}",
        ]
        if self.k_hat_rows is not None and self.ess_rows is not None:
            k = self.k_hat_rows
            lines.append(
                f"data points   {k.numel()}: k-hat median {k.nanmedian():.2f}, above 0.5 {_share(k, 0.5):.1%}, "
                f"above {usable:.2g} {_share(k, usable):.1%}; mean ESS {self.ess_rows.mean():.0f}"
            )
        if self.active_units is not None:
            units = ", ".join(f"{name} {n} of {d}" for name, (n, d) in self.active_units.items())
            lines.append(f"active units  {units}")
        if self.shift and self.sd_ratio:
            moved = sorted(((float(s.abs().max()), name) for name, s in self.shift.items()), reverse=True)[:3]
            worst = ", ".join(f"{name} {size:.2f} sd" for size, name in moved)
            ratios = torch.cat([r.flatten() for r in self.sd_ratio.values()])
            lines.append(f"weighting     moves means by at most: {worst}")
            lines.append(f"              sd of the draws / weighted sd: {ratios.min():.2f}…{ratios.max():.2f}")
        if self.chains is not None:
            lines.append(
                f"chains        of the posterior move means by at least {self.chains.shift:.2f} sd, sds by at least "
                f"{math.expm1(self.chains.stretch):.0%}"
            )
        if self.heavy_tails:
            shapes = ", ".join(f"{name} {shape:.2f}" for name, shape in self.heavy_tails.items())
            lines.append(f"heavy tails   {shapes} (shape; no variance from 0.5 on, no mean from 1 on)")
        if self.invertibility_margin is not None:
            lines.append(f"margin        smallest slope of a ConvFlow layer {self.invertibility_margin:.1e}")
        lines.append(
            "elsewhere     "
            + {
                "nothing": "paths from far outside found no other mode",
                "not looked": "a mode that no draw reached can't be seen from here",
            }.get(self.elsewhere, self.elsewhere)
        )
        return "\n".join(lines)

    def weighted_mean(self, fn: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        """``Σ w f(z)``: an expectation corrected by the smoothed weights.

        Args:
            fn: of the draws, a tensor with draws along the first dimension; a condition's mean is its probability.

        Raises:
            RuntimeError: there are no joint draws (models with data points in a plate).
        """
        if self.draws is None:
            raise RuntimeError("no joint draws were kept for this model")
        values = fn(self.draws)
        if not values.is_floating_point():  # never the weights to the type of counts, where all are zero
            values = values.to(self.weights)
        return (self.weights.to(values).reshape(-1, *(1,) * (values.dim() - 1)) * values).sum(0)

    def plot(self, path: Path | str | None = None) -> Any:
        """Draw the weights and where they matter; written to ``path`` if given. Returns the matplotlib figure."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        centered = self.log_weights - self.log_evidence
        left.hist(centered[centered.isfinite()].numpy(), bins=60, color="0.6")
        left.axvline(0, color="k", lw=1)
        left.set(
            xlabel="log weight − log evidence (nats)", ylabel="draws", title=f"{self.verdict}: k-hat {self.k_hat:.2f}"
        )
        if self.k_hat_rows is not None and self.ess_rows is not None:
            right.plot(self.k_hat_rows.flatten().sort().values.numpy(), ".", color="C0", ms=3)
            for level in (K_FINITE_VARIANCE, usable_k_hat(self.num_samples)):
                right.axhline(level, color="k", lw=0.8, ls="--")
            right.set(xlabel="data points, sorted", ylabel="k-hat")
        elif self.shift:
            names, values = zip(*((n, v.flatten()) for n, v in self.shift.items()), strict=True)
            for i, value in enumerate(values):
                right.plot([i] * len(value), value.numpy(), "_", color="C0", ms=14)
            right.axhline(0, color="k", lw=0.8)
            right.set_xticks(range(len(names)), names, rotation=30)
            right.set(ylabel="shift of the mean by weighting (sd)")
        else:
            right.axis("off")
        if path is not None:
            save_figure(figure, Path(path), 110)
        return figure


def _share(values: Tensor, level: float) -> float:
    return float((values > level).double().mean())


def share_of_zeros(log_weights: Tensor) -> str:
    """How many weights are zero, in per cent."""
    return percent(float((log_weights == -math.inf).double().mean()))


def percent(share: float) -> str:
    """``7%``; of less than one, to one digit: ``0.02%``."""
    return f"{share:.0%}" if share >= 0.01 else f"{100 * share:.1g}%"
