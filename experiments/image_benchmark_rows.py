"""The benchmarks of image flows at equal computation: which rows, on which images, within which size and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vi_flows.distributions.image_config import image_config
from vi_flows.training import ImageTrainConfig

__all__ = ["BENCHMARKS", "Benchmark"]


@dataclass(frozen=True)
class Benchmark:
    """One table.

    Attributes:
        name: of its folders and figures.
        dataset: by its name in the registry; validation images choose the weights, test images are scored once.
        budget_seconds: CPU seconds that the steps of a run may use.
        max_parameters: of a density.
        seeds: that the table is made of.
        rows: by name the flow, and the peak of Adam's learning rate.
    """

    name: str
    dataset: str
    budget_seconds: float
    max_parameters: int
    seeds: tuple[int, ...]
    rows: Mapping[str, tuple[Mapping[str, Any], float]]

    @property
    def title(self) -> str:
        """``mnist: 1200 CPU seconds of one thread, at most 100,000 parameters``."""
        time = f"{self.budget_seconds:.0f} CPU seconds of one thread"
        return f"{self.name}: {time}, at most {self.max_parameters:,} parameters"

    def config(self, row: str, seed: int, data_root: Path | None) -> ImageTrainConfig:
        """The settings of one run."""
        flow, learning_rate = self.rows[row]
        return ImageTrainConfig(
            dataset=self.dataset, data_root=data_root, protocol="clean", image=image_config(**flow), seed=seed,
            threads=1, epochs=1000, batch_size=32, learning_rate=learning_rate, schedule="cosine",
            lr_warmup_steps=200, ema_decay=0.999, clip_norm=100.0, valid_images=1000,
        )  # fmt: skip


STEPS: dict[str, Any] = {"num_levels": 2, "num_steps": 6, "width": 52}
MASKED: dict[str, Any] = {"num_levels": 2, "num_couplings": 2, "width": 24, "num_blocks": 1}
OURS: dict[str, Any] = {"flow": "flow_pp", "num_levels": 2, "num_steps": 2, "conditioner": "gated"}
SMALL: dict[str, tuple[dict[str, Any], float]] = {
    "nice": ({"flow": "nice", "num_couplings": 4, "hidden_dims": (14, 14), "base": "logistic"}, 2e-3),
    "real_nvp": ({"flow": "real_nvp", "num_final": 0, **MASKED}, 5e-3),
    "mconv-cepstrum": ({"flow": "mconv", "filter": "cepstrum", **MASKED}, 5e-3),
    "mconv-kernel": ({"flow": "mconv", "filter": "kernel", **MASKED}, 5e-3),
    "mconv-cosine": ({"flow": "mconv", "filter": "cosine", **MASKED}, 5e-3),
    "glow": ({"flow": "glow", **STEPS}, 5e-3),
    "inv3x3-masked": ({"flow": "inv_conv3x3", "masked": True, **STEPS}, 5e-3),
    "inv3x3-block": ({"flow": "inv_conv3x3", **STEPS}, 5e-3),
    "inv3x3-quad": ({"flow": "inv_conv3x3", "coupling": "quad", **STEPS, "width": 28}, 5e-3),
    "inverse_flow": ({"flow": "inverse_flow", **STEPS}, 5e-3),
    "emerging": ({"flow": "emerging", **STEPS}, 5e-3),
    "periodic": ({"flow": "periodic", **STEPS}, 5e-3),
    "finc": ({"flow": "finc", **STEPS}, 5e-3),
    "flow_pp-mixture": ({**OURS, "coupling": "quad_mixture", "width": 25}, 4e-3),
    "flow_pp-mixture-attention": (
        {**OURS, "conditioner": "attention", "coupling": "quad_mixture", "width": 20}, 4e-3,
    ),
    "flow_pp-spline": ({**OURS, "coupling": "quad_spline", "width": 24}, 4e-3),
    "flow_pp-spline-vardeq": (
        {**OURS, "coupling": "quad_spline", "width": 22, "dequantization": "variational"}, 4e-3,
    ),
    "inv3x3-block-pixel_spline": ({"flow": "inv_conv3x3", "pixel_spline": 96, **STEPS}, 5e-3),
    "flow_pp-spline-pixel_spline": ({**OURS, "coupling": "quad_spline", "width": 24, "pixel_spline": 96}, 4e-3),
}  # fmt: skip

LARGE_MASKED: dict[str, Any] = {"num_levels": 2, "num_couplings": 4, "width": 41, "num_blocks": 2}
LARGE_OURS: dict[str, Any] = {**OURS, "num_steps": 4}
LARGE: dict[str, tuple[dict[str, Any], float]] = {
    "real_nvp": ({"flow": "real_nvp", "num_final": 0, **LARGE_MASKED}, 2e-3),
    "mconv-cepstrum": ({"flow": "mconv", "filter": "cepstrum", **LARGE_MASKED}, 2e-3),
    "flow_pp-mixture": ({**LARGE_OURS, "coupling": "quad_mixture", "width": 59}, 2e-3),
    "flow_pp-spline-pixel_spline": ({**LARGE_OURS, "coupling": "quad_spline", "width": 58, "pixel_spline": 96}, 2e-3),
}

D4: dict[str, Any] = {"num_levels": 3, "num_steps": 4}
"""Table 3 of Nagar et al. has three levels of D = 4."""
CIFAR: dict[str, tuple[dict[str, Any], float]] = {
    "glow": ({"flow": "glow", **D4, "width": 69}, 5e-3),
    "inv3x3-masked": ({"flow": "inv_conv3x3", "masked": True, **D4, "width": 51}, 5e-3),
    "inv3x3-block": ({"flow": "inv_conv3x3", **D4, "width": 53}, 5e-3),
    "inv3x3-quad": ({"flow": "inv_conv3x3", "coupling": "quad", **D4, "width": 27}, 5e-3),
    "emerging": ({"flow": "emerging", **D4, "width": 31}, 5e-3),
    "periodic": ({"flow": "periodic", **D4, "width": 51}, 5e-3),
    "finc": ({"flow": "finc", **D4, "width": 64}, 5e-3),
    "inv3x3-block-pixel_spline": ({"flow": "inv_conv3x3", "pixel_spline": 96, **D4, "width": 53}, 5e-3),
    "flow_pp-spline-pixel_spline": (
        {**OURS, "num_levels": 3, "coupling": "quad_spline", "width": 33, "pixel_spline": 96}, 4e-3,
    ),
}  # fmt: skip

BENCHMARKS: dict[str, Benchmark] = {
    each.name: each
    for each in (
        Benchmark("mnist", "mnist", 1200.0, 100_000, (0, 1, 2), SMALL),
        Benchmark("mnist-large", "mnist", 14_400.0, 1_000_000, (0,), LARGE),
        # Rows of one size but for 2 %: an order by bits/dim must not be one by parameters.
        Benchmark("cifar", "cifar10-jpeg.zip", 1200.0, 405_000, (0, 1, 2), CIFAR),
    )
}
"""The tables by name: MNIST within 20 CPU minutes and 100 thousand parameters, within 4 hours and a million, and a
subset of CIFAR-10 after a JPEG round trip within 20 minutes at equal numbers of parameters."""
