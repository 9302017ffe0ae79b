"""Two-dimensional targets given by an energy, normalised by quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

from vi_flows.settings import check_counts, check_tensors

__all__ = ["TARGETS_2D", "Energy2D", "target_2d", "wall"]

SCALAR = torch.Size()

EnergyFn = Callable[[Tensor, Tensor], Tensor]


def wall(z1: Tensor, at: float = 4.0, width: float = 0.2) -> Tensor:
    r"""``½ (relu(|z₁| − at) / width)²``: makes a target that is periodic in ``z₁`` proper."""
    return 0.5 * ((z1.abs() - at).clamp(min=0) / width).square()


class Energy2D(TorchDistribution):
    r"""``p(z) = exp(−U(z)) / Z`` on the plane, with ``Z`` by quadrature on a box outside of which ``p`` is negligible.

    Args:
        name: for reports.
        energy: ``U(z₁, z₂)``, elementwise: a number for each point, which may be infinite. The quadrature asks for it
            in float64, once for an energy and a box.
        box: ``(z₁ min, z₁ max, z₂ min, z₂ max)`` of the quadrature.
        hard: whether ``p`` is zero outside of the box (a truncated target).

    Raises:
        TypeError: the energy can't be called.
        ValueError: the box is not four finite numbers in order; on use, points are not of two numbers, the energy gives
            something else than one number for each point, or the box does not hold the mass.
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector

    def __init__(self, name: str, energy: EnergyFn, box: tuple[float, float, float, float], hard: bool = False) -> None:
        if not callable(energy):
            raise TypeError(f"energy must be a function U(z1, z2), got {type(energy).__name__}")
        try:
            a, b, c, d = map(float, box)
        except (TypeError, ValueError):
            raise ValueError(f"{BOX}, got {box!r}") from None
        if not (-math.inf < a < b < math.inf and -math.inf < c < d < math.inf):
            raise ValueError(f"{BOX}, got {box!r}")
        self.name, self.energy, self.box, self.hard = name, energy, (a, b, c, d), hard
        super().__init__(torch.Size(), torch.Size([2]), validate_args=False)

    def __repr__(self) -> str:
        return f"Energy2D({self.name!r})"

    def expand(self, batch_shape: _size, _instance: TorchDistribution | None = None) -> TorchDistribution:
        """The same target for each row of a batch."""
        new = Energy2D(self.name, self.energy, self.box, self.hard)
        super(Energy2D, new).__init__(torch.Size(batch_shape), torch.Size([2]), validate_args=False)
        return new

    def unnormalized_log_prob(self, value: Tensor) -> Tensor:
        """``−U(z)``, shape ``(…)`` for ``z`` of shape ``(…, 2)``.

        Raises:
            TypeError: ``z`` is no tensor.
            ValueError: its points have not two numbers, or the energy gives not one for each.
        """
        check_tensors(value=value)
        if value.dim() < 1 or value.shape[-1] != 2:
            raise ValueError(f"{self!r} is a density of points (…, 2), got a tensor of {tuple(value.shape)}")
        z1, z2 = value.unbind(-1)
        energy = self.energy(z1, z2)
        if not isinstance(energy, Tensor) or energy.shape != z1.shape:
            # Otherwise it would broadcast, and the quadrature count one cell for all of them.
            found = f"a tensor of {tuple(energy.shape)}" if isinstance(energy, Tensor) else type(energy).__name__
            raise ValueError(
                f"the energy of {self!r} gave {found} for points of shape {tuple(z1.shape)}: it is to give one number "
                "for each, as z1 + z2 does (a constant: torch.zeros_like(z1))"
            )
        log_p = -energy
        if self.hard:
            a, b, c, d = self.box
            inside = (z1 >= a) & (z1 <= b) & (z2 >= c) & (z2 <= d)
            log_p = log_p.masked_fill(~inside, -math.inf)
        return log_p

    def log_prob(self, value: Tensor) -> Tensor:
        """``−U(z) − log Z``, nats; shape ``(…)``, broadcast with the batch shape."""
        log_p = self.unnormalized_log_prob(value) - self.log_normalizer()
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))

    def grid(self, points: int = 2000) -> tuple[Tensor, float]:
        """Midpoints of a regular grid of the box, ``(points, points, 2)`` with ``z₁`` along the first dimension, and
        the area of a cell.

        Raises:
            ValueError: there is no point.
        """
        check_counts(1, points=points)
        a, b, c, d = self.box
        mid = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        mesh = torch.meshgrid(a + (b - a) * mid, c + (d - c) * mid, indexing="ij")
        return torch.stack(mesh, -1), (b - a) * (d - c) / points**2

    def log_normalizer(self) -> float:
        """``log Z`` by the midpoint rule on 2000 × 2000 cells, exact to 1e-5 for these targets.

        Raises:
            ValueError: it is no finite number, or the density has not died away at the border of the box.
        """
        return _log_normalizer(_Same(self.energy), tuple(self.box), self.hard, self.name)

    def sample(self, sample_shape: _size = SCALAR) -> Tensor:
        """Exact draws but for the grid: a cell of the quadrature by its mass, and a uniform point of it.

        Args:
            sample_shape: of the draws, before the batch shape.

        Returns:
            Points in the default type, ``sample_shape + batch_shape + (2,)``; they carry no gradient, and the density
            within a cell (a two-thousandth of the box a side) is taken to be constant.

        Raises:
            ValueError: see :meth:`log_normalizer`.
        """
        self.log_normalizer()
        mass = _mass(_Same(self.energy), tuple(self.box), self.hard, self.name)
        shape = self._extended_shape(torch.Size(sample_shape))
        # To the right, for a cell of no mass ends where the one before it does.
        chosen = torch.searchsorted(mass, torch.rand(shape[:-1], dtype=torch.float64) * mass[-1], right=True)
        points = math.isqrt(len(mass))
        corner = torch.stack([chosen // points, chosen % points], -1)
        a, b, c, d = self.box
        low, sides = mass.new_tensor([a, c]), mass.new_tensor([b - a, d - c]) / points
        return (low + (corner + torch.rand(shape, dtype=torch.float64)) * sides).to(torch.get_default_dtype())

    def divergence_from(self, log_density: Callable[[Tensor], Tensor], points: int = 600) -> tuple[float, float]:
        """``KL(q‖p)`` on the box by quadrature.

        Args:
            log_density: ``log q`` of points ``(n, 2)`` in float64.
            points: cells a side.

        Returns:
            The divergence in nats, and the mass of ``q`` that the box holds (1, if the number is to be trusted).

        Raises:
            ValueError: ``log_density`` gives not one number for each point.
        """
        z, cell = self.grid(points)
        z = z.reshape(-1, 2)
        with torch.no_grad():
            log_q = torch.cat([log_density(part) for part in z.split(50_000)]).double()
            if log_q.shape != z.shape[:1]:
                raise ValueError(
                    f"log_density gave {tuple(log_q.shape)} for points {tuple(z.shape)}, not one number for each"
                )
            terms = log_q.exp() * (log_q - self.log_prob(z)) * cell
        return float(terms[log_q > -700].sum()), float(log_q.exp().sum() * cell)


BOX = "box must be four finite numbers, (z1 min, z1 max, z2 min, z2 max) with min < max"

BORDER = 1e-6
"""Largest share of the mass in the outermost cells; a Gaussian with more, cut at 4 sd, has log Z wrong by 1e-4."""


@dataclass(frozen=True, eq=False)
class _Same:
    """A function that is equal to itself alone, whatever it says of that: an object with settings has no hash."""

    energy: EnergyFn

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.energy is other.energy

    def __hash__(self) -> int:
        return id(self.energy)


# Of what it depends on, which copies for a batch share. Bounded, so that targets made by the user don't pile up.
@lru_cache(maxsize=64)
def _log_normalizer(same: _Same, box: tuple[float, float, float, float], hard: bool, name: str) -> float:
    target = Energy2D(name, same.energy, box, hard)
    z, cell = target.grid()
    log_p = target.unnormalized_log_prob(z)
    total = torch.logsumexp(log_p.flatten(), 0)
    if not total.isfinite():
        raise ValueError(
            f"{target!r} has no log Z: on the box {box} its energy is NaN or minus infinity somewhere, or infinite all "
            "over"
        )
    border = torch.logsumexp(torch.cat([log_p[0], log_p[-1], log_p[1:-1, 0], log_p[1:-1, -1]]), 0)
    share = float((border - total).exp())
    if not hard and share > BORDER:
        raise ValueError(
            f"{target!r} has not died away at the border of its box {box}, whose outermost cells hold {share:.1g} of "
            "its mass, so that log Z would be wrong: widen the box, or cut the target there by hard=True"
        )
    return float(total) + math.log(cell)


@lru_cache(maxsize=4)  # 32 MB each
def _mass(same: _Same, box: tuple[float, float, float, float], hard: bool, name: str) -> Tensor:
    """Of the cells of the quadrature and all before them, the last one's total in arbitrary units."""
    target = Energy2D(name, same.energy, box, hard)
    log_p = target.unnormalized_log_prob(target.grid()[0]).flatten()
    return (log_p - log_p.max()).exp().cumsum(0)


def _radius(z1: Tensor, z2: Tensor) -> Tensor:
    """Distance from the origin, where its derivative is taken to be zero and not NaN."""
    return (z1.square() + z2.square()).clamp(min=SQUARE).sqrt()


SQUARE = 1.2e-38
"""Float32's smallest number with all digits."""


def _sine(period: float) -> Callable[[Tensor], Tensor]:
    return lambda z1: torch.sin(2 * math.pi * z1 / period)


_w1 = _sine(4.0)


def _w2(z1: Tensor) -> Tensor:
    return 3 * torch.exp(-0.5 * ((z1 - 1) / 0.6).square())


def _w3(z1: Tensor) -> Tensor:
    return 3 * torch.sigmoid((z1 - 1) / 0.3)


def _ridge(z2: Tensor, center: Tensor, width: float) -> Tensor:
    return -0.5 * ((z2 - center) / width).square()


def _u1(z1: Tensor, z2: Tensor) -> Tensor:
    radius = _radius(z1, z2)
    bumps = torch.logaddexp(-0.5 * ((z1 - 2) / 0.6).square(), -0.5 * ((z1 + 2) / 0.6).square())
    return 0.5 * ((radius - 2) / 0.4).square() - bumps


def _u2(z1: Tensor, z2: Tensor) -> Tensor:
    return -_ridge(z2, _w1(z1), 0.4)


def _u3(z1: Tensor, z2: Tensor) -> Tensor:
    return -torch.logaddexp(_ridge(z2, _w1(z1), 0.35), _ridge(z2, _w1(z1) - _w2(z1), 0.35))


def _u4(z1: Tensor, z2: Tensor) -> Tensor:
    return -torch.logaddexp(_ridge(z2, _w1(z1), 0.4), _ridge(z2, _w1(z1) - _w3(z1), 0.35))


def _funnel(z1: Tensor, z2: Tensor) -> Tensor:
    """Neal's funnel turned on its side: z₁ ~ N(0, 1.5²), z₂ | z₁ ~ N(0, e^{z₁})."""
    return 0.5 * (z1 / 1.5).square() + 0.5 * z2.square() * torch.exp(-z1) + 0.5 * z1


def _banana(z1: Tensor, z2: Tensor) -> Tensor:
    """z₁ ~ N(0, 2²), z₂ | z₁ ~ N(z₁²/4 − 1, ½²)."""
    return 0.5 * (z1 / 2).square() + 0.5 * ((z2 - 0.25 * z1.square() + 1) / 0.5).square()


def _rings(z1: Tensor, z2: Tensor) -> Tensor:
    """An equal mixture (by mass of the radial profiles) of rings of radii 1, 2.2 and 3.4."""
    radius = _radius(z1, z2).unsqueeze(-1)
    radii = radius.new_tensor([1.0, 2.2, 3.4])
    return -torch.logsumexp(-0.5 * ((radius - radii) / 0.2).square() - radii.log(), -1)


@dataclass(frozen=True)
class _Walled:
    """An energy with the wall; a class, so that targets can be pickled."""

    energy: EnergyFn

    def __call__(self, z1: Tensor, z2: Tensor) -> Tensor:
        return self.energy(z1, z2) + wall(z1)


_WAVE_BOX = (-6.0, 6.0, -6.0, 6.0)

TARGETS_2D: dict[str, Energy2D] = {
    # The ConvFlow paper's target, which is U2: improper as printed, hence the wall.
    "wave": Energy2D("wave", _Walled(_u2), _WAVE_BOX),
    "u1": Energy2D("u1", _u1, (-6.0, 6.0, -6.0, 6.0)),
    "u2": Energy2D("u2", _Walled(_u2), _WAVE_BOX),
    "u3": Energy2D("u3", _Walled(_u3), (-6.0, 6.0, -8.0, 6.0)),
    "u4": Energy2D("u4", _Walled(_u4), (-6.0, 6.0, -8.0, 6.0)),
    "funnel": Energy2D("funnel", _funnel, (-9.0, 9.0, -120.0, 120.0)),
    "banana": Energy2D("banana", _banana, (-12.0, 12.0, -5.0, 38.0)),
    "rings": Energy2D("rings", _rings, (-5.5, 5.5, -5.5, 5.5)),
}
"""By name; those of Rezende and Mohamed (2015, table 1) that are periodic in z₁ have a wall at |z₁| = 4."""


def target_2d(name: str, truncated: bool = False) -> Energy2D:
    """A target by name.

    Args:
        name: one of :data:`TARGETS_2D`.
        truncated: cut hard at ``|z₁| = 4`` in place of the wall (``wave``, ``u2``, ``u3``, ``u4``).

    Raises:
        ValueError: there is none of that name, or it has no wall to replace.
    """
    if name not in TARGETS_2D:
        raise ValueError(f"unknown target {name!r}; choose one of {', '.join(TARGETS_2D)}")
    if not truncated:
        return TARGETS_2D[name]
    plain = {"wave": _u2, "u2": _u2, "u3": _u3, "u4": _u4}
    if name not in plain:
        raise ValueError(f"{name} is proper without truncation: leave truncated out; it is for {', '.join(plain)}")
    low, high = TARGETS_2D[name].box[2:]
    return Energy2D(f"{name} on |z1| <= 4", plain[name], (-4.0, 4.0, low, high), hard=True)
