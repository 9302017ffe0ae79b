r"""Elementwise splines: ``y_i = f_i((x_i + t_i) e^{a_i})`` with a rational-quadratic spline for each entry."""

from __future__ import annotations

import torch
from torch import Tensor

from vi_flows.transforms.coupling_spline import SplineMap
from vi_flows.transforms.vector.parametric import Family

__all__ = ["SplineFamily"]


class SplineFamily(Family):
    r"""One spline an entry, each with parameters of its own; the map of neural spline flows without their network.

    ``log|det| = Σ_i (log f_i′ + a_i)``, see :class:`~vi_flows.transforms.coupling_spline.SplineMap` (Durkan, Bekasov,
    Murray & Papamakarios 2019, section 3.1). The inverse is in closed form. It starts at zero, the identity.

    Args:
        input_dim: ``d``.
        num_bins: ``K``; the layer has ``d (3 K + 1)`` parameters.
        bound: ``B``: the splines are the identity outside of ``[−B, B]``.

    Raises:
        ValueError: ``input_dim`` is less than 1, there are fewer than two bins, or the bound is not positive.
    """

    def __init__(self, input_dim: int, num_bins: int = 8, bound: float = 5.0) -> None:
        change = SplineMap(num_bins, bound)
        super().__init__(input_dim, change.num_maps * input_dim)
        self.change = change

    def initial(self) -> Tensor:
        """Zeros."""
        return torch.zeros(self.num_params)

    def _maps(self, params: Tensor) -> tuple[Tensor, ...]:
        """The maps of :class:`SplineMap`, each ``(…, d)``."""
        return params.unflatten(-1, (self.change.num_maps, self.input_dim)).unbind(-2)

    def _moved(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        shape = torch.broadcast_shapes(x.shape, (*params.shape[:-1], self.input_dim))
        maps = [m.expand(shape) for m in self._maps(params)]
        return self.change(x.expand(shape), maps, inverse, event_dim=1)

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Every entry by its own spline."""
        return self._moved(x, params, inverse=False)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """The root of a quadratic equation an entry."""
        return self._moved(y, params, inverse=True)

    def min_slope(self, params: Tensor) -> float:
        """The least of the bounds of all bins, see :meth:`SplineMap.min_slope`."""
        return self.change.min_slope(self._maps(params))
