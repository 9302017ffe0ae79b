"""The loop of :func:`vi_flows.guides.fit`: Adam, an average of the parameters, and when it ends."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from vi_flows.guides.progress import Progress
from vi_flows.guides.remaining import Remaining
from vi_flows.objectives.step import OptimizerStep

__all__ = ["Trainer"]

WINDOW = 100
"""Steps between two looks at what remains, and the horizon of the average of the parameters."""

ELBO_NOISE = 0.05
"""Nats: between ELBOs closer than that, a thousand draws don't decide."""


class Trainer:
    """Adam with a constant phase, and a linear descent unless nothing is left to gain.

    Args:
        params: what is trained.
        loss_terms: gives ``log q − log p``, one term a particle or a scalar; called once a step.
        num_steps: the most steps.
        learning_rate: of the constant phase.
        gains: by ``id`` of a parameter, the factor between it and what it stands for: Adam's steps do not know it.
        probe: estimates what remains to be gained by the parameters in place: on the same noise at every call, or,
            asked for it, on more and fresh noise. ``None`` where that can't be known.
        own: whether parameters of the model are among them: then a guide that matches its posterior is not the end.
        tolerance: nats; a start with less to gain is not trained, and training ends at half as much: a look among many
            may be a lucky one.
        progress: is told of every step.
    """

    def __init__(
        self,
        params: list[Tensor],
        loss_terms: Callable[[], Tensor],
        num_steps: int,
        learning_rate: float,
        gains: dict[int, float],
        probe: Callable[[bool], Remaining] | None,
        own: bool,
        tolerance: float,
        progress: Progress,
    ) -> None:
        if not params:
            raise ValueError("the guide has no parameters to fit")
        self.params, self.loss_terms = params, loss_terms
        self.num_steps, self.probe, self.own, self.progress = num_steps, probe, own, progress
        self.learning_rate, self.gains, self.tolerance = learning_rate, gains, tolerance
        self.average = self._copy()
        self.losses: list[float] = []
        self.remaining: list[tuple[int, Remaining]] = []
        self.skipped = 0
        self.stopped = "num_steps"
        self._norm = math.nan
        self._failed = 0

    def run(self) -> None:
        """Train until nothing is left to gain, the descent is over, or Ctrl-C; the best parameters met stay."""
        before = self._copy()
        try:
            if self._nothing_left(before, self.tolerance):
                return
            # Not before it is needed: PyTorch's optimizers take seconds to import.
            self.take = OptimizerStep(self._adam(), self._skip)
            if self._constant_phase() or self._descent():
                self._put(self.average)
                return
        except KeyboardInterrupt:
            self.stopped = "interrupted"
            warnings.warn(
                f"interrupted after {len(self.losses)} steps: the guide keeps the best parameters so far; fit it again "
                "to go on",
                stacklevel=3,
            )
        self._keep_best(before)

    def _constant_phase(self) -> bool:
        """Whether nothing was left to gain at its end."""
        constant = max(1, int(0.7 * self.num_steps))
        while len(self.losses) < constant:
            self._step()
            if len(self.losses) % WINDOW == 0:
                if self._nothing_left(self.average, 0.5 * self.tolerance):
                    return True
                if self._flat():
                    self.stopped = "no further gain"
                    return False
        return False

    def _descent(self) -> bool:
        """Likewise."""
        done = len(self.losses)
        descent = min(self.num_steps - done, max(WINDOW, int(0.4 * done)))
        self.progress.expect(done + descent)
        for i in range(descent):
            for group in self.take.optimizer.param_groups:
                group["lr"] = group["initial"] * (1 - i / descent)
            self._step()
            if len(self.losses) % WINDOW == 0 and self._nothing_left(self.average, 0.5 * self.tolerance):
                return True
        return False

    # What remains.

    def _nothing_left(self, values: list[Tensor], kl: float) -> bool:
        """Whether less than ``kl`` nats remain with these values, and also in the eyes of fresh draws."""
        if self.own or self.probe is None or not self._look(values).below(kl) or not self._look(values, True).below(kl):
            return False
        self.stopped = "nothing left to gain"
        return True

    def _look(self, values: list[Tensor], fresh: bool = False) -> Remaining:
        """What remains with these values of the parameters."""
        there = self._copy()
        self._put(values)
        try:
            assert self.probe is not None  # who asks has looked
            found = self.probe(fresh)
        finally:
            self._put(there)
        self.remaining.append((len(self.losses), found))
        self.progress.look(found)
        return found

    def _keep_best(self, before: list[Tensor]) -> None:
        """Of the parameters at the end, their average and those at the start: the best on the same noise."""
        if self.probe is None:
            return
        looks = [(self._look(values), values) for values in (before, self._copy(), self.average)]
        highest = max(look.elbo for look, _ in looks)
        if math.isfinite(highest):
            # The ELBO sees a mode that is lost, the divergence does not; but its noise is of first order.
            close = [pair for pair in looks if pair[0].elbo > highest - ELBO_NOISE]
            self._put(min(close, key=lambda pair: pair[0].kl)[1])

    def _copy(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for p, value in zip(self.params, values, strict=True):
            p.copy_(value)

    # Steps.

    def _adam(self) -> torch.optim.Optimizer:
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in self.params)
        rates: dict[float, list[Tensor]] = {}
        for p in self.params:
            rates.setdefault(self.learning_rate / self.gains.get(id(p), 1.0), []).append(p)
        groups = [{"params": group, "lr": rate, "initial": rate} for rate, group in rates.items()]
        return torch.optim.Adam(groups, betas=(0.9, 0.99), fused=fused)

    def _flat(self) -> bool:
        """Whether the mean loss of the last five windows is no lower than that of the five before, beyond noise."""
        w = 5 * WINDOW
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
        self.progress.step(-self.losses[-1])
        limit = 10 * self._norm if math.isfinite(self._norm) else math.inf
        self.take.max_norm = limit
        figures = self.take(loss)
        if figures is None:
            return
        norm = min(figures[0][1], limit)
        self._norm = norm if not math.isfinite(self._norm) else 0.98 * self._norm + 0.02 * norm
        self._failed = 0
        if self.probe is not None:
            weight = max(2 / (len(self.losses) + 1), 2 / (WINDOW + 1))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.params], weight)

    def _skip(self, figures: list[list[float]]) -> None:
        self.skipped += 1
        self._failed += 1
        if self._failed == 1 and self.skipped == 1:
            warnings.warn("a step without a finite loss and gradient was skipped", stacklevel=7)
        if self._failed >= 100:
            raise RuntimeError(
                "a hundred steps in a row had no finite loss and gradient: the model's log density is not finite where "
                "the guide puts its mass. Check its supports, or pass init_loc_fn and a smaller init_scale."
            )
