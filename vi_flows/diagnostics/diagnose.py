"""One call that says whether a guide's answer can be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from vi_flows.diagnostics.chains import Moved, moved_by_chains
from vi_flows.diagnostics.elsewhere import MAX_DIM, Missed, missed_mass
from vi_flows.diagnostics.measures import active_units, invertibility_margin
from vi_flows.diagnostics.verdict import K_FINITE_VARIANCE, K_USABLE, judge
from vi_flows.evaluation.psis import psis
from vi_flows.guides.auto_flow import AutoFlow
from vi_flows.guides.given import check_density, check_model, check_program, preserved_generators
from vi_flows.guides.log_joint import LogJoint
from vi_flows.objectives import ELBO
from vi_flows.traces import nodes

__all__ = ["Diagnosis", "diagnose"]

MISSED_SHARE = 0.01
"""A mode that no draw reached is reported from this share of the mass on."""


@dataclass(frozen=True)
class Diagnosis:
    """What the importance weights ``log p(x, z) − log q(z)`` of fresh draws say; ``print`` it for the report.

    Attributes:
        verdict: ``ok``, ``use importance weights`` or ``don't trust``.
        reason: one sentence.
        num_samples: draws.
        elbo: mean log-weight, nats.
        elbo_se: its standard error.
        log_evidence: log of the mean smoothed weight.
        gap: ``log_evidence − elbo``, an estimate of ``KL(q‖p)`` (of a lower bound of it, where ``k_hat`` is high).
        k_hat: joint Pareto shape, of the product of all plates.
        ess: effective sample size of the smoothed weights.
        k_hat_rows: one a data point, where every site lies in one plate over data points; else ``None``.
        ess_rows: likewise.
        shift: by site, how far importance weighting moves the mean, in posterior standard deviations (guides of
            global latents; ``None`` for others).
        sd_ratio: by site, the guide's standard deviation over the weighted one, likewise.
        invertibility_margin: see :func:`~vi_flows.diagnostics.invertibility_margin`.
        active_units: by site in the data plate, how many of its dimensions respond to the data, and of how many.
        log_weights: the raw log-weights ``(S,)`` of the joint.
        weights: normalised smoothed weights ``(S,)`` of ``draws``.
        draws: the draws by site, where they are of global latents.
        elsewhere: what was found where no draw had come: ``nothing``, a mode in words, or ``not looked``.
        chains: how far short chains of the posterior move the draws' means and spreads; ``None`` where there were none.
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

    def __str__(self) -> str:
        lines = [
            f"verdict       {self.verdict}: {self.reason}",
            f"ELBO          {self.elbo:.3f} ± {self.elbo_se:.3f} nats ({self.num_samples} draws)",
            f"log evidence  {self.log_evidence:.3f}   gap {self.gap:.3f} nats",
            f"k-hat         {self.k_hat:.2f} joint (below 0.5 good, above 0.7 useless)",
            f"ESS           {self.ess:.0f} of {self.num_samples}",
        ]
        if self.k_hat_rows is not None and self.ess_rows is not None:
            k = self.k_hat_rows
            lines.append(
                f"data points   {k.numel()}: k-hat median {k.nanmedian():.2f}, above 0.5 {_share(k, 0.5):.1%}, "
                f"above 0.7 {_share(k, 0.7):.1%}; mean ESS {self.ess_rows.mean():.0f}"
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
            fn: of the draws, a tensor with draws along the first dimension.

        Raises:
            RuntimeError: there are no joint draws (models with data points in a plate).
        """
        if self.draws is None:
            raise RuntimeError("no joint draws were kept for this model")
        values = fn(self.draws)
        return (self.weights.to(values).reshape(-1, *(1,) * (values.dim() - 1)) * values).sum(0)

    def plot(self, path: Path | str | None = None) -> Any:
        """Draw the weights and where they matter; written to ``path`` if given. Returns the matplotlib figure."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        centred = self.log_weights - self.log_evidence
        left.hist(centred[centred.isfinite()].numpy(), bins=60, color="0.6")
        left.axvline(0, color="k", lw=1)
        left.set(
            xlabel="log weight − log evidence (nats)", ylabel="draws", title=f"{self.verdict}: k-hat {self.k_hat:.2f}"
        )
        if self.k_hat_rows is not None and self.ess_rows is not None:
            right.plot(self.k_hat_rows.flatten().sort().values.numpy(), ".", color="C0", ms=3)
            for level in (K_FINITE_VARIANCE, K_USABLE):
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
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=110)
        return figure


