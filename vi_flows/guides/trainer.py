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

__all__ = ["NoFiniteStepError", "Trainer"]

WINDOW = 100
"""Steps between two looks at what remains, and the horizon of the average of the parameters."""

NEAR = 4.0
"""Times the tolerance: from so little on, a short descent of the rate may be all that is missing."""

ELBO_NOISE = 0.05
"""Nats: between ELBOs closer than that, a thousand draws don't decide."""


class NoFiniteStepError(RuntimeError):
    """A hundred steps in a row had no finite loss and gradient."""


class Trainer:
    """Adam with a constant phase, and a linear descent unless nothing is left to gain.

    Args:
        params: what is trained.
        loss_terms: gives ``log q − log p``, one term a particle or a scalar; called once a step.
        num_steps: the most steps.
        learning_rate: of the constant phase.
        gains: by ``id`` of a parameter, the factor between it and what it stands for: Adam's steps do not know it.
        probe: estimates what remains to be gained by the parameters in place: on the same noise at every call, or,
            asked for it, on fresh noise. ``None`` where that can't be known.
        own: whether parameters of the model are among them: then a guide that matches its posterior is not the end.
        tolerance: nats; with less to gain, training ends.
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
        self._next_attempt = 0
        self._averages: list[Remaining] = []

    def run(self) -> None:
        """Train until nothing is left to gain, the descent is over, or Ctrl-C; the best parameters met stay."""
        before = self._copy()
        try:
            if self._nothing_left(self.average, self.tolerance):
                return
            # Not before it is needed: PyTorch's optimizers take seconds to import.
            self.take = OptimizerStep(self._adam(), self._skip)
            if self._constant_phase() or self._last_descent():
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
                if self._nothing_left(self.average, self.tolerance):
                    return True
                if self._near() and self._attempt(constant):
                    return True
                if self._flat():
                    self.stopped = "no further gain"
                    return False
        return False

    def _last_descent(self) -> bool:
        """Likewise."""
        done = len(self.losses)
        length = min(self.num_steps - done, max(WINDOW, int(0.4 * done)))
        self.progress.expect(done + length)
        return self._descent(length)

    def _near(self) -> bool:
        """Whether what remains is so little that a good part of it is the noise of the steps themselves."""
        near = bool(self.remaining) and self.remaining[-1][1].kl < NEAR * self.tolerance
        return near and not self.own and len(self.losses) >= self._next_attempt

    def _attempt(self, constant: int) -> bool:
        """A short descent; whether nothing was left to gain at its end. Else the rate is what it was."""
        if self._descent(min(WINDOW, constant - len(self.losses))):
            return True
        self._next_attempt = 2 * len(self.losses)
        for group in self.take.optimizer.param_groups:
            group["lr"] = group["initial"]
        return False

    def _descent(self, length: int) -> bool:
        """The rate falls to zero in ``length`` steps; whether nothing was left to gain on the way or at the end."""
        for i in range(length):
            for group in self.take.optimizer.param_groups:
                group["lr"] = group["initial"] * (1 - i / length)
            self._step()
            if len(self.losses) % WINDOW == 0 and self._nothing_left(self.average, self.tolerance):
                return True
        return False

    # What remains.

    def _nothing_left(self, values: list[Tensor], kl: float) -> bool:
        """Whether less than ``kl`` nats remain with these values, and also in the eyes of fresh draws.

        Never with parameters of the model's own: a guide that matches the posterior does not say that they are fitted.
        The look is taken all the same, for :meth:`_flat`.
        """
        if self.probe is None or not self._look(values).below(kl) or self.own or not self._look(values, True).below(kl):
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
        if values is self.average and not fresh:
            self._averages.append(found)
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
        """Whether the ELBO has stopped rising.

        On the same draws at every look, the average's mean over three looks is less than a tenth of the tolerance above
        that of the three before. Where there are no looks: the median loss of five windows of steps is no lower than
        that of the five before, beyond noise.
        """
        looks = self._averages
        if self.tolerance > 0 and len(looks) >= 6 and all(math.isfinite(look.elbo) for look in looks[-6:]):
            new, old = (sum(look.elbo for look in part) / 3 for part in (looks[-3:], looks[-6:-3]))
            return new - old < 0.1 * self.tolerance
        w = 5 * WINDOW
        if len(self.losses) < 2 * w:
            return False
        late = torch.tensor(self.losses[-w:], dtype=torch.float64)
        early = torch.tensor(self.losses[-2 * w : -w], dtype=torch.float64)
        late, early = late[torch.isfinite(late)], early[torch.isfinite(early)]
        # Medians: single particles in a far tail must not decide.
        gain = float(early.median() - late.median())
        noise = float(early.quantile(0.75) - early.quantile(0.25)) / len(early) ** 0.5
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
            raise NoFiniteStepError(
                "a hundred steps in a row had no finite loss and gradient: the model's log density is not finite where "
                "the guide puts its mass. Check its supports, or pass init_loc_fn and a smaller init_scale."
            )
