"""What the numbers of a floating-point type can't tell apart: values near a bound or far from zero, densities there."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vi_flows.guides.over_draws import CANNOT
from vi_flows.guides.pairs import Draws

__all__ = ["density_step", "rounded_density", "steps_per_sd", "too_coarse"]

UNRESOLVED_SHARE = 0.01
"""Draws that a site's values can't tell apart are reported from this share on."""

COARSE_STEP = 0.25
"""Values are too far apart from so many of their standard deviations on: quantiles are off by half of it then."""

ROUGH_DENSITY = 1.0
"""Neighbouring points whose log densities differ by so many nats are named as what spoils the weights."""

ROUNDING = 1e-14
"""What double precision makes of a number that is constant, as a share of it: 4e-15 in the diagonal of a correlation
matrix of a hundred rows."""

FAR = 30.0
"""How far from zero, on the unconstrained scale, a number has to stay the same to be a constant."""

NUM_NEIGHBOURS = 200
"""Draws whose neighbours are looked at."""


def steps_per_sd(draws: Tensor) -> Tensor:
    """How far each coordinate's numbers lie apart, in standard deviations of its draws.

    Far from zero numbers are few: at 10⁸ ``float32`` knows multiples of 8 only, next to 1 multiples of 6e-8. Draws
    are then rounded, by half of this at most, and so is what a density finds there.

    Args:
        draws: ``(S, …)``, floating point.

    Returns:
        The median distance from a draw to the next larger number over the draws' standard deviation, of the shape of
        one draw; ∞ for a coordinate without a spread, 0 where draws are infinite.
    """
    size = draws.detach().abs()
    step = torch.nextafter(size, torch.full_like(size, math.inf)) - size
    return (step.nanmedian(0).values.double() / draws.detach().double().std(0)).nan_to_num(nan=0.0, posinf=math.inf)


@torch.no_grad()
def density_step(draws: Draws) -> float:
    """Root mean square of the change of the log density from a draw to a neighbouring point, in nats.

    The neighbour's coordinates are the next numbers above or below, by the toss of a coin each. Where many
    observations fix a direction among numbers far from zero (powers of a year), that is a long way.
    """
    latents = draws.latents[:NUM_NEIGHBOURS]
    ends = torch.where(torch.rand_like(latents) < 0.5, -math.inf, math.inf)
    changes = (draws.log_density(torch.nextafter(latents, ends)) - draws.log_density(latents)).double()
    changes = changes[changes.isfinite()]
    return float(changes.square().mean().sqrt()) if len(changes) else 0.0


def rounded_density(draws: Draws) -> str:
    """That rounding alone moves the log density, and so the weights, in words; nothing where it hardly does."""
    step = density_step(draws)
    if step < ROUGH_DENSITY:
        return ""
    return (
        f"; neighbouring numbers of {_dtype(draws)} differ by {step:.2g} nats of the log density, so that rounding "
        "spoils the weights: run the model in float64, or centre its predictors"
    )


def too_coarse(draws: Draws, values: Mapping[str, Tensor]) -> str:
    """A site whose values leave out a part of the posterior, or are rounded to more than it allows, in words."""
    shares = draws.unresolved(draws.latents)
    name = max(shares, key=lambda site: shares[site], default="")
    if shares and shares[name] >= UNRESOLVED_SHARE:
        return (
            f"{shares[name]:.0%} of the draws of {name!r} are so near a bound that {_dtype(draws)} has no numbers to "
            "tell them apart, and what lies beyond is cut off: run the model in float64, or give the site a scale "
            "without that bound (log-odds, a logarithm)"
        )
    meant = _constant(draws)
    steps = {
        name: float(steps_per_sd(value).masked_fill(meant[name], 0.0).max())
        for name, value in values.items()
        if meant[name].numel() > 0
    }
    name = max(steps, key=lambda site: steps[site], default="")
    if not steps or steps[name] <= COARSE_STEP:
        return ""
    return (
        f"the numbers that {_dtype(draws)} has for {name!r} lie {steps[name]:.2g} of its standard deviations apart, "
        "and draws and densities are rounded to them: run the model in float64, or shift and scale the site"
    )


def _constant(draws: Draws) -> dict[str, Tensor]:
    """By site, the coordinates that are the same wherever the latent vector lies, as a Cholesky factor's first row.

    The diagonal of a correlation matrix is, too, but for rounding; double precision tells it from a site that has a
    spread of its own which the numbers of its type are too coarse for.
    """
    line = torch.linspace(-1.0, 1.0, 8).to(draws.latents)[:, None].expand(-1, draws.latents.shape[-1])
    try:
        values, share = draws.constrain(FAR * line.double()), ROUNDING
    except CANNOT:  # no double precision on the device, or a support that a program computes in its own
        values, share = draws.constrain(line), 0.0
    ends = {name: (value.amin(0), value.amax(0)) for name, value in values.items()}
    return {
        name: high.isfinite() & (high - low <= share * torch.maximum(low.abs(), high.abs()))
        for name, (low, high) in ends.items()
    }


def _dtype(draws: Draws) -> str:
    return str(draws.latents.dtype).removeprefix("torch.")
