"""Quasi-Newton paths up a density, side by side: one pass evaluates what all of them ask for."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from vi_flows.guides.start.gaussian_vi import value_and_grad

__all__ = ["NEAR", "Path", "climb", "climb_all"]

LogDensity = Callable[[Tensor], Tensor]

Path = list[tuple[np.ndarray, np.ndarray]]
"""Visited points, with the gradients of the negative log density there."""

Answer = tuple[float, np.ndarray]
"""The negative log density of a point, and its gradient."""

NEAR = 0.1
"""First step of a climb from where :func:`~vi_flows.guides.start.ascent.ascend` ends, close to a mode: a longer one may
lead across a valley to another."""

WALL = 1e100
"""What the search is told where the density is not finite: it backs off."""


def climb(log_density: LogDensity, start: Tensor, max_iterations: int, first_step: float = 1.0) -> Path:
    """The points of an L-BFGS path up the log density, with the gradients of its negative; none from a bad start.

    Args:
        log_density: of points ``(S, d)``.
        start: shape ``(d,)``.
        max_iterations: at most, with half as many evaluations more.
        first_step: the length that the search tries first, whatever the gradient is.
    """
    return _path(lambda x: _answers(log_density, [x])[0], start.numpy(), max_iterations, first_step)


def climb_all(log_density: LogDensity, starts: Tensor, max_iterations: int, first_step: float = 1.0) -> list[Path]:
    """The paths of :func:`climb` from several starts, in as many passes as the longest of them takes.

    SciPy's search calls the density and waits for the answer. So each search has a thread of its own, which runs
    nothing but that search; the caller's thread waits until every one has asked or is done, and evaluates the density
    for all of them at once.

    Args:
        log_density: of points ``(S, d)``; only ever called by the caller's thread.
        starts: shape ``(num_paths, d)``.
        max_iterations: of each.
        first_step: of each.
    """
    if len(starts) == 1:
        return [climb(log_density, starts[0], max_iterations, first_step)]
    asked: SimpleQueue[tuple[int, np.ndarray | Path | BaseException]] = SimpleQueue()
    searches = [_Search(i, start.numpy(), max_iterations, first_step, asked) for i, start in enumerate(starts)]
    paths: dict[int, Path] = {}
    for search in searches:
        search.start()
    try:
        while len(paths) < len(searches):
            waiting: dict[int, np.ndarray] = {}
            while len(waiting) + len(paths) < len(searches):
                index, said = asked.get()
                if isinstance(said, BaseException):
                    raise said
                if isinstance(said, list):
                    paths[index] = said
                else:
                    waiting[index] = said
            if waiting:
                order = sorted(waiting)  # the same sums whoever was first
                answers = _answers(log_density, [waiting[index] for index in order])
                for index, answer in zip(order, answers, strict=True):
                    searches[index].answer.put(answer)
    finally:
        for search in searches:
            search.answer.put(None)
        for search in searches:
            search.join()
    return [paths[index] for index in range(len(searches))]


class _Stopped(Exception):
    """The caller waits no longer."""


class _Search(Thread):
    """One search; says what it asks for, and at the end its path."""

    def __init__(
        self,
        index: int,
        start: np.ndarray,
        max_iterations: int,
        first_step: float,
        asked: SimpleQueue[tuple[int, np.ndarray | Path | BaseException]],
    ) -> None:
        super().__init__(name=f"climb {index}", daemon=True)
        self.index, self.asked = index, asked
        self.begin, self.max_iterations, self.first_step = start, max_iterations, first_step
        self.answer: SimpleQueue[Answer | None] = SimpleQueue()

    def run(self) -> None:
        try:
            self.asked.put((self.index, _path(self._ask, self.begin, self.max_iterations, self.first_step)))
        except _Stopped:
            pass
        except BaseException as error:  # the caller's thread raises it
            self.asked.put((self.index, error))

    def _ask(self, x: np.ndarray) -> Answer:
        self.asked.put((self.index, x.copy()))
        answer = self.answer.get()
        if answer is None:
            raise _Stopped
        return answer


def _answers(log_density: LogDensity, points: list[np.ndarray]) -> list[Answer]:
    values, grads = value_and_grad(log_density, torch.as_tensor(np.stack(points)))
    finite = torch.isfinite(values) & torch.isfinite(grads).all(-1)
    return [
        (-float(value), -grad) if good else (WALL, np.zeros_like(grad))
        for value, grad, good in zip(values.tolist(), grads.numpy(), finite.tolist(), strict=True)
    ]


def _path(evaluate: Callable[[np.ndarray], Answer], start: np.ndarray, max_iterations: int, first_step: float) -> Path:
    path: Path = []
    seen: dict[bytes, np.ndarray] = {}

    # The search's first step has length one in its coordinates ``y``, with ``x = start + first_step y``.
    def place(y: np.ndarray) -> np.ndarray:
        return start + first_step * y

    def negative(y: np.ndarray) -> Answer:
        value, grad = evaluate(place(y))
        if value < WALL:
            seen[y.tobytes()] = grad
        return value, first_step * grad

    def record(y: np.ndarray) -> None:
        grad = seen.get(y.tobytes())
        if grad is not None:
            path.append((place(y), grad))

    here = np.zeros_like(start)
    if negative(here)[0] >= WALL:
        return []
    record(here)
    options = {
        "maxiter": max_iterations, "maxfun": 3 * max_iterations // 2, "maxcor": 20, "ftol": 1e-10,
        "gtol": 1e-6 * first_step,
    }  # fmt: skip
    minimize(negative, here, jac=True, method="L-BFGS-B", callback=record, options=options)
    return path
