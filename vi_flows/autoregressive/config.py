"""Autoregressive image models from settings: one dataclass for every model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from vi_flows.autoregressive.base import Autoregressive
from vi_flows.autoregressive.gated_pixel_cnn import GatedPixelCNN
from vi_flows.autoregressive.made import MADE
from vi_flows.autoregressive.outputs import Bernoulli, Categorical, LogisticMixture, Output
from vi_flows.autoregressive.pixel_cnn import PixelCNN
from vi_flows.autoregressive.pixel_rnn import DiagonalPixelRNN, RowPixelRNN
from vi_flows.settings import NonNegative, NonNegativeFloat, Positive, check_settings

__all__ = ["OUTPUTS", "PIXEL_MODELS", "PixelConfig", "build_pixel_model"]

PIXEL_MODELS: dict[str, Callable[..., Autoregressive]] = {
    "made": MADE,
    "pixel_cnn": PixelCNN,
    "gated_pixel_cnn": GatedPixelCNN,
    "diagonal_bilstm": DiagonalPixelRNN,
    "row_lstm": RowPixelRNN,
}
"""Models of images by name."""

OUTPUTS: dict[str, Callable[[int], Output]] = {
    "bernoulli": lambda _: Bernoulli(),
    "categorical": Categorical,
    "logistic_mixture": LogisticMixture,
}
"""Families of the conditionals by name, from the number of values that a pixel can take."""


@dataclass(frozen=True)
class PixelConfig:
    """An autoregressive model of images. What is not given comes from the model's own defaults."""

    model: Literal["made", "pixel_cnn", "gated_pixel_cnn", "diagonal_bilstm", "row_lstm"] = "gated_pixel_cnn"
    """The model; diagonal_bilstm and row_lstm are the two PixelRNNs."""
    output: Literal["bernoulli", "categorical", "logistic_mixture"] = "bernoulli"
    """bernoulli: binary pixels, in nats; categorical: a softmax over grey values; logistic_mixture: five
    logistic distributions cut into the grey values' bins."""
    hidden_dims: tuple[Positive, ...] | None = None
    """Widths of the hidden layers of made."""
    activation: Literal["relu", "tanh", "elu", "softplus", "silu", "gelu"] | None = None
    """Of made."""
    direct: bool | None = None
    """Whether inputs of made are connected to outputs directly too."""
    num_masks: Positive | None = None
    """Masks of made: 1, the natural order; or more, drawn, for order-agnostic training and an ensemble."""
    width: Positive | None = None
    """Features of the convolutional and recurrent models."""
    num_blocks: NonNegative | None = None
    """Residual blocks of pixel_cnn."""
    num_layers: NonNegative | None = None
    """Layers of gated_pixel_cnn after the first; recurrent layers of diagonal_bilstm and row_lstm."""
    first_kernel: Positive | None = None
    """Side of the first kernel of the convolutional and recurrent models, odd."""
    kernel_size: Positive | None = None
    """Side of the other kernels of the convolutional models, odd."""
    dropout: NonNegativeFloat | None = None
    """Share of the hidden features that a training step leaves out."""

    def __post_init__(self) -> None:
        check_settings(self)

    def options(self) -> dict[str, Any]:
        """The settings that were given, but the names of model and output."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("model", "output")}
        return {name: value for name, value in own.items() if value is not None}

    @property
    def name(self) -> str:
        """A short name for tables: ``made-h500``, ``pixel_cnn-w128-b12``."""
        values = self.options()
        parts: list[str] = [self.model] + ([] if self.output == "bernoulli" else [self.output])
        parts += ["h" + "x".join(map(str, values["hidden_dims"]))] if "hidden_dims" in values else []
        parts += ["direct"] if values.get("direct") else []
        letters = {"num_masks": "m", "width": "w", "num_blocks": "b", "num_layers": "l", "dropout": "dropout"}
        return "-".join(parts + [f"{letter}{values[key]}" for key, letter in letters.items() if key in values])


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
        ValueError: a setting was given that the model does not have, or see the model.
    """
    factory, values = PIXEL_MODELS[config.model], config.options()
    accepted = [name for name in inspect.signature(factory).parameters if name in {f.name for f in fields(config)}]
    foreign = sorted(set(values) - set(accepted))
    if foreign:
        raise ValueError(f"{config.model} has no {', '.join(foreign)}; it takes {', '.join(accepted)}")
    return factory(image_shape, OUTPUTS[config.output](num_levels), context_dim=context_dim, **values)