def diagnose(
    model: Callable,
    guide: Callable,
    *args: Any,
    num_samples: int = 4000,
    num_paths: int = 40,
    num_chains: int = 500,
    seed: int | None = 0,
    model_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Diagnosis:
    """Weigh fresh draws of the guide by the model, and judge.

    Args:
        model: a Pyro program.
        guide: its guide; parameters are left as they are.
        args: the arguments of both; the whole data, not a minibatch.
        num_samples: draws ``S``.
        num_paths: paths that look for mass which no draw reached
            (:func:`~vi_flows.diagnostics.elsewhere.missed_mass`; guides of global latents, up to 200 dimensions).
        num_chains: short chains of the posterior that start at draws
            (:func:`~vi_flows.diagnostics.chains.moved_by_chains`; likewise, where the model can be evaluated for many
            draws in one pass).
        seed: of the draws; the global generators are left as they were.
        model_kwargs: keyword arguments of both whose names this function has, too (``{"seed": 3}``).
        kwargs: other keyword arguments of both.

    Raises:
        ValueError: the model subsamples its data, or is none that the guide can answer for, or fewer than
            100 draws were asked for.
    """
    if num_samples < 100:
        raise ValueError(f"a tail can't be judged from {num_samples} draws; use at least 100")
    kwargs = {**kwargs, **(model_kwargs or {})}
    with preserved_generators(seed), torch.no_grad(), poutine.block():
        if isinstance(guide, AutoFlow):
            log_w, latents = _flow_weights(model, guide, args, kwargs, num_samples)
            draws = guide.constrain(latents)[0]
            rows, means = None, None
        else:
            check_program(model, guide, args, kwargs)
            check_density(guide, model, args, kwargs)
            log_w, draws = _traced_weights(model, guide, args, kwargs, num_samples), None
            rows = log_w if log_w.dim() > 1 else None
            means = None if rows is None else _row_means(guide, args, kwargs, rows.shape[-1])
    joint = log_w.reshape(num_samples, -1).sum(-1).double().cpu()
    log_w = log_w.double().cpu()
    joint_psis = psis(joint)
    row_psis = None if rows is None else psis(log_w)
    weights = joint_psis.log_weights.exp()
    shift, sd_ratio = (None, None) if draws is None else _moments(draws, weights)
    chains = None
    if isinstance(guide, AutoFlow) and num_chains > 0:
        with preserved_generators(seed), poutine.block():
            chains = _chains(model, guide, args, kwargs, latents[:num_chains])
    verdict, reason = judge(joint_psis, row_psis, shift, sd_ratio, chains, num_samples)
    elsewhere = "not looked"
    if isinstance(guide, AutoFlow) and verdict != "don't trust" and num_paths > 0:
        with preserved_generators(seed), poutine.block():
            evidence = float(joint_psis.log_mean_weight)
            elsewhere = _elsewhere(model, guide, args, kwargs, latents, evidence, num_paths)
        if elsewhere not in ("nothing", "not looked"):
            verdict, reason = "don't trust", elsewhere
    # Where rows factorise, their evidences add, each from its own weights.
    total = joint_psis.log_mean_weight if row_psis is None else row_psis.log_mean_weight.sum()
    finite = joint[joint.isfinite()]
    elbo = float(joint.mean())
    return Diagnosis(
        verdict=verdict,
        reason=reason,
        num_samples=num_samples,
        elbo=elbo,
        elbo_se=float(finite.std() / num_samples**0.5),
        log_evidence=float(total),
        gap=float(total) - elbo,
        k_hat=float(joint_psis.k_hat),
        ess=float(joint_psis.ess),
        k_hat_rows=None if row_psis is None else row_psis.k_hat,
        ess_rows=None if row_psis is None else row_psis.ess,
        shift=shift,
        sd_ratio=sd_ratio,
        invertibility_margin=invertibility_margin(guide) if isinstance(guide, nn.Module) else None,
        active_units=means,
        log_weights=joint,
        weights=weights,
        draws=draws,
        elsewhere=elsewhere,
        chains=chains,
    )


def _flow_weights(
    model: Callable, guide: AutoFlow, args: tuple, kwargs: dict[str, Any], num_samples: int
) -> tuple[Tensor, Tensor]:
    check_model(model, guide, args, kwargs)
    log_density = guide.log_density_of(model, *args, **kwargs)
    log_w, latents = [], []
    for size in _chunks(num_samples, 1000):
        noise = guide.get_base_dist().sample((size,))
        x, ladj = guide.get_transform().forward_and_ladj(noise)
        log_w.append(log_density(x) - guide.get_base_dist().log_prob(noise) + ladj)
        latents.append(x)
    return torch.cat(log_w), torch.cat(latents)


def _elsewhere(
    model: Callable,
    guide: AutoFlow,
    args: tuple,
    kwargs: dict[str, Any],
    latents: Tensor,
    log_evidence: float,
    num_paths: int,
) -> str:
    """A mode of at least one per cent of the mass that no draw reached, in words, ``nothing``, or ``not looked``."""
    flow, base = guide.get_transform(), guide.get_base_dist()
    if not flow.has_inverse or guide.latent_dim > MAX_DIM:
        return "not looked"

    def log_q(x: Tensor) -> Tensor:
        z, ladj = flow.inverse_and_ladj(x)
        # Some flows reach only a part of the space, and have no inverse beyond.
        reached = z.isfinite().all(-1) & ladj.isfinite()
        density = base.log_prob(torch.where(reached[:, None], z, 0.0)) + ladj
        return torch.where(reached, density, -torch.inf)

    log_density = guide.log_density_of(model, *args, **kwargs)
    missed = missed_mass(log_density, log_q, latents, log_evidence, num_paths)
    return "nothing" if missed is None or missed.share < MISSED_SHARE else _in_words(missed, guide)


def _chains(model: Callable, guide: AutoFlow, args: tuple, kwargs: dict[str, Any], latents: Tensor) -> Moved | None:
    log_joint = LogJoint(model, args, kwargs)
    log_joint(guide.constrain(latents[:2])[0])
    if guide.latent_dim > MAX_DIM or not log_joint.vectorized:
        return None
    density = guide.log_density_of(model, *args, **kwargs)
    return moved_by_chains(density, latents, lambda x: guide.constrain(x)[0])


def _in_words(missed: Missed, guide: AutoFlow) -> str:
    values = guide.constrain(missed.latent.to(guide.location_scale.loc))[0]
    place = ", ".join(f"{name} = {_short(value)}" for name, value in list(values.items())[:3])
    return (
        f"a path from elsewhere found a mode that no draw of the guide reached, {missed.distance:.0f} sd away and with "
        f"about {missed.share:.0%} of the mass ({place})"
    )


def _short(value: Tensor) -> str:
    numbers = [f"{number:.3g}" for number in value.flatten()[:3].tolist()]
    text = ", ".join(numbers) + (", …" if value.numel() > 3 else "")
    return f"[{text}]" if value.dim() else text


def _traced_weights(model: Callable, guide: Callable, args: tuple, kwargs: dict, num_samples: int) -> Tensor:
    parts = []
    for size in _chunks(num_samples, 250):
        weights = ELBO(size, vectorize_particles=size > 1).log_weights(model, guide, *args, **kwargs)
        if weights.common_scale != 1 or weights.coupled:
            raise ValueError("the model subsamples its data: diagnose it on the whole data (no subsample_size)")
        parts.append(weights.log_weights())
    return torch.cat(parts)


def _row_means(
    guide: Callable, args: tuple, kwargs: dict, num_rows: int, num_draws: int = 100
) -> dict[str, tuple[int, int]] | None:
    """Active units of the vector-valued or scalar sites that have one value a row."""
    sums: dict[str, Tensor] = {}
    for _ in range(num_draws):
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
        for name, site in nodes(trace).items():
            if site["type"] == "sample" and not site["is_observed"] and not site["infer"].get("is_auxiliary"):
                value = site["value"].detach()
                if value.is_floating_point() and value.dim() >= 1 and value.shape[0] == num_rows:
                    sums[name] = sums.get(name, 0) + value.reshape(num_rows, -1) / num_draws
    if num_rows < 2 or not sums:
        return None
    return {name: (int(active_units(mean).sum()), mean.shape[1]) for name, mean in sums.items()}


def _moments(draws: dict[str, Tensor], weights: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What weighting does to the mean (in sd of the draws) and to the standard deviation (draws' / weighted)."""
    shifts, ratios = {}, {}
    for name, value in draws.items():
        if value.numel() == 0:  # an empty site has no mean that could move
            continue
        flat = value.double().cpu().flatten(1) if value.dim() > 1 else value.double().cpu()[:, None]
        mean = (weights[:, None] * flat).sum(0)
        sd = flat.std(0).clamp(min=1e-300)
        weighted_sd = (weights[:, None] * (flat - mean).square()).sum(0).sqrt().clamp(min=1e-300)
        shifts[name] = ((mean - flat.mean(0)) / sd).reshape(value.shape[1:])
        # Coordinates that can't move (a simplex of one, a Cholesky factor's zeros) have a ratio of one.
        ratios[name] = (sd / weighted_sd).reshape(value.shape[1:])
    return shifts, ratios


def _share(values: Tensor, level: float) -> float:
    return float((values > level).double().mean())


def _chunks(total: int, size: int) -> list[int]:
    return [size] * (total // size) + ([total % size] if total % size else [])
