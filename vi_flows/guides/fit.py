"""One call that fits a guide: schedule, convergence check, averaging, reproducible draws."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vi_flows.guides.alone import preserved_generators
from vi_flows.guides.auto_flow import FULL_AFFINE_DIM
from vi_flows.guides.datatree import datatree
from vi_flows.guides.pairs import pair_of
from vi_flows.guides.progress import Progress
from vi_flows.guides.remaining import Remaining
from vi_flows.guides.trainer import NoFiniteStepError, Trainer
from vi_flows.parameters import module_of
from vi_flows.settings import check_at_least, check_counts
from vi_flows.transforms.capabilities import gains_of

if TYPE_CHECKING:
    from xarray import DataTree

__all__ = ["FitResult", "fit"]

CALM_DIM = 50
"""Beyond that many latent dimensions the learning rate falls as ``d^{−1/2}``."""


@dataclass
class FitResult:
    """What a fit did.

    Attributes:
        elbo: Monte Carlo ELBO of the returned parameters, in nats (higher is better); −∞ where a draw has no density.
        elbo_se: its standard error over draws, or over means of ``num_particles`` where the guide gives no single ones;
            NaN for one such mean alone, and where ``elbo`` is not finite.
        num_steps: optimizer steps taken.
        stopped: why the fit ended: ``nothing left to gain``, ``no further gain`` (with this guide), ``num_steps``, or
            ``interrupted``.
        remaining: how much the guide still had to gain at the steps where that was estimated
            (:class:`~vi_flows.guides.remaining.Remaining`), of the parameters' average; none where it can't be known.
        skipped_steps: steps left out because the loss or its gradient was not finite.
        seconds: wall time.
        losses: negative ELBO estimate of each step.
    """

    elbo: float
    elbo_se: float
    num_steps: int
    stopped: str
    remaining: list[tuple[int, Remaining]] = field(repr=False)
    skipped_steps: int
    seconds: float
    losses: list[float] = field(repr=False)
    _fitted: tuple[Callable, Callable, tuple[Any, ...], dict[str, Any]] = field(repr=False, compare=False)

    @property
    def converged(self) -> bool:
        """Whether the fit ended of itself, before ``num_steps`` or an interruption."""
        return self.stopped in ("nothing left to gain", "no further gain")

    def to_datatree(self, **options: Any) -> DataTree:
        """Draws of the fitted guide in ArviZ's groups: ``az.summary(result.to_datatree())``.

        See :func:`~vi_flows.guides.datatree.datatree` for the groups, the options and the errors. ArviZ before 1.0
        wants ``az.from_datatree(result.to_datatree())``.
        """
        model, guide, args, kwargs = self._fitted
        return datatree(model, guide, args, kwargs, **options)


def fit(
    model: Callable,
    guide: Callable,
    *args: Any,
    num_steps: int = 4000,
    num_particles: int | None = None,
    learning_rate: float = 0.01,
    objective: str = "stl",
    tolerance: float = 0.01,
    seed: int | None = 0,
    progress: bool = True,
    model_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> FitResult:
    """Fit a guide to a model by maximising the ELBO.

    Before the first step, and after every hundred for the average of the latest parameters, the divergence that is left
    is estimated from importance weights (:func:`~vi_flows.guides.remaining.remaining_kl`). The fit ends where less than
    ``tolerance`` is left, with means and spreads in place.

    Otherwise: Adam at a constant rate, with a descent of the rate over a hundred steps as soon as little is left, until
    the ELBO has stopped rising (on the same draws, from look to look) or 70 % of ``num_steps`` are used, then a linear
    descent of the rate to zero over another 40 % of the steps taken so far,
    at most to ``num_steps``. Steps with non-finite gradients are skipped; gradients are clipped at ten times their
    running norm. The guide is never left worse than it was; a second call goes on from where the first ended. Ctrl-C
    ends the fit and keeps the best parameters so far.

    For an :class:`~vi_flows.guides.AutoFlow`, every step evaluates the model once for all particles, whatever its
    plates and batch dimensions are; other guides go through Pyro's ``Trace_ELBO``.

    Args:
        model: a Pyro program.
        guide: a guide of it; a module, or a function with ``pyro.param`` statements.
        args: arguments of both.
        num_steps: the most optimizer steps.
        num_particles: draws a step; default 64 (32 beyond 200 dimensions), which cost little more than one where they
            are evaluated at once, or 16 where the model runs once per draw.
        learning_rate: of Adam, before the descent, in terms of what a parameter stands for (a layer's ``gains``); with
            an AutoFlow of more than 50 dimensions, ``√(50/d)`` of it.
        objective: ``stl`` (the path gradient: the score term, of mean zero, is left out; Roeder, Wu and Duvenaud 2017)
            or ``elbo`` (the whole derivative). Flows without an inverse, with leaky ReLUs (see
            :func:`~vi_flows.objectives.path_gradient.supports_path_gradient`), and guides other than AutoFlow, use
            ``elbo``.
        tolerance: nats; what may be left to gain where the fit ends. A Gaussian that is off by 0.14 sd in one direction
            has 0.01. With 0 it ends only where the ELBO stops rising.
        seed: of the draws; the global generators are left as they were. ``None`` draws from them.
        progress: whether to show a bar where the standard error is a terminal.
        model_kwargs: keyword arguments of both whose names this function has, too (``{"num_steps": 10}``).
        kwargs: other keyword arguments of both.

    Raises:
        ValueError: an option is out of range, or the model is none that the guide can answer for
            (:func:`~vi_flows.guides.given.check_model`).
        RuntimeError: a hundred steps in a row had no finite gradient.
    """
    check_counts(1, num_steps=num_steps, num_particles=1 if num_particles is None else num_particles)
    check_at_least(0, tolerance=tolerance, learning_rate=learning_rate)
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}; 0.01 is usual")
    if objective not in ("stl", "elbo"):
        raise ValueError(f"objective must be 'stl' or 'elbo', got {objective!r}")
    kwargs = {**kwargs, **(model_kwargs or {})}
    began = time.perf_counter()
    with preserved_generators(seed):
        pair = pair_of(model, guide, args, kwargs)
        own, at_once, dim = pair.check(), pair.at_once(), pair.num_latents
        if num_particles is None:
            num_particles = (64 if dim <= FULL_AFFINE_DIM else 32) if at_once else 16
        # The noise of the steps, as a divergence, adds up over the dimensions.
        learning_rate *= min(1.0, (CALM_DIM / dim) ** 0.5)
        num_draws = max(1024, min(4096, 400_000 // dim)) if at_once else 256
        loss_terms = pair.loss_terms(num_particles, objective)
        params = pair.parameters(loss_terms, own)
        gains = gains_of(module_of(guide))
        probe = pair.probe(num_draws)
        with Progress(num_steps, progress) as bar:
            trainer = Trainer(params, loss_terms, num_steps, learning_rate, gains, probe, bool(own), tolerance, bar)
            try:
                trainer.run()
            except NoFiniteStepError as error:
                raise NoFiniteStepError(f"{error}{pair.without_density()}") from error
        pair.check()
        with torch.no_grad():
            bound_terms = pair.bound_terms(num_particles)
            final = torch.cat([bound_terms().reshape(-1) for _ in range(max(1, math.ceil(1000 / num_particles)))])
    # With a draw without density the bound is −∞, and no average of the others bounds anything.
    known = final.numel() > 1 and bool(final.isfinite().all())
    se = float(final.std() / final.numel() ** 0.5) if known else math.nan
    return FitResult(
        elbo=-float(final.mean()),
        elbo_se=se,
        num_steps=len(trainer.losses),
        stopped=trainer.stopped,
        remaining=trainer.remaining,
        skipped_steps=trainer.skipped,
        seconds=time.perf_counter() - began,
        losses=trainer.losses,
        _fitted=(model, guide, args, kwargs),
    )
