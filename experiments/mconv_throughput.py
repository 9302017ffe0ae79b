"""Throughput of MCONV against affine couplings with the same conditioners: a ratio in one process.

    python experiments/mconv_throughput.py --out experiments/results/mconv-throughput.json

Both models have the skeleton of the table's rows and differ in the coupling's map (and in the width of the last 1×1
convolution: four maps a channel instead of two). A step is forward, log-determinant and backward at one thread, by
process CPU time; the two alternate, and medians are reported.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from vi_flows.cli.outcome import exit_with
from vi_flows.distributions import ImageDensity
from vi_flows.flows.image import MCONV, ImageRealNVP
from vi_flows.records import Record, provenance, row_key


@dataclass(frozen=True)
class Options:
    """Sizes and repetitions."""

    out: Path
    """Record to write."""
    width: int = 64
    """Feature maps of the residual networks."""
    num_blocks: int = 2
    """Residual blocks."""
    num_couplings: int = 2
    """Couplings a stage."""
    batch_size: int = 32
    """Images a step."""
    repetitions: int = 7
    """Timed steps of each model."""


def main(options: Options) -> None:
    """Time and write the record."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = (1, 28, 28)
    sizes = {"width": options.width, "num_blocks": options.num_blocks, "num_couplings": options.num_couplings}
    models = {
        "affine": ImageDensity(ImageRealNVP(num_final=0, **sizes).build(shape), shape),
        "mconv": ImageDensity(MCONV(**sizes).build(shape), shape),
        "mconv-cosine": ImageDensity(MCONV(filter="cosine", **sizes).build(shape), shape),
    }
    images = torch.randint(0, 256, (options.batch_size, *shape))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for repetition in range(options.repetitions + 1):
        for name, density in models.items():
            density.zero_grad()
            begun = time.process_time()
            density(images).mean().backward()
            if repetition > 0:
                seconds[name].append(time.process_time() - begun)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    settings = {name: value for name, value in asdict(options).items() if name != "out"}
    figures = {
        "cpu_seconds_per_step": {name: round(value, 5) for name, value in medians.items()},
        "ratio_to_affine": {name: round(value / medians["affine"], 4) for name, value in medians.items()},
        "parameters": {name: sum(p.numel() for p in density.parameters()) for name, density in models.items()},
    }
    Record(
        kind="mconv_throughput",
        key=row_key("mconv_throughput", settings),
        label="a training step, MCONV beside affine couplings",
        settings=settings,
        figures=figures,
        provenance=provenance(),
    ).write(options.out, overwrite=True)
    print(json.dumps(figures["ratio_to_affine"]), options.out)


if __name__ == "__main__":
    exit_with("mconv_throughput", lambda words: main(tyro.cli(Options, args=words)))
