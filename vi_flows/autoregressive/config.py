"""Autoregressive image models from settings: each model is a dataclass of its own settings, in one registry."""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

import torch
import tyro
from torch import Tensor

from vi_flows.autoregressive.base import Autoregressive
from vi_flows.autoregressive.ensemble import Ensemble
from vi_flows.autoregressive.gated_pixel_cnn import GatedPixelCNN
from vi_flows.autoregressive.made import MADE
from vi_flows.autoregressive.outputs import Bernoulli, Categorical, LogisticMixture, Output
from vi_flows.autoregressive.pixel_cnn import PixelCNN
from vi_flows.autoregressive.pixel_rnn import DiagonalPixelRNN, PixelRNN, RowPixelRNN
from vi_flows.settings import LATER, Bounds, NonNegative, Positive, SettingsError, check_settings, settings_from

__all__ = [
    "OUTPUTS", "PIXEL_MODELS", "Diagonal", "Gated", "Made", "PixelConfig", "PixelModel", "Residual", "Row",
    "build_pixel_model", "pixel_config",
]  # fmt: skip

OUTPUTS: dict[str, Callable[[int], Output]] = {
    "bernoulli": lambda _: Bernoulli(),
    "categorical": Categorical,
    "logistic_mixture": LogisticMixture,
}
"""Families of the conditionals by name, from the number of values that a pixel can take."""

SIZES = {"hidden_dims": "h", "width": "w", "num_blocks": "b", "num_layers": "l"}
"""Settings that stand in every name, and their letters."""


@dataclass(frozen=True, kw_only=True)
class PixelModel(ABC):
    """An autoregressive model of images. A family is one subclass and one entry of the registry.

    Attributes:
        name: in the registry, on the command line and in records.

    Raises:
        ValueError: a setting is of another type, or out of its bounds.
    """

    name: ClassVar[str]

    dropout: Annotated[float, Bounds(least=0, below=1)] = 0.0
    """Share of the hidden features that a training step leaves out."""

    def __post_init__(self) -> None:
        check_settings(self)

    @abstractmethod
    def build(self, image_shape: Sequence[int], output: Output, context_dim: int = 0) -> Autoregressive:
        """The model.

        Args:
            image_shape: ``(C, H, W)``.
            output: family of the conditionals.
            context_dim: size of the context vector.

        Raises:
            ValueError: see the model.
        """

    @property
    def num_in_turn(self) -> int:
        """Networks that take turns, of which a training step trains one."""
        return 1

    @property
    def has_fixed_step(self) -> bool:
        """Whether every training step computes the same, so that a recorded one can be replayed."""
        return self.num_in_turn == 1

    @property
    def sees_pixels(self) -> bool:
        """Whether a pixel's conditional depends on other pixels; without, only a latent or a context tells it apart."""
        return True

    @property
    def key(self) -> str:
        """The sizes, and what is not at its default: ``w128-b12-dropout0.1``."""
        sizes, words = [], []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
            if item.name in SIZES:
                sizes.append(f"{SIZES[item.name]}{text}")
            elif value != item.default:
                words.append(text if isinstance(value, str) else item.name if value is True else f"{item.name}{text}")
        return "-".join(sizes + words)


