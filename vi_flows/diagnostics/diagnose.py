"""One call that says whether a guide's answer can be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from vi_flows.diagnostics.chains import Moved, moved_by_chains
from vi_flows.diagnostics.elsewhere import MAX_DIM, Missed, missed_mass
from vi_flows.diagnostics.measures import active_units, invertibility_margin, reach, tail_shape
from vi_flows.diagnostics.report import Diagnosis, percent, share_of_zeros
from vi_flows.diagnostics.rounding import rounded_density, too_coarse
from vi_flows.diagnostics.verdict import (
    K_FINITE_VARIANCE,
    LONG,
    SMALL_SHIFT,
    SMALL_STRETCH,
    judge,
    longer_chains_decide,
    still,
)
from vi_flows.evaluation.psis import psis, usable_k_hat
from vi_flows.guides.alone import preserved_generators
from vi_flows.guides.pairs import Draws, pair_of
from vi_flows.parameters import module_of
from vi_flows.settings import check_types
from vi_flows.traces import nodes

__all__ = ["diagnose"]

MISSED_SHARE = 0.01
"""A mode that no draw reached is reported from this share of the mass on, a lighter one where it moves a moment."""

BOUNDLESS = torch.tensor(-math.inf), torch.tensor(math.inf)
"""Limits of a coordinate that has none."""

AGAIN = 4
"""Times as many chains, from other draws, are run before an alarm of chains is heard."""

NUM_HINTS = 10
"""Draws of the largest weights: paths set out from them, too."""


def diagnose(
    model: Callable,
    guide: Callable,
    *args: Any,
    num_samples: int = 4000,
    num_paths: int = 200,
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
            draws in one pass). What they move is heard if up to four times as many, from other draws, move it, too.
        seed: of the draws; the global generators are left as they were.
        model_kwargs: keyword arguments of both whose names this function has, too (``{"seed": 3}``).
        kwargs: other keyword arguments of both.

    Raises:
        ValueError: the model subsamples its data, or is none that the guide can answer for, or fewer than
            100 draws were asked for.
    """
    check_types(int, num_samples=num_samples)
    if num_samples < 100:
        raise ValueError(f"a tail can't be judged from {num_samples} draws; use at least 100")
    kwargs = {**kwargs, **(model_kwargs or {})}
    with preserved_generators(seed), torch.no_grad(), poutine.block():
        weighed = pair_of(model, guide, args, kwargs).weigh(num_samples)
        log_w, draws = weighed.log_weights, weighed.draws
        values = None if draws is None else draws.constrain(draws.latents)
        means = _row_means(guide, args, kwargs, log_w.shape[-1]) if log_w.dim() > 1 else None
    joint = log_w.reshape(num_samples, -1).sum(-1).double().cpu()
    log_w = log_w.double().cpu()
    joint_psis = psis(joint)
    row_psis = psis(log_w) if log_w.dim() > 1 else None
    weights = joint_psis.log_weights.exp()
    limits = {} if values is None else {name: reach(value) for name, value in values.items()}
    shift, sd_ratio = (None, None) if values is None else _moments(_within(limits, values), weights)
    chains = None
    if draws is not None and num_chains > 0:
        with preserved_generators(seed), poutine.block():
            chains = _chains(draws, limits, slice(num_chains), 8)
            if chains is not None and not still(chains) and len(draws.latents) >= 2 * num_chains:
                # Where squares have long tails of their own, one in fifty exact guides moves by three standard errors.
                chains = _chains(draws, limits, slice(num_chains, (1 + AGAIN) * num_chains), 8) or chains
            if longer_chains_decide(joint_psis, shift, sd_ratio, chains):
                chains = _chains(draws, limits, slice(num_chains), LONG)
    heavy_tails = {} if values is None else _heavy_tails(values)
    elbo = float(joint.mean())
    verdict, reason = judge(joint_psis, row_psis, shift, sd_ratio, chains, num_samples)
    elsewhere, by_weights = "not looked", verdict
    if draws is not None and values is not None and verdict != "don't trust" and num_paths > 0:
        with preserved_generators(seed), poutine.block():
            hints = draws.latents[joint.topk(NUM_HINTS).indices.to(draws.latents.device)]
            bounded = {name: limits[name] if name in heavy_tails else BOUNDLESS for name in values}
            elsewhere = _elsewhere(draws, values, bounded, float(joint_psis.log_mean_weight), num_paths, hints)
        if elsewhere not in ("nothing", "not looked"):
            verdict, reason = "don't trust", elsewhere
    if draws is not None and verdict != "ok":
        with preserved_generators(seed), poutine.block():
            reason += rounded_density(draws)
    if elbo == -math.inf and verdict != "ok":
        reason += (
            f"; the model gives {share_of_zeros(joint)} of the draws no density (beyond a bound that the support of "
            "its site does not declare?)"
        )
    if draws is not None and values is not None and (rounded := too_coarse(draws, values)):
        reason = f"{reason}; {rounded}" if by_weights == "don't trust" else rounded
        verdict = "don't trust"
    if heavy_tails and verdict != "don't trust":
        reason += _of_heavy_tails(heavy_tails, num_samples)
    if values is not None:  # reported as they are, however little they can say of a heavy tail
        shift, sd_ratio = _moments(values, weights)
    # Where rows factorise, their evidences add, each from its own weights.
    total = joint_psis.log_mean_weight if row_psis is None else row_psis.log_mean_weight.sum()
    return Diagnosis(
        verdict=verdict,
        reason=reason,
        num_samples=num_samples,
        elbo=elbo,
        elbo_se=float(joint.std() / num_samples**0.5),
        log_evidence=float(total),
        gap=float(total) - elbo,
        k_hat=float(joint_psis.k_hat),
        ess=float(joint_psis.ess),
        k_hat_rows=None if row_psis is None else row_psis.k_hat,
        ess_rows=None if row_psis is None else row_psis.ess,
        shift=shift,
        sd_ratio=sd_ratio,
        invertibility_margin=invertibility_margin(module_of(guide)),
        active_units=means,
        log_weights=joint,
        weights=weights,
        draws=values,
        elsewhere=elsewhere,
        chains=chains,
        heavy_tails=heavy_tails,
    )


