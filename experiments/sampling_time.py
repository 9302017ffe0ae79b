"""Sampling time of Glow, emerging, 3×3 and quad-coupling flows: ratios on one machine, in one process.

    python experiments/sampling_time.py --out experiments/results/sampling-time-cifar-d4.json

The counterpart of table 4 of Nagar et al., who timed Glow on a GPU and the others on one core, with a sequential
inverse. All models are timed in turn, round by round, by process CPU time at one thread; the ratio is the median over
rounds. Weights are random (the time does not depend on them), with actnorms initialised from random images.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from vi_flows.distributions.image import ImageDensity
from vi_flows.image_flows import emerging, glow, inv_conv3x3
from vi_flows.train.records import describe_device
from vi_flows.train.run import git_revision
from vi_flows.transforms import Bijection, OneSidedConv2d
from vi_flows.transforms.inv_conv import solve_by_pixels


@dataclass(frozen=True)
class Options:
    """Sizes and repetitions."""

    out: Path
    """Record to write."""
    image_shape: tuple[int, int, int] = (3, 32, 32)
    """(C, H, W)."""
    num_levels: int = 3
    """L."""
    num_steps: int = 4
    """D."""
    width: int = 512
    """Hidden channels of the networks."""
    num_images: int = 100
    """Images a draw."""
    repetitions: int = 5
    """Timed draws of each model."""
    seed: int = 0
    """Of weights and draws."""


MODELS: dict[str, Callable[..., Bijection]] = {
    "glow": glow,
    "emerging": emerging,
    "inv_conv3x3": inv_conv3x3,
    "inv_conv3x3-masked": lambda *args, **kwargs: inv_conv3x3(*args, masked=True, **kwargs),
    "inv_conv3x3-quad": lambda *args, **kwargs: inv_conv3x3(*args, coupling="quad", **kwargs),
}


def build(factory: Callable[..., Bijection], options: Options) -> ImageDensity:
    """A model with random weights: taps and last layers are drawn, for they start at zero."""
    torch.manual_seed(options.seed)
    flow = factory(options.image_shape, options.num_levels, options.num_steps, options.width)
    density = ImageDensity(flow, options.image_shape, alpha=0.05)
    with torch.no_grad():
        for module in density.modules():
            if isinstance(module, OneSidedConv2d):
                module.taps.normal_(std=0.02)
        for parameter in density.parameters():
            if parameter.dim() == 4 and not parameter.any():
                parameter.normal_(std=0.01)
    density.initialize(torch.randint(0, 256, (32, *options.image_shape)))
    return density.eval()


@torch.no_grad()
def residual(density: ImageDensity, options: Options) -> float:
    """Largest ``|f(f⁻¹(z)) − z|`` over the latents of a draw, in float32."""
    z = torch.randn(8, *options.image_shape)
    return float((density.flow.inverse_and_ladj(density.flow.forward_and_ladj(z)[0])[0] - z).abs().max())


@torch.no_grad()
def inverse_times(options: Options) -> list[dict[str, float]]:
    """One 3×3 convolution at the size of each level: its inverse by rows and by pixels, against its forward pass."""
    channels, height, width = options.image_shape
    rows = []
    for _ in range(options.num_levels):
        channels, height, width = 4 * channels, height // 2, width // 2
        layer = OneSidedConv2d(channels, init_scale=0.02).eval()
        images = torch.randn(options.num_images, channels, height, width)
        ways: dict[str, Callable[[], object]] = {
            "forward": lambda layer=layer, images=images: layer.forward_and_ladj(images),
            "inverse_by_rows": lambda layer=layer, images=images: layer.inverse_and_ladj(images),
            "inverse_by_pixels": lambda layer=layer, images=images: solve_by_pixels(layer.kernel(), images),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for repetition in range(options.repetitions + 1):
            for name, way in ways.items():
                begun = time.process_time()
                way()
                if repetition > 0:
                    times[name].append(time.process_time() - begun)
        small = channels * height * width <= 4096  # the condition number is that of a dense matrix
        rows.append(
            {
                "shape": [channels, height, width],
                **{f"{name}_ms": round(1e3 * statistics.median(t), 3) for name, t in times.items()},
                "condition_number": round(layer.condition_number(height, width), 3) if small else None,
            }
        )
        channels //= 2
    return rows


def main(options: Options) -> None:
    """Time and write the record."""
    torch.set_num_threads(1)
    models = {name: build(factory, options) for name, factory in MODELS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for repetition in range(options.repetitions + 1):
        for name, density in models.items():
            begun = time.process_time()
            density.sample(options.num_images)
            if repetition > 0:  # the first round warms up
                seconds[name].append(time.process_time() - begun)
    # Each draw against Glow's of the same round: what else the machine does changes slowly, and cancels.
    ratios = {name: [t / g for t, g in zip(times, seconds["glow"], strict=True)] for name, times in seconds.items()}
    rows = [
        {
            "model": name,
            "cpu_seconds": round(statistics.median(times), 4),
            "ratio_to_glow": round(statistics.median(ratios[name]), 4),
            "ratio_range": [round(min(ratios[name]), 4), round(max(ratios[name]), 4)],
            "parameters": sum(p.numel() for p in models[name].parameters()),
            "round_trip_error_float32": residual(models[name], options),
        }
        for name, times in seconds.items()
    ]
    record = {
        "experiment": "sampling_time",
        "rows": rows,
        "one_convolution": inverse_times(options),
        "settings": {**asdict(options), "out": None},
        "device": describe_device("cpu"),
        "torch": torch.__version__,
        "revision": git_revision(),
        "paper_seconds": {"glow (GPU)": 0.58, "emerging (1 core)": 18.4, "3x3 (1 core)": 9.3, "quad (1 core)": 10.8},
        "paper_setting": "CIFAR-10, L=3, D=32, 100 images",
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        print(f"{row['model']:20s} {row['cpu_seconds']:8.3f} s  {row['ratio_to_glow']:6.3f} × Glow")
    print(options.out)


if __name__ == "__main__":
    main(tyro.cli(Options))
