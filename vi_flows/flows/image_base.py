"""What an image flow is: a small typed description that builds a bijection of images."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from vi_flows.settings import check_image_shape, check_settings
from vi_flows.transforms import ConditionalBijection, ConditionalChain, Coupling, Inverse
from vi_flows.transforms.coupling import Partition
from vi_flows.transforms.coupling_maps import CouplingMap
from vi_flows.transforms.image.reshaped import ConditionalReshaped
from vi_flows.transforms.vector.diagonal import DiagonalFamily
from vi_flows.transforms.vector.parametric import ConditionalParametric

__all__ = ["ImageFlow", "ImageShape", "Network", "Scale", "check_levels", "make_coupling"]

ImageShape = Sequence[int]
Network = Callable[[int, int], nn.Module]
Scale = Literal["tanh", "sigmoid", "exp"]
LETTERS = {"num_levels": "l", "num_steps": "d", "num_couplings": "c", "num_blocks": "b", "width": "w"}


@dataclass(frozen=True, kw_only=True)
class ImageFlow(ABC):
    """A flow of images. A family is one subclass and one entry of the registry.

    Attributes:
        name: in the registry, on the command line and in records.

    Raises:
        ValueError: a setting is of another type, out of its bounds, or without use.
    """

    name: ClassVar[str]

    base: Literal["normal", "logistic"] = "normal"
    """Base distribution."""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def normalizes_batches(self) -> bool:
        """Whether layers take the variance of a minibatch's images in training, so that one alone is no minibatch."""
        return False

    @abstractmethod
    def build(
        self, image_shape: ImageShape, recompute: bool = False, conditioner_dtype: torch.dtype | None = None
    ) -> Inverse:
        """The flow's bijection, from base to logits.

        Args:
            image_shape: ``(C, H, W)``.
            recompute: run each part again in the backward pass, to save memory.
            conditioner_dtype: autocast type of the networks, for instance ``torch.bfloat16``.

        Raises:
            ValueError: the flow does not fit images of this shape.
        """

    def build_conditional(
        self,
        image_shape: ImageShape,
        context_dim: int,
        recompute: bool = False,
        conditioner_dtype: torch.dtype | None = None,
    ) -> ConditionalBijection:
        r"""The bijections from base to logits, one for each context ``c``.

        Here that of :meth:`build` after a change of the base: ``ε ↦ e^{ρ(c)} ⊙ ε + μ(c)``, with ``μ`` and ``2
        arctanh(ρ/2)`` linear in the context, which is how Glow is told the class (Kingma & Dhariwal 2018).

        Args:
            image_shape: ``(C, H, W)``.
            context_dim: length of the context, such as the number of classes.
            recompute: as for :meth:`build`.
            conditioner_dtype: as for :meth:`build`.

        Raises:
            ValueError: the flow does not fit images of this shape, or the context is empty.
        """
        flow, size = self.build(image_shape, recompute, conditioner_dtype), math.prod(image_shape)
        base = ConditionalReshaped(ConditionalParametric(DiagonalFamily(size), context_dim), (size,))
        return ConditionalChain([base, flow])

    @property
    def key(self) -> str:
        """The sizes, and what is not at its default: ``quad-l2-d4-w64``."""
        words, sizes = [], []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in LETTERS:
                sizes.append(f"{LETTERS[item.name]}{value}")
            elif value != item.default:
                text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
                words.append(text if isinstance(value, str) else item.name if value is True else f"{item.name}{text}")
        return "-".join(words + sizes)


def make_coupling(
    partition: Partition, channels: int, change: CouplingMap, network: Network, dtype: torch.dtype | None
) -> Coupling:
    """The coupling of a partition, with a network for each changed group."""
    networks = [
        network(partition.known_channels(channels, m), change.num_maps * partition.group_channels(channels, m))
        for m in range(1, partition.num_groups)
    ]
    return Coupling(partition, networks, change, dtype)


def check_levels(image_shape: ImageShape, num_levels: int) -> None:
    """Refuse sides that the levels' squeezes don't divide.

    Raises:
        ValueError: they don't, there is no level, or see :func:`~vi_flows.settings.check_image_shape`.
    """
    check_image_shape(image_shape)
    _, height, width = image_shape
    factor = 2**num_levels
    if num_levels < 1 or height % factor or width % factor:
        # At least one level squeezes: no number of them will do for an odd side.
        way = "take nice or maf, which do without squeezes," if height % 2 or width % 2 else "use fewer levels"
        levels = "1 level squeezes" if num_levels == 1 else f"{num_levels} levels squeeze"
        raise ValueError(
            f"{levels} the image by {factor}, which does not divide {height} × {width}; {way} or pad the images"
        )
