r"""Coupling layers: how an event is divided, how a part is changed, and the one template that joins the two.

A coupling divides the input into groups ``x_1 … x_G`` and changes each but the first by an invertible map whose
parameters are computed from the groups before it:

    ``y_1 = x_1``,   ``y_m = g(x_m; net_m(x_1, …, x_{m−1}))``,   ``log|det| = Σ_m log|det ∂y_m/∂x_m|``.

The networks see the *inputs*, so the forward pass evaluates them all at once and the inverse solves for
``x_1 → x_2 → …`` in order. Two groups give the coupling of NICE, Real NVP and Glow; four give quad-coupling (Nagar,
Dufraisse & Varma, eq. 3–6).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vi_flows.nn.precision import autocast_to
from vi_flows.transforms.base import Bijection, ConditionalBijection
from vi_flows.transforms.coupling_maps import CouplingMap
from vi_flows.transforms.image.base import fold_batch

__all__ = ["ChannelGroups", "Checkerboard", "ConditionalCoupling", "Coupling", "Partition", "VectorGroups"]


class Partition(ABC):
    """How an event is divided into groups, and put together again.

    Attributes:
        num_groups: ``G``.
        event_dim: rightmost dimensions of one event: 3 for images ``(C, H, W)``, 1 for vectors. The first of them is
            the one of the channels, which are the entries for vectors.
    """

    num_groups: int
    event_dim: int = 3

    def check(self, shape: torch.Size) -> None:
        """Raise ``ValueError`` if tensors of ``shape`` are no such events."""
        if len(shape) < self.event_dim:
            raise ValueError(f"Coupling acts on (…, C, H, W) images, got a tensor of {tuple(shape)}")

    @abstractmethod
    def split(self, x: Tensor) -> list[Tensor]:
        """The groups of ``x`` in the order in which they are computed, each with all event dimensions."""

    @abstractmethod
    def merge(self, groups: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """Inverse of :meth:`split` for an event of ``shape``."""

    @abstractmethod
    def known(self, groups: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """What the network of group ``len(groups)`` sees: an event with ``known_channels``, made of earlier groups."""

    @abstractmethod
    def select(self, maps: Tensor, index: int) -> Tensor:
        """Bring one parameter map of the network of group ``index`` to the layout of that group."""

    @abstractmethod
    def known_channels(self, channels: int, index: int) -> int:
        """Number of channels of :meth:`known` for group ``index`` of an image with ``channels``."""

    @abstractmethod
    def group_channels(self, channels: int, index: int) -> int:
        """Number of channels of group ``index``."""

    def check_rectangular(self, shape: torch.Size) -> None:
        """Raise ``ValueError`` if a group is not a full rectangle of pixels, as convolution maps need."""
        return


class ChannelGroups(Partition):
    """Consecutive channels: ``num_groups`` groups as even as possible (the first ones smaller).

    Args:
        channels: ``C``.
        num_groups: 2 for the common coupling, 4 for quad-coupling.
        swap: take the groups in reverse order, so that the last channels stay unchanged.

    Raises:
        ValueError: there are fewer channels than groups, or, for more than two groups, ``C`` is not divisible by them.
    """

    def __init__(self, channels: int, num_groups: int = 2, swap: bool = False) -> None:
        if num_groups < 2:
            raise ValueError(f"a coupling needs at least 2 groups, got {num_groups}")
        if num_groups == 2 and channels < 2:
            raise ValueError(f"a channel coupling needs at least 2 channels, got {channels}; squeeze the image first")
        if num_groups > 2 and channels % num_groups:
            name = "quad-coupling" if num_groups == 4 else f"a coupling of {num_groups} groups"
            raise ValueError(f"{name} needs a number of channels divisible by {num_groups}, got {channels}")
        self.channels, self.num_groups, self.swap = channels, num_groups, swap
        small, extra = divmod(channels, num_groups)
        sizes = [small] * (num_groups - extra) + [small + 1] * extra
        self.sizes = sizes[::-1] if swap else sizes

    def check(self, shape: torch.Size) -> None:
        """Raise ``ValueError`` if tensors of ``shape`` are no such events, or have another number of channels."""
        super().check(shape)
        if shape[-self.event_dim] != self.channels:
            raise ValueError(f"Coupling acts on images of {self.channels} channels, got a tensor of {tuple(shape)}")

    def split(self, x: Tensor) -> list[Tensor]:
        """Slices of the channels."""
        if self.swap:
            return list(x.split(self.sizes[::-1], -self.event_dim))[::-1]
        return list(x.split(self.sizes, -self.event_dim))

    def merge(self, groups: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """Concatenate."""
        return torch.cat(list(groups)[::-1] if self.swap else list(groups), -self.event_dim)

    def known(self, groups: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """The earlier groups, concatenated."""
        return groups[0] if len(groups) == 1 else torch.cat(list(groups), -self.event_dim)

    def select(self, maps: Tensor, index: int) -> Tensor:
        """As they are."""
        return maps

    def known_channels(self, channels: int, index: int) -> int:
        """Channels of the earlier groups."""
        return sum(self.sizes[:index])

    def group_channels(self, channels: int, index: int) -> int:
        """Channels of the group."""
        return self.sizes[index]


class VectorGroups(ChannelGroups):
    """Consecutive entries of a vector: the first half and the second, or the reverse.

    Args:
        input_dim: ``d``.
        swap: the last half stays unchanged, not the first.

    Raises:
        ValueError: there are fewer than two entries; on use, the vectors have another length.
    """

    event_dim = 1

    def __init__(self, input_dim: int, swap: bool = False) -> None:
        if input_dim < 2:
            raise ValueError(f"a coupling of vectors needs input_dim at least 2, got {input_dim}")
        super().__init__(input_dim, 2, swap)
        self.input_dim = input_dim

    def check(self, shape: torch.Size) -> None:
        """Raise ``ValueError`` if tensors of ``shape`` are no such vectors."""
        if len(shape) < 1 or shape[-1] != self.input_dim:
            raise ValueError(f"Coupling acts on vectors of {self.input_dim} dimensions, got a tensor of {tuple(shape)}")


class Checkerboard(Partition):
    """Alternating pixels: the second group holds the pixels with ``(i + j) mod 2 = parity``.

    Networks see the whole image with that group's pixels set to zero. A group of an image of even width is the
    ``(C, H, W/2)`` array of its pixels, row by row; of odd width, a single row.

    Args:
        parity: 0 or 1.

    Raises:
        ValueError: ``parity`` is neither; for maps that convolve, on use: the width is odd.
    """

    num_groups = 2

    def __init__(self, parity: int = 0) -> None:
        if parity not in (0, 1):
            raise ValueError(f"parity must be 0 or 1, got {parity}")
        self.parity = parity

    def _order(self, shape: torch.Size, device: torch.device) -> tuple[Tensor, int]:
        height, width = shape[-2:]
        pixels = torch.arange(height * width, device=device)
        changed = (pixels // width + pixels % width) % 2 == self.parity
        first = (height * width + (self.parity == 1)) // 2
        return torch.argsort(changed, stable=True), height * width - first

    def _rows(self, packed: Tensor, width: int) -> Tensor:
        return packed.unflatten(-1, (-1, width // 2)) if width % 2 == 0 else packed.unsqueeze(-2)

    def split(self, x: Tensor) -> list[Tensor]:
        """The unchanged pixels, then the changed ones."""
        order, changed = self._order(x.shape, x.device)
        packed = x.flatten(-2).index_select(-1, order)
        return [self._rows(p, x.shape[-1]) for p in packed.split([len(order) - changed, changed], -1)]

    def merge(self, groups: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """Put the pixels back in their places."""
        order, _ = self._order(shape, groups[0].device)
        packed = torch.cat([group.flatten(-2) for group in groups], -1)
        return packed.index_select(-1, order.argsort()).unflatten(-1, tuple(shape[-2:]))

    def known(self, groups: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """The unchanged pixels in their places, zeros elsewhere."""
        _, changed = self._order(shape, groups[0].device)
        rest = groups[0].new_zeros(*groups[0].shape[:-2], 1, changed)
        return self.merge([groups[0], rest], shape)

    def select(self, maps: Tensor, index: int) -> Tensor:
        """The changed pixels of the maps."""
        return self.split(maps)[index]

    def known_channels(self, channels: int, index: int) -> int:
        """All."""
        return channels

    def group_channels(self, channels: int, index: int) -> int:
        """All."""
        return channels

    def check_rectangular(self, shape: torch.Size) -> None:
        """The width must be even."""
        if shape[-1] % 2:
            raise ValueError(f"a checkerboard of {shape[-2]} × {shape[-1]} pixels has no rectangular half to convolve")


class Coupling(Bijection):
    r"""The coupling layer: a partition, one network a changed group, and the map whose parameters they compute.

    Args:
        partition: how the event is divided, see :class:`Partition`.
        conditioners: ``G − 1`` networks; the m-th maps the known channels, ``(N, K_m, H, W)``, to the map's parameters,
            ``(N, P · C_m, H, W)`` with ``P = coupling_map.num_maps`` and ``C_m`` channels in group ``m``. For vectors
            the same without ``H, W``.
        coupling_map: how a group is changed, see :mod:`vi_flows.transforms.coupling_maps`.
        conditioner_dtype: type in which the networks run under autocast (``torch.bfloat16`` saves time and memory); the
            bijection itself and its log-determinant keep the input's type.

    Raises:
        ValueError: the number of conditioners is not ``G − 1``; on use, a network's output has the wrong size.
    """

    def __init__(
        self,
        partition: Partition,
        conditioners: Sequence[nn.Module],
        coupling_map: CouplingMap,
        conditioner_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(partition.event_dim)
        if len(conditioners) != partition.num_groups - 1:
            raise ValueError(f"{partition.num_groups} groups need {partition.num_groups - 1} conditioners")
        self.partition = partition
        self.conditioners = nn.ModuleList(conditioners)
        self.coupling_map = coupling_map
        self.conditioner_dtype = conditioner_dtype

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Change each group by its map, given the groups before it."""
        return self._evaluate(x, inverse=False)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Solve for the groups in order."""
        return self._evaluate(y, inverse=True)

    def _check(self, value: Tensor) -> None:
        self._check_tensor(value)
        self.partition.check(value.shape)
        self._check_batch(value)
        if self.conditioner_dtype is None and not torch.compiler.is_compiling():  # which walks through no parameters
            self._check_type(value, next(self.parameters(), None))

    def _evaluate(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        self._check(value)
        if self.coupling_map.spatial:
            self.partition.check_rectangular(value.shape)
        given = self.partition.split(value)
        groups = [given[0]]
        inputs = [given[0]]  # of the forward map, in both directions
        ladj = value.new_zeros(value.shape[: -self.event_dim])
        for index in range(1, self.partition.num_groups):
            maps = self._maps(inputs, index, value)
            changed, part = self.coupling_map(given[index], maps, inverse, self.event_dim)
            ladj = ladj + part
            groups.append(changed)
            inputs.append(changed if inverse else given[index])
        return self.partition.merge(groups, value.shape), ladj

    def _run(self, conditioner: nn.Module, known: Tensor) -> Tensor:
        return fold_batch(conditioner, known, self.event_dim)

    def _maps(self, inputs: Sequence[Tensor], index: int, value: Tensor) -> list[Tensor]:
        known = self.partition.known(inputs, value.shape)
        conditioner = self.conditioners[index - 1]
        with autocast_to(self.conditioner_dtype, value.device.type):
            maps = self._run(conditioner, known)
        count = self.coupling_map.num_maps
        channels, *places = value.shape[-self.event_dim :]
        expected = (count * self.partition.group_channels(channels, index), *places)
        if maps.shape[-self.event_dim :] != expected:
            raise ValueError(
                f"conditioner {index} gave maps of {tuple(maps.shape[-self.event_dim :])}, "
                f"expected {expected} ({count} for each channel)"
            )
        return [self.partition.select(part, index) for part in maps.to(value.dtype).chunk(count, -self.event_dim)]


class _ConditionedCoupling(Coupling):
    """A coupling whose networks get the channels of a fixed context in front of the known ones."""

    context: Tensor

    def __init__(self, coupling: Coupling, context: Tensor) -> None:
        super().__init__(
            coupling.partition, list(coupling.conditioners), coupling.coupling_map, coupling.conditioner_dtype
        )
        self.register_buffer("context", context, persistent=False)

    @property
    def batch_shape(self) -> torch.Size:
        """The context's."""
        return self.context.shape[: -self.event_dim]

    def _evaluate(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        self._check(value)
        dim = self.event_dim
        batch = torch.broadcast_shapes(value.shape[:-dim], self.context.shape[:-dim])
        return super()._evaluate(value.expand(*batch, *value.shape[-dim:]), inverse)

    def _run(self, conditioner: nn.Module, known: Tensor) -> Tensor:
        dim = self.event_dim
        context = self.context.expand(*known.shape[:-dim], *self.context.shape[-dim:])
        return super()._run(conditioner, torch.cat([context, known], -dim))


class ConditionalCoupling(ConditionalBijection):
    """A coupling whose networks also see a context: ``condition(context)`` gives the coupling for each row.

    Args:
        partition: see :class:`Coupling`.
        conditioners: see :class:`Coupling`; they take the context's channels in front of the known ones.
        coupling_map: see :class:`Coupling`.
        context_channels: number of channels of the context, which has the image's height and width; for vectors, its
            length.

    Raises:
        ValueError: see :class:`Coupling`; on conditioning, the context has another number of channels.
    """

    def __init__(
        self, partition: Partition, conditioners: Sequence[nn.Module], coupling_map: CouplingMap, context_channels: int
    ) -> None:
        super().__init__()
        self.coupling = Coupling(partition, conditioners, coupling_map)
        self.context_channels = context_channels

    def condition(self, context: Tensor) -> Bijection:
        """The coupling for each row of ``context``, ``(…, context_channels, H, W)`` or ``(…, context_channels)``."""
        context = self._checked(context, self.context_channels, self.coupling.event_dim)
        found = _ConditionedCoupling(self.coupling, context)
        found.training = self.training  # not `train()`: the networks are shared and keep their own modes
        return found
