r"""Autoregressive layers: each entry is changed by an elementwise map whose parameters see the entries before it.

``y_i = g(x_i; net(x_1 … x_{i−1}))``, ``log|det| = Σ_i log ∂y_i/∂x_i``. The forward pass is one pass of the network; the
inverse finds the entries in order, with ``d`` passes. With the affine map it is the inverse autoregressive flow
(Kingma et al. 2016), whose inverse is the masked autoregressive flow (Papamakarios, Pavlakou & Murray 2017).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vi_flows.nn.autoregressive_mlp import AutoregressiveMLP
from vi_flows.nn.precision import autocast_to
from vi_flows.transforms.base import Bijection, ConditionalBijection
from vi_flows.transforms.coupling_maps import ElementwiseMap

__all__ = ["Autoregressive", "ConditionalAutoregressive"]


def _check(change: ElementwiseMap, network: AutoregressiveMLP) -> None:
    if network.num_params != change.num_maps:
        raise ValueError(f"the map has {change.num_maps} parameters an entry, the network gives {network.num_params}")


class Autoregressive(Bijection):
    """The layer, with a network that sees no context.

    Args:
        change: the map of one entry.
        network: gives its parameters.
        network_dtype: type of the network's products, see :class:`~vi_flows.transforms.Coupling`; the masks stay exact,
            and the map and its log-determinant keep the input's type.

    Raises:
        ValueError: the network gives another number of parameters.
    """

    def __init__(
        self, change: ElementwiseMap, network: AutoregressiveMLP, network_dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(event_dim=1)
        _check(change, network)
        self.change, self.network, self.network_dtype = change, network, network_dtype
        self.shifts: Sequence[Tensor] = ()

    def _check(self, value: Tensor) -> None:
        self._check_last_dim(value, self.network.input_dim)
        if self.network_dtype is None:
            self._check_type(value, self.network.layers[0].weight)

    def _maps(self, x: Tensor) -> tuple[Tensor, ...]:
        with autocast_to(self.network_dtype, x.device.type):
            maps = self.network(x, self.shifts)
        return maps.to(x.dtype).unbind(-1)

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One pass of the network."""
        self._check(x)
        return self.change(x, self._maps(x), event_dim=1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``d`` passes of the network, one an entry."""
        self._check(y)
        batch = torch.broadcast_shapes(y.shape[:-1], *(shift.shape[:-1] for shift in self.shifts))
        y = y.expand(*batch, y.shape[-1])
        x = torch.zeros_like(y)
        done: list[Tensor] = []
        slopes: list[Tensor] = []
        for index in range(y.shape[-1]):
            here = slice(index, index + 1)  # of one entry, not of none, whose tangent would be in double precision
            maps = [m[..., here] for m in self._maps(x)]
            entry, log_slope = self.change.elementwise(y[..., here], maps, inverse=True)
            done.append(entry)
            slopes.append(log_slope)
            x = torch.cat([*done, torch.zeros_like(y[..., index + 1 :])], -1)
        return x, torch.cat(slopes, -1).sum(-1)


class _ConditionedAutoregressive(Autoregressive):
    """The layer for each row of a context."""

    def __init__(
        self,
        change: ElementwiseMap,
        network: AutoregressiveMLP,
        network_dtype: torch.dtype | None,
        shifts: Sequence[Tensor],
    ) -> None:
        super().__init__(change, network, network_dtype)
        self.shifts = tuple(shifts)

    @property
    def batch_shape(self) -> torch.Size:
        """The context's."""
        return torch.broadcast_shapes(*(shift.shape[:-1] for shift in self.shifts))

    def _state_tensors(self) -> Iterable[Tensor]:
        yield from super()._state_tensors()
        yield from self.shifts


class ConditionalAutoregressive(ConditionalBijection):
    """The layer, with a network that also sees a context.

    Args:
        change: the map of one entry.
        network: gives its parameters; made with a ``context_dim``.
        network_dtype: as for :class:`Autoregressive`.

    Raises:
        ValueError: the network takes no context, or gives another number of parameters; on conditioning, the context
            has another length.
    """

    def __init__(
        self, change: ElementwiseMap, network: AutoregressiveMLP, network_dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        _check(change, network)
        if not network.context_dim:
            raise ValueError("the network was made without a context_dim; an unconditional layer is Autoregressive")
        self.change, self.network, self.network_dtype = change, network, network_dtype

    def condition(self, context: Tensor) -> Bijection:
        """The layer for each row of ``context``, shape ``batch_shape + (context_dim,)``."""
        context = self._checked(context, self.network.context_dim)
        with autocast_to(self.network_dtype, context.device.type):
            shifts = self.network.shifts(context)
        found = _ConditionedAutoregressive(self.change, self.network, self.network_dtype, shifts)
        found.training = self.training  # not `train()`: the network is shared and keeps its own mode
        return found
