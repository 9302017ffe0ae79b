"""Sampling time of Glow, emerging, 3×3 and quad-coupling flows: ratios on one machine, in one process.

    python experiments/sampling_time.py --out experiments/results/sampling-time-cifar-d4.json

The counterpart of table 4 of Nagar et al., who timed Glow on a GPU and the others on one core, with a sequential
inverse. All models are timed in turn, round by round, by process CPU time at one thread; the ratio is the median over
rounds. Weights are random (the time does not depend on them), with actnorms initialized from random images.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import tyro

from vi_flows.bench.images import SAMPLERS, SamplerShape, build_sampler
from vi_flows.bench.measure import one_thread, seconds_in_turn
from vi_flows.cli.outcome import exit_with
from vi_flows.distributions.image import ImageDensity
from vi_flows.records import Record, provenance, row_key
from vi_flows.transforms import OneSidedConv2d
from vi_flows.transforms.image.solvers import RowSolver, solve_by_pixels


@dataclass(frozen=True)
class Options(SamplerShape):
    """Sizes and repetitions."""

    out: Path = Path("experiments/results/sampling-time.json")
    """Record to write."""
    num_images: int = 100
    """Images a draw."""
    repetitions: int = 5
    """Timed draws of each model."""
    seed: int = 0
    """Of weights and draws."""


@torch.no_grad()
def residual(density: ImageDensity, options: Options) -> float:
    """Largest ``|f(f⁻¹(z)) − z|`` over the latents of a draw, in float32."""
    z = torch.randn(8, *options.image_shape)
    return float((density.flow.inverse_and_ladj(density.flow.forward_and_ladj(z)[0])[0] - z).abs().max())


@torch.no_grad()
def inverse_times(options: Options) -> list[dict[str, float]]:
    """One 3×3 convolution at the size of each level, and its inverse: by the kernel in use, by rows, by pixels."""
    channels, height, width = options.image_shape
    rows = []
    for _ in range(options.num_levels):
        channels, height, width = 4 * channels, height // 2, width // 2
        layer = OneSidedConv2d(channels, init_scale=0.02).eval()
        images = torch.randn(options.num_images, channels, height, width)
        ways: dict[str, Callable[[], object]] = {
            "forward": lambda layer=layer, images=images: layer.forward_and_ladj(images),
            "inverse": lambda layer=layer, images=images: layer.inverse_and_ladj(images),
            "inverse_by_rows": partial(RowSolver.from_kernel(layer.kernel(), width).solve, images),
            "inverse_by_pixels": lambda layer=layer, images=images: solve_by_pixels(layer.kernel(), images),
        }
        times = seconds_in_turn(ways, options.repetitions)
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
    models = {name: build_sampler(name, options, options.seed) for name in SAMPLERS}
    draws = {name: partial(density.sample, options.num_images) for name, density in models.items()}
    seconds = seconds_in_turn(draws, options.repetitions)
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
    settings = {name: value for name, value in asdict(options).items() if name != "out"}
    figures = {
        "rows": rows,
        "one_convolution": inverse_times(options),
        "paper_seconds": {"glow (GPU)": 0.58, "emerging (1 core)": 18.4, "3x3 (1 core)": 9.3, "quad (1 core)": 10.8},
        "paper_setting": "CIFAR-10, L=3, D=32, 100 images",
    }
    with one_thread():
        made = provenance()
    Record(
        kind="sampling_time",
        key=row_key("sampling_time", settings),
        label="seconds a draw",
        settings=settings,
        figures=figures,
        provenance=made,
    ).write(options.out, overwrite=True)
    for row in rows:
        print(f"{row['model']:20s} {row['cpu_seconds']:8.3f} s  {row['ratio_to_glow']:6.3f} × Glow")
    print(options.out)


if __name__ == "__main__":
    exit_with("sampling_time", lambda words: main(tyro.cli(Options, args=words)))
