"""How a coupling changes a group of the input: additive, affine, convolution and MCONV maps.

Each takes the group and its parameter maps (arrays of the group's own shape, computed by a network from other groups)
and returns the changed group with the log-determinant, in either direction. Zero maps give the identity, except for
the sigmoid scale. Elementwise maps serve images, vectors and autoregressive layers alike; the others are for images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vi_flows.transforms.base import sum_event_dims
from vi_flows.transforms.image.circular_conv import make_filter

__all__ = [
    "COUPLING_MAPS", "SCALES", "AdditiveMap", "AffineMap", "ConvMap", "CouplingMap", "ElementwiseMap", "GaussianMap",
    "MConvMap",
]  # fmt: skip

SIGMOID_FLOOR = 0.05


def _log_sigmoid_with_floor(g: Tensor) -> Tensor:
    return (SIGMOID_FLOOR + (1 - SIGMOID_FLOOR) * torch.sigmoid(g + 2.0)).log()


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda g: g,
    "sigmoid": _log_sigmoid_with_floor,
    "tanh": lambda g: 2.0 * torch.tanh(0.5 * g),
}
"""Log scales ``log s(g)`` by name.

``exp`` is ``s = e^g`` as the papers write it; ``sigmoid`` is ``s = 0.05 + 0.95 σ(g + 2)``, that of the implementations
of Glow with a floor; ``tanh`` is ``s = exp(2 tanh(g/2))``, within ``[e⁻², e²]``. Sampling divides by ``s`` once a
coupling. Without a lower bound (``exp``) the quotients of a deep flow may overflow far from the data, so no flow has it
as its default.
"""


class CouplingMap(ABC):
    """An invertible map of a group given its parameters.

    Attributes:
        num_maps: parameter maps a channel.
        spatial: whether the map mixes pixels, so that the group must be a rectangle.
    """

    num_maps: int
    spatial: bool = False

    @abstractmethod
    def __call__(
        self, x: Tensor, maps: Sequence[Tensor], inverse: bool = False, event_dim: int = 3
    ) -> tuple[Tensor, Tensor]:
        """Change the group (or undo it), and the log-determinant of what was done, summed over the event dimensions.

        Args:
            x: the group, ``(…, C, H, W)`` of an image or ``(…, d)`` of a vector.
            maps: ``num_maps`` tensors of the group's shape.
            inverse: undo the map.
            event_dim: rightmost dimensions of one event: 3 for images, 1 for vectors.
        """


class ElementwiseMap(CouplingMap):
    """A map of each entry by its own parameters: for events of any shape."""

    @abstractmethod
    def elementwise(self, x: Tensor, maps: Sequence[Tensor], inverse: bool) -> tuple[Tensor, Tensor]:
        """The changed entries and the log of the slope at each, both of the shape of ``x``."""

    def __call__(
        self, x: Tensor, maps: Sequence[Tensor], inverse: bool = False, event_dim: int = 3
    ) -> tuple[Tensor, Tensor]:
        """See :class:`CouplingMap`."""
        y, log_slope = self.elementwise(x, maps, inverse)
        return y, sum_event_dims(log_slope, event_dim)


class _Scale:
    """One of :data:`SCALES` by name; a copy of it holds no function."""

    def __init__(self, scale: str) -> None:
        if scale not in SCALES:
            raise ValueError(f"unknown scale {scale!r}; choose one of {', '.join(SCALES)}")
        self.name = scale

    def log_scale(self, g: Tensor) -> Tensor:
        """``log s(g)``."""
        return SCALES[self.name](g)


class AdditiveMap(ElementwiseMap):
    """NICE's additive coupling, ``y = x + t``; log-determinant 0 (Dinh et al., *NICE*, section 3.2)."""

    num_maps = 1

    def elementwise(self, x: Tensor, maps: Sequence[Tensor], inverse: bool) -> tuple[Tensor, Tensor]:
        """Add, or subtract."""
        y = x - maps[0] if inverse else x + maps[0]
        return y, torch.zeros_like(y)


