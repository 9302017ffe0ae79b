"""Constraints as sets: which is within which, what keeps to one but for rounding, and the image of one under a map."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint

from vi_flows.recording import recomputation

__all__ = [
    "Image", "beyond", "bounds_of", "fits", "image", "is_real", "kept_to", "reached", "reals", "same_support",
    "widened", "with_draws",
]  # fmt: skip


def _innermost(constraint: Any) -> Any:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def is_real(support: Constraint) -> bool:
    """Whether all numbers will do."""
    return _innermost(support) is constraints.real


def same_support(a: Constraint, b: Constraint) -> bool:
    """Whether two constraints are of one kind with the same numbers in them."""
    if type(a) is not type(b):
        return False
    first, second = list(bounds_of(a)), list(bounds_of(b))
    return len(first) == len(second) and all(
        x.shape == y.shape and torch.allclose(x, y) for x, y in zip(first, second, strict=True)
    )


def bounds_of(constraint: Constraint) -> Iterator[Tensor]:
    """The numbers in a constraint and in those it is made of."""
    for value in vars(constraint).values():
        if isinstance(value, Constraint):
            yield from bounds_of(value)
        elif isinstance(value, list | tuple):
            for item in value:
                if isinstance(item, Constraint):
                    yield from bounds_of(item)
        elif isinstance(value, Tensor | float | int) and not isinstance(value, bool):
            yield torch.as_tensor(value, dtype=torch.float64)


def beyond(constraint: Any, value: Tensor) -> Tensor:
    """Where a value is on the wrong side of a bound, by more than rounding."""
    bounds = vars(_innermost(constraint))
    found = torch.zeros_like(value, dtype=torch.bool)
    for bound, sign in ((bounds.get("lower_bound"), 1.0), (bounds.get("upper_bound"), -1.0)):
        if bound is not None:
            size = torch.as_tensor(bound).abs().clamp(min=1.0)
            found = found | (sign * (bound - value) > 1e-6 * size)
    return found


def kept_to(constraint: Any, value: Tensor) -> Tensor:
    """Whether a value that was computed keeps to a constraint, but for the rounding at its bounds."""
    base = _innermost(constraint)
    good: Tensor = constraint.check(value)
    if base.is_discrete or base.event_dim or not {"lower_bound", "upper_bound"} & set(vars(base)):
        return good
    near = ~beyond(base, value) & ~value.isnan()
    own = near.dim() - good.dim()
    return good | (near.flatten(-own).all(-1) if own else near)


_REALS = tuple(constraints.independent(constraints.real, event_dim) for event_dim in range(8))


def reals(event_dim: int) -> Constraint:
    """All arrays of ``event_dim`` dimensions; the same object each time, as they are asked for often."""
    return _REALS[event_dim] if event_dim < len(_REALS) else constraints.independent(constraints.real, event_dim)


def widened(constraint: Constraint, event_dim: int) -> Constraint:
    """The same constraint on each entry of events with at least ``event_dim`` dimensions."""
    missing = event_dim - constraint.event_dim
    return constraints.independent(constraint, missing) if missing > 0 else constraint


class Image(Constraint):
    r"""The image of a region under a bijection: ``{y ∈ C : f⁻¹(y) ∈ R}``, with ``C`` the codomain of ``f``.

    Args:
        region: ``R``. Values that were computed may be beyond its bounds by rounding.
        codomain: ``C``, with all event dimensions.
        back: ``f⁻¹``.
        known: tells of values that were drawn, which are not taken back, see :func:`with_draws`.
    """

    is_discrete = False

    def __init__(
        self,
        region: Constraint,
        codomain: Constraint,
        back: Callable[[Tensor], Tensor],
        known: Callable[[Tensor], bool] | None = None,
    ) -> None:
        self.region, self.codomain, self.back, self.known = region, codomain, back, known
        self.compared = math.nan  # among its numbers, so that no two images are taken for the same

    @property  # PyTorch declares a writable attribute and itself overrides it with properties
    def event_dim(self) -> int:  # type: ignore[override]
        """The codomain's."""
        return self.codomain.event_dim

    def check(self, value: Tensor) -> Tensor:
        """Whether each event is in the image, shape ``batch_shape``."""
        good: Tensor = self.codomain.check(value)
        if self.known is not None and self.known(value):
            return good
        with torch.no_grad(), recomputation():  # what scores the value makes the pass that counts
            return good & kept_to(self.region, self.back(value))

    def __repr__(self) -> str:
        return f"Image({self.region} within {self.codomain})"


def image(region: Constraint, domain: Constraint, codomain: Constraint, back: Callable[[Tensor], Tensor]) -> Constraint:
    """What a bijection from ``domain`` onto ``codomain`` makes of those of its arguments that are in ``region``.

    The codomain, where the region is known to hold all of the domain (it is all numbers, or has the same bounds); else
    an :class:`Image`, whose arguments are the others.
    """
    return codomain if _holds(region, domain) else Image(region, codomain, back)


def _holds(region: Constraint, domain: Constraint) -> bool:
    # One object first, as all numbers mostly are (:func:`reals`): long chains are asked often.
    return region is domain or is_real(region) or same_support(_innermost(region), _innermost(domain))


def fits(steps: Iterable[tuple[Constraint, Constraint]]) -> bool:
    """Whether of bijections that follow each other, given by domain and codomain, each reaches all that the next takes.

    They end in the whole codomain of the last one then, and :func:`reached` has no more to say.
    """
    return all(_holds(before, domain) for (_, before), (domain, _) in pairwise(steps))


def reached(steps: Sequence[tuple[Constraint, Constraint, Callable[[Tensor], Tensor]]], event_dim: int) -> Constraint:
    """Where bijections that follow each other end, over events of ``event_dim`` dimensions.

    Args:
        steps: of each its domain, its codomain and its inverse; one at least.
        event_dim: at least the event dimensions of each.
    """
    (_, found, _), *others = steps
    found = widened(found, event_dim)
    for domain, codomain, back in others:
        found = image(found, domain, widened(codomain, event_dim), back)
    return found


def with_draws(constraint: Constraint, known: Callable[[Tensor], bool]) -> Constraint:
    """An :class:`Image` that takes values for its own where they are known to be: they were drawn from it.

    The inverse of a steep map, such as that of ``10 + σ / 1000``, would place some of them beyond a bound by far more
    than rounding.
    """
    if not isinstance(constraint, Image):
        return constraint
    return Image(constraint.region, constraint.codomain, constraint.back, known)


@biject_to.register(Image)
def _onto_an_image(constraint: Image) -> Any:
    raise NotImplementedError(
        "no map from the real line is known to the image of a bounded region under further layers: sample the values "
        "in the region, and compute the image from them with pyro.deterministic"
    )
