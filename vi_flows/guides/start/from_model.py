"""The Gaussian that a guide starts at, from the model's log density."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from vi_flows.guides.log_joint import LogJoint, in_double
from vi_flows.guides.start.gaussians import GaussianStart
from vi_flows.guides.start.mixture import MixtureStart
from vi_flows.guides.start.modes import mixture_start
from vi_flows.guides.start.pathfinder import pathfinder

__all__ = ["ModelStart", "start_of_model"]

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ModelStart:
    """Where a guide may start.

    Attributes:
        gaussian: the best one along the paths; ``None`` where the density is nowhere finite on them.
        log_density: that the paths followed, in double precision where the model allows.
        loc: where they began, of the type of ``log_density``.
        at_once: whether the model is evaluated for many draws in one pass.
    """

    gaussian: GaussianStart | None
    log_density: LogDensity
    loc: Tensor
    at_once: bool

    def mixture(self) -> MixtureStart | None:
        """A mixture where there are several modes; see :func:`~vi_flows.guides.start.modes.mixture_start`."""
        if self.gaussian is None:
            return None
        generator = torch.Generator().manual_seed(0)
        with poutine.block():
            return mixture_start(lambda x: self.log_density(x.to(self.loc)).double().cpu(), self.gaussian, generator)


def start_of_model(
    program: Callable,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    pull_back: Callable[[LogJoint], LogDensity],
    loc: Tensor,
    loc_is_given: bool,
) -> ModelStart | None:
    """Follow quasi-Newton paths of the model's log density.

    Args:
        program: the model.
        args: its arguments.
        kwargs: its keyword arguments.
        pull_back: from the density of the sites to that of unconstrained latent vectors.
        loc: where the paths begin, shape ``(d,)``.
        loc_is_given: by the user; else some begin around the origin, too.

    Returns:
        What was found; ``None`` where the log density is no function of the latents.
    """
    probe = torch.stack([loc, loc])
    log_joint = LogJoint(program, args, kwargs)
    log_density = pull_back(log_joint)
    with torch.no_grad(), poutine.block():
        first, second = log_density(probe), log_density(probe)
        finite = torch.isfinite(first)
        if bool(finite.any()) and not torch.allclose(first[finite], second[finite], rtol=1e-5):
            return None
    exact = in_double(program, args, kwargs, pull_back, probe, log_joint)
    if exact is not log_joint:
        log_joint, loc = exact, loc.double()
    generator = torch.Generator().manual_seed(0)
    starts = loc[None]
    if not loc_is_given:
        # A diffuse prior's median is a random point far out; Stan's own start is around the origin.
        around = torch.rand(2, len(loc), generator=generator, dtype=torch.float64).to(loc) - 0.5
        origin = torch.zeros_like(starts)
        starts = torch.cat([starts, origin, around] if bool(loc.any()) else [starts, around])
    log_density = pull_back(log_joint)
    with poutine.block():
        # A model that runs once per draw gets fewer of them; where derivatives of a point cost one pass, as the value
        # does, Newton's steps are quicker than L-BFGS once that has seen all directions twice.
        effort = {"max_iterations": min(200, 30 + 2 * len(loc))}
        if not log_joint.vectorized:
            effort = {"max_refined": 0, "max_rounds": 3}
        gaussian = pathfinder(log_density, starts, generator=generator, **effort)
    return ModelStart(gaussian, log_density, loc, log_joint.vectorized)