class AffineMap(ElementwiseMap):
    """Affine coupling, ``y = (x + t) ⊙ s(g)``; ``log|det| = Σ log s(g)`` (Nagar et al., eq. 4; Glow, table 1).

    Args:
        scale: one of :data:`SCALES`.

    Raises:
        ValueError: there is no scale of that name.
    """

    num_maps = 2

    def __init__(self, scale: str = "tanh") -> None:
        self.scale = _Scale(scale)

    def elementwise(self, x: Tensor, maps: Sequence[Tensor], inverse: bool) -> tuple[Tensor, Tensor]:
        """Shift, then scale; or the reverse."""
        shift, log_scale = maps[0], self.scale.log_scale(maps[1])
        if inverse:
            return x * (-log_scale).exp() - shift, -log_scale
        return (x + shift) * log_scale.exp(), log_scale


class GaussianMap(ElementwiseMap):
    """Standardisation by a normal, ``y = (x − μ) e^{−log σ}``; ``log|det| = −Σ log σ``; the maps are ``μ, log σ``.

    ``log σ`` is bounded softly: ``2 tanh(g/2)`` above zero and ``6 tanh(g/6)`` below (slope 1 at zero on both sides).
    A latent that was normalised before the split has a standard deviation of about 1, so a wider ``σ`` than ``e²``
    serves no image but makes samples overflow; a narrower one than ``e⁻⁶`` would make the map nearly singular.
    """

    num_maps = 2

    def elementwise(self, x: Tensor, maps: Sequence[Tensor], inverse: bool) -> tuple[Tensor, Tensor]:
        """Standardise; or the reverse."""
        mean, g = maps[0], maps[1]
        # Not as a sum of two clamped terms: at zero, where every split prior starts, both would pass the gradient on.
        log_sd = torch.where(g > 0, 2.0 * torch.tanh(g / 2.0), 6.0 * torch.tanh(g / 6.0))
        if inverse:
            return x * log_sd.exp() + mean, log_sd
        return (x - mean) * (-log_sd).exp(), -log_sd


class ConvMap(CouplingMap):
    """Convolution coupling, ``y = w ⊛ x + b`` (Karami et al., eq. 3, inverse eq. 6).

    Args:
        filter: one of :data:`~vi_flows.transforms.image.circular_conv.FILTERS`; its parameter is the first map.
        bound: largest log magnitude of the spectrum.

    Raises:
        ValueError: see :func:`~vi_flows.transforms.image.circular_conv.make_filter`.
    """

    num_maps = 2
    spatial = True

    def __init__(self, filter: str = "cepstrum", bound: float = 2.0) -> None:
        self.filter = make_filter(filter, 2, bound)

    def __call__(
        self, x: Tensor, maps: Sequence[Tensor], inverse: bool = False, event_dim: int = 3
    ) -> tuple[Tensor, Tensor]:
        """Convolve and shift; or the reverse."""
        v, shift = maps[:2]
        if inverse:
            return self.filter(x - shift, v, inverse=True)
        y, ladj = self.filter(x, v)
        return y + shift, ladj


class MConvMap(CouplingMap):
    """MCONV, ``y = s(g) ⊙ (w ⊛ x + b) + t`` (Karami et al., eq. 7, inverse eq. 9); the maps are ``v, b, g, t``.

    ``b`` is redundant given ``t``; it is kept as in the paper, where it lets the shift scale with ``s``.

    Args:
        scale: one of :data:`SCALES`.
        filter: see :class:`ConvMap`.
        bound: see :class:`ConvMap`.

    Raises:
        ValueError: see :class:`AffineMap` and :class:`ConvMap`.
    """

    num_maps = 4
    spatial = True

    def __init__(self, scale: str = "tanh", filter: str = "cepstrum", bound: float = 2.0) -> None:
        self.scale = _Scale(scale)
        self.conv = ConvMap(filter, bound)

    def __call__(
        self, x: Tensor, maps: Sequence[Tensor], inverse: bool = False, event_dim: int = 3
    ) -> tuple[Tensor, Tensor]:
        """Convolve, shift, scale, shift; or the reverse."""
        log_scale, shift = self.scale.log_scale(maps[2]), maps[3]
        if inverse:
            x, ladj = self.conv((x - shift) * (-log_scale).exp(), maps, inverse=True)
            return x, ladj - sum_event_dims(log_scale, event_dim)
        y, ladj = self.conv(x, maps)
        return y * log_scale.exp() + shift, ladj + sum_event_dims(log_scale, event_dim)


COUPLING_MAPS: dict[str, Callable[..., CouplingMap]] = {
    "additive": AdditiveMap,
    "affine": AffineMap,
    "conv": ConvMap,
    "mconv": MConvMap,
}
"""The maps by name."""