@dataclass(frozen=True, kw_only=True)
class Made(PixelModel):
    """MADE: an autoencoder with masks, over the flattened pixels."""

    name: ClassVar[str] = "made"

    hidden_dims: tuple[Positive, ...] = (500,)
    """Widths of the hidden layers."""
    activation: Literal["relu", "tanh", "elu", "softplus", "silu", "gelu"] = "relu"
    """Of the hidden layers."""
    direct: bool = False
    """Whether inputs are connected to outputs directly too."""
    num_masks: Positive = 1
    """1; or more, of drawn orders, for order-agnostic training and an ensemble."""
    order: Literal["natural", "random"] = dataclasses.field(default="natural", metadata=LATER)
    """Of one mask's pixels: row by row, or drawn once, as in the paper; several masks are drawn anyway. Of several
    networks: by rows, by columns, and both from the end, in turn; or each drawn."""
    num_networks: Positive = dataclasses.field(default=1, metadata=LATER)
    """1; or more, each of its own order and trained in its turn, for an ensemble that shares no weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_masks > 1 and self.order == "random":
            raise ValueError(f"the orders of {self.num_masks} masks are drawn anyway: leave order out")
        if min(self.num_masks, self.num_networks) > 1:
            raise ValueError(
                f"num_masks={self.num_masks} and num_networks={self.num_networks} are two ways to an ensemble: give one"
            )

    @property
    def num_in_turn(self) -> int:
        """The networks."""
        return self.num_networks

    def build(self, image_shape: Sequence[int], output: Output, context_dim: int = 0) -> MADE | Ensemble:
        """See :meth:`PixelModel.build`."""
        networks = [self._network(image_shape, output, context_dim) for _ in range(self.num_networks)]
        if self.num_networks == 1:
            return networks[0]
        for index, (network, scan) in enumerate(zip(networks, itertools.cycle(_scans(image_shape)), strict=False)):
            if self.order == "random":
                network.resample_masks(index)
            else:
                network.reorder(scan)
        return Ensemble(networks)

    def _network(self, image_shape: Sequence[int], output: Output, context_dim: int) -> MADE:
        return MADE(
            image_shape,
            output,
            hidden_dims=self.hidden_dims,
            activation=self.activation,
            direct=self.direct,
            context_dim=context_dim,
            num_masks=self.num_masks,
            dropout=self.dropout,
            natural_order=self.order == "natural",
        )


def _scans(image_shape: Sequence[int]) -> list[Tensor]:
    """Orders of an image's entries: by rows, by columns, and both from the end."""
    rows = torch.arange(math.prod(image_shape))
    columns = rows.reshape(*image_shape).transpose(-1, -2).flatten()
    return [rows, columns, rows.flip(0), columns.flip(0)]


@dataclass(frozen=True, kw_only=True)
class _Raster(PixelModel):
    """What the convolutional and recurrent models share."""

    width: Positive = 64
    """Features."""
    first_kernel: Positive = 7
    """Side of the first kernel, odd; by 1 no pixel sees another one, which is for the decoder of a VAE alone."""

    @property
    def sees_pixels(self) -> bool:
        """See :attr:`PixelModel.sees_pixels`; the first kernel leaves out the pixel itself."""
        return self.first_kernel > 1


@dataclass(frozen=True, kw_only=True)
class Residual(_Raster):
    """PixelCNN: masked convolutions in residual blocks."""

    name: ClassVar[str] = "pixel_cnn"

    num_blocks: NonNegative = 7
    """Residual blocks."""
    kernel_size: Positive = 3
    """Side of the blocks' kernels, odd."""

    def build(self, image_shape: Sequence[int], output: Output, context_dim: int = 0) -> PixelCNN:
        """See :meth:`PixelModel.build`."""
        return PixelCNN(
            image_shape,
            output,
            width=self.width,
            num_blocks=self.num_blocks,
            first_kernel=self.first_kernel,
            kernel_size=self.kernel_size,
            context_dim=context_dim,
            dropout=self.dropout,
        )


@dataclass(frozen=True, kw_only=True)
class Gated(_Raster):
    """Gated PixelCNN: a vertical and a horizontal stack, without a blind spot."""

    name: ClassVar[str] = "gated_pixel_cnn"

    num_layers: NonNegative = 7
    """Layers after the first."""
    kernel_size: Positive = 3
    """Side of their kernels, odd."""

    def build(self, image_shape: Sequence[int], output: Output, context_dim: int = 0) -> GatedPixelCNN:
        """See :meth:`PixelModel.build`."""
        return GatedPixelCNN(
            image_shape,
            output,
            width=self.width,
            num_layers=self.num_layers,
            first_kernel=self.first_kernel,
            kernel_size=self.kernel_size,
            context_dim=context_dim,
            dropout=self.dropout,
        )


