"""Image densities from settings: one dataclass for every flow, and the papers' own settings as presets."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import torch

from vi_flows.distributions.dequantization import VariationalDequantizer
from vi_flows.distributions.image import ImageDensity
from vi_flows.flows.image import COUPLINGS, IMAGE_FLOWS
from vi_flows.settings import NonNegative, OneOf, Positive, PositiveFloat, check_settings

__all__ = ["PRESETS", "ImageFlowConfig", "build_image_density"]


@dataclass(frozen=True)
class ImageFlowConfig:
    """An image flow. What is not given comes from the preset, else from the flow's own defaults."""

    preset: str | None = None
    """The papers' settings by name, such as `inv_conv3x3-cifar10`."""
    flow: Annotated[str, OneOf(tuple(IMAGE_FLOWS))] | None = None
    """The flow; default: glow."""
    coupling: Annotated[str, OneOf(tuple(COUPLINGS))] | None = None
    """Coupling of glow and of the flows that are made like it."""
    conditioner: Literal["conv", "gated"] | None = None
    """Networks of glow and of the flows that are made like it."""
    num_levels: Positive | None = None
    """Levels L, each with one squeeze."""
    num_steps: Positive | None = None
    """Steps D a level of glow, inv_conv3x3 and emerging."""
    num_couplings: Positive | None = None
    """Couplings a stage of real_nvp and mconv; of all of nice."""
    num_final: NonNegative | None = None
    """Checkerboard couplings at the end of real_nvp and mconv."""
    width: Positive | None = None
    """Hidden channels of the convolutional networks."""
    num_blocks: Positive | None = None
    """Residual blocks of the networks of real_nvp and mconv."""
    hidden_dims: tuple[Positive, ...] | None = None
    """Hidden layers of the networks of nice."""
    scale: Literal["sigmoid", "tanh", "exp"] | None = None
    """Scale function of the couplings."""
    norm: Literal["act", "batch"] | None = None
    """Normalisation of real_nvp and mconv."""
    filter: Literal["cepstrum", "kernel", "cosine"] | None = None
    """Convolution of mconv."""
    bound: PositiveFloat | None = None
    """Largest log magnitude of the spectra of mconv."""
    kernel_size: Positive | None = None
    """Of the convolutions of inv_conv3x3 and emerging."""
    masked: bool | None = None
    """Triangular last tap of inv_conv3x3, as in the paper."""
    learned_prior: bool | None = None
    """Learned priors at the splits of glow, inv_conv3x3 and emerging."""
    multi_scale: bool | None = None
    """Factor out latents between levels of real_nvp and mconv."""
    alpha: PositiveFloat | None = None
    """Of the logit map; default: 1e-6 for one channel, 0.05 for more (the papers' MNIST and CIFAR-10)."""
    base: Literal["normal", "logistic"] | None = None
    """Base distribution; default: normal."""
    dequantization: Literal["uniform", "variational"] = "uniform"
    """Noise within the grey values: uniform, or learned with the flow."""
    checkpoint: bool = False
    """Recompute each step in the backward pass: less memory, more time."""
    mixed_precision: bool = False
    """Run the networks in bfloat16; the flow and its determinant stay in float32."""

    def __post_init__(self) -> None:
        check_settings(self)

    def resolved(self) -> dict[str, Any]:
        """All settings that were given, over those of the preset.

        Raises:
            ValueError: there is no such preset.
        """
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}; choose one of {', '.join(PRESETS)}")
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "preset"}
        values = {"flow": "glow", **(PRESETS[self.preset] if self.preset else {})}
        return {**values, **{name: value for name, value in own.items() if value is not None}}

    @property
    def name(self) -> str:
        """A short name for tables: ``inv_conv3x3-quad-l2-d4-w64``."""
        values = self.resolved()
        parts = [values["flow"]]
        parts += [str(values[key]) for key in ("coupling", "filter", "norm") if key in values]
        parts += ["masked"] if values.get("masked") else []
        letters = {"num_levels": "l", "num_steps": "d", "num_couplings": "c", "num_blocks": "b", "width": "w"}
        parts += [f"{letter}{values[key]}" for key, letter in letters.items() if key in values]
        return "-".join(parts + (["vardeq"] if self.dequantization == "variational" else []))