def _elsewhere(
    draws: Draws,
    values: Mapping[str, Tensor],
    limits: Mapping[str, tuple[Tensor, Tensor]],
    log_evidence: float,
    num_paths: int,
    hints: Tensor,
) -> str:
    """Modes that no draw reached, in words, ``nothing``, or ``not looked``.

    Those of at least one per cent of the mass, and lighter ones that move a mean by more than a tenth of an sd or
    change an sd by more than a tenth: 0.2 % of the mass at 30 sd make an sd 1.7 times as large. Where draws have no
    fourth moment that is heard, too, as how much lies how far away does not rest on single draws of them; where they
    have no second one, and so no sd that could change, values are within ``limits``.
    """
    if draws.log_q is None or draws.latents.shape[-1] > MAX_DIM:
        return "not looked"
    missed = missed_mass(draws.log_density, draws.log_q, draws.latents, log_evidence, num_paths, hints=list(hints))
    if missed is None:
        return "nothing"
    if missed.together >= MISSED_SHARE:
        return _in_words(missed, draws)
    around = draws.constrain(missed.latents.to(draws.latents))
    moves = missed.moves(_within(limits, values), _within(limits, around))
    size = {name: max(shift / SMALL_SHIFT, stretch / SMALL_STRETCH) for name, (shift, stretch) in moves.items()}
    name = max(size, key=lambda site: size[site], default="")
    if not size or size[name] <= 1:
        return "nothing"
    shift, stretch = moves[name]
    moved = f"with it {name!r} moves by {shift:.2f} sd and its spread by {math.expm1(stretch):.0%}"
    return f"{_in_words(missed, draws)}; {moved}"


def _within(limits: Mapping[str, tuple[Tensor, Tensor]], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double().cpu().clamp(*limits[name]) for name, value in values.items()}


def _chains(
    draws: Draws, limits: Mapping[str, tuple[Tensor, Tensor]], starts: slice, num_transitions: int
) -> Moved | None:
    if draws.latents.shape[-1] > MAX_DIM or not draws.at_once:
        return None
    discarded = num_transitions // 2 if num_transitions >= LONG else 0
    return moved_by_chains(
        draws.log_density,
        draws.latents[starts],
        lambda latents: _within(limits, draws.constrain(latents)),
        num_transitions,
        num_discarded=discarded,
    )


def _in_words(missed: Missed, draws: Draws) -> str:
    values = draws.constrain(missed.latent.to(draws.latents))
    place = ", ".join(f"{name} = {_short(value)}" for name, value in list(values.items())[:3])
    if missed.share > 0.9 * missed.together:
        return (
            "a path from elsewhere found a mode that no draw of the guide reached, "
            f"{missed.distance:.0f} sd away and with about {percent(missed.share)} of the mass ({place})"
        )
    return (
        f"paths from elsewhere found {missed.number} places that no draw of the guide reached, with about "
        f"{percent(missed.together)} of the mass together, the heaviest {missed.distance:.0f} sd away ({place})"
    )


def _heavy_tails(draws: Mapping[str, Tensor]) -> dict[str, float]:
    shapes = {name: float(tail_shape(value).max()) for name, value in draws.items() if value.numel() > 0}
    return {name: shape for name, shape in shapes.items() if shape >= K_FINITE_VARIANCE}


def _of_heavy_tails(shapes: dict[str, float], num_samples: int) -> str:
    """What a user should know who takes means and sds of the draws, however right the draws are."""
    name = max(shapes, key=lambda site: shapes[site])
    what = "mean and no sd" if shapes[name] >= usable_k_hat(num_samples) else "sd"
    return f"; but {name!r} has a heavy tail (shape {shapes[name]:.2f}), of which draws give no {what}: take quantiles"


def _short(value: Tensor) -> str:
    numbers = [f"{number:.3g}" for number in value.flatten()[:3].tolist()]
    text = ", ".join(numbers) + (", …" if value.numel() > 3 else "")
    return f"[{text}]" if value.dim() else text


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
        # From a draw in their midst, whose distance to the others is exact: a sum of numbers near 1 is rounded by more
        # than the spread of a correlation matrix's diagonal, which is rounding too.
        flat = flat - flat.median(0).values
        mean = (weights[:, None] * flat).sum(0)
        sd = flat.std(0).clamp(min=1e-300)
        weighted_sd = (weights[:, None] * (flat - mean).square()).sum(0).sqrt().clamp(min=1e-300)
        shifts[name] = ((mean - flat.mean(0)) / sd).reshape(value.shape[1:])
        ratios[name] = (sd / weighted_sd).reshape(value.shape[1:])
    return shifts, ratios