@dataclass(frozen=True, kw_only=True)
class _Recurrent(_Raster):
    """What the two PixelRNNs share."""

    num_layers: NonNegative = 7
    """Recurrent layers."""

    def options(self) -> dict[str, Any]:
        """The model's own arguments by name."""
        return {
            "width": self.width,
            "num_layers": self.num_layers,
            "first_kernel": self.first_kernel,
            "dropout": self.dropout,
        }


@dataclass(frozen=True, kw_only=True)
class Diagonal(_Recurrent):
    """PixelRNN with diagonal BiLSTMs: every pixel sees all pixels before it."""

    name: ClassVar[str] = "diagonal_bilstm"

    def build(self, image_shape: Sequence[int], output: Output, context_dim: int = 0) -> PixelRNN:
        """See :meth:`PixelModel.build`."""
        return DiagonalPixelRNN(image_shape, output, context_dim=context_dim, **self.options())


@dataclass(frozen=True, kw_only=True)
class Row(_Recurrent):
    """PixelRNN with row LSTMs: a pixel sees a triangle above it."""

    name: ClassVar[str] = "row_lstm"

    def build(self, image_shape: Sequence[int], output: Output, context_dim: int = 0) -> PixelRNN:
        """See :meth:`PixelModel.build`."""
        return RowPixelRNN(image_shape, output, context_dim=context_dim, **self.options())


PIXEL_MODELS: dict[str, type[PixelModel]] = {model.name: model for model in (Made, Residual, Gated, Diagonal, Row)}
"""Models of images by name."""

if TYPE_CHECKING:
    PixelModelChoice = PixelModel
else:
    # One of the registry: its name and its settings end the command line.
    PixelModelChoice = Union[  # noqa: UP007
        tuple(
            Annotated[model, tyro.conf.subcommand(name, default=model(), prefix_name=False)]
            for name, model in PIXEL_MODELS.items()
        )
    ]


@dataclass(frozen=True)
class PixelConfig:
    """An autoregressive model of images, and the family of its conditionals.

    Raises:
        SettingsError: a setting is out of its bounds, or no pixel would see another one.
    """

    model: PixelModelChoice = dataclasses.field(default_factory=Gated)
    """The model, with its settings at the end of the line; diagonal_bilstm and row_lstm are the two PixelRNNs."""
    output: Literal["bernoulli", "categorical", "logistic_mixture"] = "bernoulli"
    """bernoulli: binary pixels, in nats; categorical: a softmax over grey values; logistic_mixture: five
    logistic distributions cut into the grey values' bins."""

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.model.sees_pixels:
            raise SettingsError(
                f"first_kernel must be at least 3 in a {self.model.name} of its own: by 1 no pixel sees another one"
            )

    @property
    def name(self) -> str:
        """A short name for tables: ``made-h500``, ``pixel_cnn-w128-b12``."""
        return "-".join([self.model.name, *([] if self.output == "bernoulli" else [self.output]), self.model.key])


def pixel_config(
    model: str, output: Literal["bernoulli", "categorical", "logistic_mixture"] = "bernoulli", **settings: Any
) -> PixelConfig:
    """The configuration of a model by name.

    Args:
        model: in :data:`PIXEL_MODELS`.
        output: see :class:`PixelConfig`.
        settings: the model's, by name.

    Raises:
        ValueError: there is no such model, it has no such setting, or a value is out of bounds.
    """
    if model not in PIXEL_MODELS:
        raise ValueError(f"unknown model {model!r}; choose one of {', '.join(PIXEL_MODELS)}")
    return PixelConfig(settings_from(PIXEL_MODELS[model], settings, model), output)


def build_pixel_model(
    config: PixelConfig, image_shape: Sequence[int], num_levels: int = 2, context_dim: int = 0
) -> Autoregressive:
    """The model that the settings describe.

    Args:
        config: the settings.
        image_shape: ``(C, H, W)``.
        num_levels: number of values that a pixel can take.
        context_dim: size of the context vector.

    Raises:
        ValueError: see the model.
    """
    return config.model.build(image_shape, OUTPUTS[config.output](num_levels), context_dim)