PRESETS: dict[str, dict[str, Any]] = {
    # Dinh et al. 2014, section 5.1: four couplings, five hidden layers of 1000, logistic base.
    "nice-mnist": {"flow": "nice", "num_couplings": 4, "hidden_dims": (1000,) * 5, "base": "logistic"},
    # Dinh et al. 2017, section 4.1: CIFAR-10 with eight residual blocks of 64 maps, batch norm.
    "real_nvp-cifar10": {
        "flow": "real_nvp", "num_levels": 1, "num_couplings": 3, "num_final": 4, "width": 64, "num_blocks": 8,
        "norm": "batch",
    },
    # Karami et al., section 5: four stages of eight flows, eight residual blocks of 64 maps.
    "mconv-mnist": {"flow": "mconv", "num_levels": 2, "num_couplings": 8, "width": 64, "num_blocks": 8},
    "mconv-cifar10": {"flow": "mconv", "num_levels": 2, "num_couplings": 8, "width": 64, "num_blocks": 8},
    # The same skeleton with affine couplings, for a comparison at equal size.
    "real_nvp-mnist": {
        "flow": "real_nvp", "num_levels": 2, "num_couplings": 8, "num_final": 0, "width": 64, "num_blocks": 8,
    },
    # Kingma & Dhariwal 2018, table 4.
    "glow-cifar10": {"flow": "glow", "num_levels": 3, "num_steps": 32, "width": 512},
    # Nagar et al., section 4.
    "inv_conv3x3-cifar10": {"flow": "inv_conv3x3", "num_levels": 3, "num_steps": 32, "width": 512, "masked": True},
    "inv_conv3x3-quad-cifar10": {
        "flow": "inv_conv3x3", "num_levels": 3, "num_steps": 32, "width": 512, "masked": True, "coupling": "quad",
    },
    "emerging-cifar10": {"flow": "emerging", "num_levels": 3, "num_steps": 32, "width": 512},
    "inv_conv3x3-imagenet32": {"flow": "inv_conv3x3", "num_levels": 3, "num_steps": 48, "width": 512, "masked": True},
    "inv_conv3x3-imagenet64": {"flow": "inv_conv3x3", "num_levels": 4, "num_steps": 48, "width": 512, "masked": True},
}  # fmt: skip
"""Models of the papers by name. Their training: MCONV Adam 5e-4, batch 128; 3×3 Adam 1e-3, 500 to 1000 epochs."""


def build_image_density(config: ImageFlowConfig, image_shape: Sequence[int], num_levels: int = 256) -> ImageDensity:
    """The density that the settings describe.

    Args:
        config: the settings.
        image_shape: ``(C, H, W)``.
        num_levels: number of grey values.

    Raises:
        ValueError: a setting was given that the flow does not have, or see the flow's factory.
    """
    values = config.resolved()
    factory = IMAGE_FLOWS[values.pop("flow")]
    density = {name: values.pop(name) for name in ("alpha", "base") if name in values}
    density.setdefault("alpha", 1e-6 if image_shape[0] == 1 else 0.05)
    variational = values.pop("dequantization") == "variational"
    values["conditioner_dtype"] = torch.bfloat16 if values.pop("mixed_precision") else None
    accepted = inspect.signature(factory).parameters
    foreign = sorted(set(values) - set(accepted))
    if foreign:
        raise ValueError(f"{factory.__name__} has no {', '.join(foreign)}; it takes {', '.join(accepted)}")
    dequantizer = VariationalDequantizer(image_shape[0], num_levels) if variational else None
    return ImageDensity(factory(image_shape, **values), image_shape, num_levels, dequantizer=dequantizer, **density)
