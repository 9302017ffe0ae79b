"""One call that fits a guide: schedule, convergence check, averaging, reproducible draws."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from vi_flows.guides.auto_flow import AutoFlow
from vi_flows.guides.given import check_model, parameters_of, preserved_generators
from vi_flows.guides.log_joint import LogJoint
from vi_flows.objectives.path_gradient import inverse_with_detached_parameters, supports_path_gradient
from vi_flows.objectives.step import OptimizerStep

__all__ = ["FitResult", "fit"]


@dataclass
class FitResult:
    """What a fit did.

    Attributes:
        elbo: Monte Carlo ELBO of the returned parameters, in nats (higher is better).
        elbo_se: its standard error over draws; NaN for guides that don't give single draws.
        num_steps: optimiser steps taken.
        converged: whether the ELBO had stopped rising before the learning rate came down.
        skipped_steps: steps left out because the loss or its gradient was not finite.
        seconds: wall time.
        losses: negative ELBO estimate of each step.
    """

    elbo: float
    elbo_se: float
    num_steps: int
    converged: bool
    skipped_steps: int
    seconds: float
    losses: list[float] = field(repr=False)


def fit(
    model: Callable,
    guide: Callable,
    *args: Any,
    num_steps: int = 4000,
    num_particles: int | None = None,
    learning_rate: float = 0.01,
    objective: str = "stl",
    seed: int | None = 0,
    **kwargs: Any,
) -> FitResult:
    """Fit a guide to a model by maximising the ELBO.

    Adam at a constant rate until the ELBO has stopped rising (a trend test over windows of steps) or 70 % of
    ``num_steps`` are used, then a linear descent of the rate to zero over another 40 % of the steps taken so far,
    at most to ``num_steps``. Steps with non-finite gradients are skipped; gradients are clipped at ten times their
    running norm.

    For an :class:`~vi_flows.guides.AutoFlow`, every step evaluates the model once for all particles, whatever its
    plates and batch dimensions are; other guides go through Pyro's ``Trace_ELBO``.

    Args:
        model: a Pyro program.
        guide: a guide of it; a module, or a function with ``pyro.param`` statements.
        args: arguments of both.
        num_steps: the most optimiser steps.
        num_particles: draws a step; default 64, which cost little more than one where they are evaluated at once, or
            16 where the model runs once per draw.
        learning_rate: of Adam, before the descent, in terms of what a parameter stands for (a layer's ``gains``).
        objective: ``stl`` (the path gradient: the score term, of mean zero, is left out; Roeder, Wu and Duvenaud 2017)
            or ``elbo`` (the whole derivative). Flows without an inverse, with leaky ReLUs (see
            :func:`~vi_flows.objectives.path_gradient.supports_path_gradient`), and guides other than AutoFlow, use
            ``elbo``.
        seed: of the draws; the global generators are left as they were. ``None`` draws from them.
        kwargs: keyword arguments of both.

    Raises:
        ValueError: an option is out of range, or the model is none that the guide can answer for
            (:func:`~vi_flows.guides.given.check_model`).
        RuntimeError: a hundred steps in a row had no finite gradient.
    """
    if num_steps < 1 or (num_particles is not None and num_particles < 1) or not learning_rate > 0:
        raise ValueError("num_steps, num_particles and learning_rate must be positive")
    if objective not in ("stl", "elbo"):
        raise ValueError(f"objective must be 'stl' or 'elbo', got {objective!r}")
    began = time.perf_counter()
    with preserved_generators(seed):
        own = check_model(model, guide, args, kwargs) if isinstance(guide, AutoFlow) else []
        if num_particles is None:
            num_particles = 64 if _at_once(model, guide, args, kwargs) else 16
        loss_terms = _loss_terms(model, guide, args, kwargs, num_particles, objective)
        params = _parameters(guide, loss_terms, own)
        trainer = _Trainer(params, loss_terms, num_steps, learning_rate, _gains(guide))
        trainer.run()
        if isinstance(guide, AutoFlow):
            check_model(model, guide, args, kwargs)
        with torch.no_grad():
            final = torch.cat([loss_terms().reshape(-1) for _ in range(max(1, math.ceil(1000 / num_particles)))])
    final = final[torch.isfinite(final)]
    se = float(final.std() / final.numel() ** 0.5) if final.numel() > 1 else math.nan
    return FitResult(
        elbo=-float(final.mean()),
        elbo_se=se,
        num_steps=len(trainer.losses),
        converged=trainer.converged,
        skipped_steps=trainer.skipped,
        seconds=time.perf_counter() - began,
        losses=trainer.losses,
    )


def _parameters(guide: Callable, loss_terms: Callable[[], Tensor], own: list[Tensor]) -> list[Tensor]:
    """Those of the guide, and the model's ``own``."""
    with pyro.poutine.trace(param_only=True) as tape, torch.no_grad():
        loss_terms()
    return list({id(p): p for p in [*parameters_of(guide, tape.trace), *own]}.values())


def _at_once(model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether the model can be evaluated for many draws in one pass."""
    if not isinstance(guide, AutoFlow):
        return True
    log_joint = LogJoint(model, args, kwargs)
    with torch.no_grad():
        log_joint(guide.sample_posterior(2))
    return log_joint.vectorized


def _gains(guide: Callable) -> dict[int, float]:
    """By ``id`` of a parameter: the factor between it and what it stands for, where a layer names one."""
    if not isinstance(guide, nn.Module):
        return {}
    return {
        id(getattr(module, name)): gain
        for module in guide.modules()
        for name, gain in getattr(module, "gains", {}).items()
    }


def _loss_terms(
    model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any], num_particles: int, objective: str
) -> Callable[[], Tensor]:
    """A function that gives ``log q − log p``, one term a particle where the guide allows."""
    if not isinstance(guide, AutoFlow):
        elbo = Trace_ELBO(num_particles=num_particles, vectorize_particles=num_particles > 1)
        return lambda: elbo.differentiable_loss(model, guide, *args, **kwargs)
    log_density = guide.log_density_of(model, *args, **kwargs)
    flow, base = guide.get_transform(), guide.get_base_dist()
    path = objective == "stl" and supports_path_gradient(flow)

    def loss_terms() -> Tensor:
        noise = guide.get_base_dist().sample((num_particles,))
        x, ladj = flow.forward_and_ladj(noise)
        if path and torch.is_grad_enabled():
            z, inverse_ladj = inverse_with_detached_parameters(flow, x)
            log_q = base.log_prob(z) + inverse_ladj
        else:
            log_q = base.log_prob(noise) - ladj
        return log_q - log_density(x)

    return loss_terms


class _Trainer:
    """Adam with a constant phase that ends by a trend test, and a linear descent."""

    window = 100

    def __init__(
        self,
        params: list[Tensor],
        loss_terms: Callable[[], Tensor],
        num_steps: int,
        learning_rate: float,
        gains: dict[int, float],
    ) -> None:
        if not params:
            raise ValueError("the guide has no parameters to fit")
        self.params, self.loss_terms = params, loss_terms
        self.num_steps, self.learning_rate = num_steps, learning_rate
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params)
        # Adam's steps do not know the scale of a parameter: this is the rate in terms of what it stands for.
        rates: dict[float, list[Tensor]] = {}
        for p in params:
            rates.setdefault(learning_rate / gains.get(id(p), 1.0), []).append(p)
        groups = [{"params": group, "lr": rate, "initial": rate} for rate, group in rates.items()]
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=fused)
        self._take = OptimizerStep(self.optimiser, self._skip)
        self.losses: list[float] = []
        self.skipped = 0
        self.converged = False
        self._norm = math.nan

    def run(self) -> None:
        constant = max(1, int(0.7 * self.num_steps))
        while len(self.losses) < constant:
            self._step()
            if len(self.losses) % self.window == 0 and self._flat():
                self.converged = True
                break
        done = len(self.losses)
        descent = min(self.num_steps - done, max(self.window, int(0.4 * done)))
        for i in range(descent):
            for group in self.optimiser.param_groups:
                group["lr"] = group["initial"] * (1 - i / descent)
            self._step()

    def _flat(self) -> bool:
        """Whether the mean loss of the last five windows is no lower than that of the five before, beyond noise."""
        w = 5 * self.window
        if len(self.losses) < 2 * w:
            return False
        new = torch.tensor(self.losses[-w:], dtype=torch.float64)
        old = torch.tensor(self.losses[-2 * w : -w], dtype=torch.float64)
        new, old = new[torch.isfinite(new)], old[torch.isfinite(old)]
        # Medians: single particles in a far tail must not decide.
        gain = float(old.median() - new.median())
        noise = float(old.quantile(0.75) - old.quantile(0.25)) / len(old) ** 0.5
        return gain < max(noise, 1e-3)

    def _step(self) -> None:
        loss = self.loss_terms().mean()
        self.losses.append(float(loss.detach()))
        limit = 10 * self._norm if math.isfinite(self._norm) else math.inf
        self._take.max_norm = limit
        figures = self._take(loss)
        if figures is None:
            return
        norm = min(figures[0][1], limit)
        self._norm = norm if not math.isfinite(self._norm) else 0.98 * self._norm + 0.02 * norm
        self._failed = 0

    _failed = 0

    def _skip(self, figures: list[list[float]]) -> None:
        self.skipped += 1
        self._failed += 1
        if self._failed == 1 and self.skipped == 1:
            warnings.warn("a step without a finite loss and gradient was skipped", stacklevel=5)
        if self._failed >= 100:
            raise RuntimeError(
                "a hundred steps in a row had no finite loss and gradient: the model's log density is not finite where "
                "the guide puts its mass. Check its supports, or pass init_loc_fn and a smaller init_scale."
            )
