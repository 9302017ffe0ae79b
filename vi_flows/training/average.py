"""The exponential average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    r"""``average ← d_t average + (1 − d_t) weights`` with ``d_t = min(decay, (1 + t)/(10 + t))``.

    The ramp makes it cover at first only as many steps as there were, so that it forgets the initial weights.

    Of ``K`` networks that take turns, each stands still for ``K − 1`` of ``K`` steps. ``d`` to the power ``1/K`` a step
    is ``d`` for each of its own, so that every network has the average that it would have alone.

    Args:
        module: whose weights; now their average, too.
        decay: its limit, between 0 and 1, for a network's own step.
        num_in_turn: ``K``.

    Attributes:
        tensors: the average, by the names of the module's state; counters are those of the module.
    """

    def __init__(self, module: nn.Module, decay: float, num_in_turn: int = 1) -> None:
        self.module, self.decay, self.num_in_turn = module, decay, num_in_turn
        self.tensors = self._state()

    def _state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    def decay_at(self, step: int) -> float:
        """``d_t`` of the update after so many steps, with ``t`` the number of rounds."""
        rounds = step // self.num_in_turn
        return min(self.decay, (1 + rounds) / (10 + rounds)) ** (1 / self.num_in_turn)

    @torch.no_grad()
    def update(self, weight: float | Tensor) -> None:
        """``average += weight (weights − average)``; counters are copied.

        Args:
            weight: ``1 − d_t``.
        """
        for name, tensor in self.module.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, weight)
            else:
                self.tensors[name].copy_(tensor)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from an average that was saved."""
        self.tensors = dict(tensors)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the module has the average for weights."""
        own = self._state()
        self.module.load_state_dict(self.tensors)
        try:
            yield
        finally:
            self.module.load_state_dict(own)
