"""Image densities from settings: an image flow, and what joins it to the grey values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import torch
import tyro

from vi_flows.distributions.dequantization import VariationalDequantizer
from vi_flows.distributions.image import ImageDensity
from vi_flows.distributions.image_conditional import ConditionalImageDensity
from vi_flows.flows.image import IMAGE_FLOWS, IMAGE_PRESETS
from vi_flows.flows.image_base import ImageFlow
from vi_flows.flows.image_steps import Glow
from vi_flows.settings import LATER, NonNegative, PositiveFloat, SettingsError, check_known, check_settings
from vi_flows.transforms import Bijection, Chain, ConditionalChain, Inverse, PixelSpline

__all__ = ["ImageFlowConfig", "build_conditional_density", "build_image_density", "image_config"]

if TYPE_CHECKING:
    ImageFlowChoice = ImageFlow
else:
    # One of the registry, or of the papers' settings: its name and its settings end the command line.
    # Each has its own default, by which tyro tells the papers' settings from others of the same class.
    ImageFlowChoice = Union[  # noqa: UP007
        tuple(
            Annotated[type(flow), tyro.conf.subcommand(name, default=flow, prefix_name=False)]
            for name, flow in {**{name: kind() for name, kind in IMAGE_FLOWS.items()}, **IMAGE_PRESETS}.items()
        )
    ]


@dataclass(frozen=True)
class ImageFlowConfig:
    """An image flow and what joins it to the grey values."""

    flow: ImageFlowChoice = dataclasses.field(default_factory=Glow)
    """The flow, or a paper's by name, with its settings at the end of the line."""
    alpha: PositiveFloat | None = None
    """Of the logit map; None: 1e-6 for one channel, 0.05 for more (the papers' MNIST and CIFAR-10)."""
    dequantization: Literal["uniform", "variational"] = "uniform"
    """Noise within the grey values: uniform, or learned with the flow."""
    checkpoint: bool = False
    """Recompute each step in the backward pass: less memory, more time."""
    mixed_precision: bool = False
    """Run the networks in bfloat16; the flow and its determinant stay in float32."""
    pixel_spline: NonNegative = dataclasses.field(default=0, metadata=LATER)
    """Bins of an increasing spline of the logits, the same at every pixel, between images and flow; 0: none."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.pixel_spline == 1:
            raise SettingsError("pixel_spline must be 0 (none) or at least 2, got 1")

    @property
    def name(self) -> str:
        """A short name for tables: ``inv_conv3x3-quad-l2-d4-w64``."""
        spline = f"-spline{self.pixel_spline}" if self.pixel_spline else ""
        return f"{self.flow.name}-{self.flow.key}{spline}" + ("-vardeq" if self.dequantization == "variational" else "")


def image_config(flow: str, **settings: Any) -> ImageFlowConfig:
    """The configuration of a flow by name; settings are the flow's and the density's.

    Args:
        flow: in :data:`~vi_flows.flows.image.IMAGE_FLOWS` or :data:`~vi_flows.flows.image.IMAGE_PRESETS`.
        settings: by name.

    Raises:
        ValueError: there is no such flow, it has no such setting, or a value is out of bounds.
    """
    known = [*IMAGE_FLOWS, *IMAGE_PRESETS]
    if flow not in known:
        raise ValueError(f"unknown image flow {flow!r}; choose one of {', '.join(known)}")
    start = IMAGE_PRESETS.get(flow) or IMAGE_FLOWS[flow]()
    of_density = {item.name for item in dataclasses.fields(ImageFlowConfig)} - {"flow"}
    rest = {name: value for name, value in settings.items() if name in of_density}
    own = {name: value for name, value in settings.items() if name not in of_density}
    check_known(own, sorted(item.name for item in dataclasses.fields(start)), start.name)
    return ImageFlowConfig(dataclasses.replace(start, **own), **rest)


def build_image_density(config: ImageFlowConfig, image_shape: Sequence[int], num_levels: int = 256) -> ImageDensity:
    """The density that the settings describe.

    Args:
        config: the settings.
        image_shape: ``(C, H, W)``.
        num_levels: number of grey values.

    Raises:
        ValueError: the flow does not fit images of this shape.
    """
    rest = _around(config, image_shape, num_levels)
    flow: Bijection = config.flow.build(image_shape, config.checkpoint, _conditioner_dtype(config))
    if config.pixel_spline:
        flow = Chain([flow, _last(config, image_shape)])
    return ImageDensity(flow, image_shape, **rest)


def build_conditional_density(
    config: ImageFlowConfig, image_shape: Sequence[int], context_dim: int, num_levels: int = 256
) -> ConditionalImageDensity:
    """The densities that the settings describe for images given a context.

    Args:
        config: the settings.
        image_shape: ``(C, H, W)``.
        context_dim: length of the context, such as the number of classes.
        num_levels: number of grey values.

    Raises:
        ValueError: the flow does not fit images of this shape, or the context is empty.
    """
    rest = _around(config, image_shape, num_levels)
    flow = config.flow.build_conditional(image_shape, context_dim, config.checkpoint, _conditioner_dtype(config))
    if config.pixel_spline:
        flow = ConditionalChain([flow, _last(config, image_shape)])
    return ConditionalImageDensity(flow, image_shape, context_dim, **rest)


def _around(config: ImageFlowConfig, image_shape: Sequence[int], num_levels: int) -> dict[str, Any]:
    """What joins the flow to the grey values. It is built first: runs of before drew its initial weights first."""
    default_alpha = 1e-6 if image_shape[0] == 1 else 0.05
    variational = config.dequantization == "variational"
    return {
        "num_levels": num_levels,
        "alpha": default_alpha if config.alpha is None else config.alpha,
        "base": config.flow.base,
        "dequantizer": VariationalDequantizer(image_shape[0], num_levels) if variational else None,
    }


def _conditioner_dtype(config: ImageFlowConfig) -> torch.dtype | None:
    return torch.bfloat16 if config.mixed_precision else None


def _last(config: ImageFlowConfig, image_shape: Sequence[int]) -> Inverse:
    return Inverse(PixelSpline(image_shape[0], config.pixel_spline))
