"""Generation that remembers against naive generation: ratios on one machine, at one thread.

    python experiments/generation_time.py --out experiments/results/generation-time.json

A naive draw costs a pass over the whole event for each of its entries. That would take hours, so one pass is timed, in
turn with whole draws of the other kind, and counted as often as the event has entries; drawing the entries themselves
is left out of the naive side. The time is process CPU time; the ratio is the median over rounds. Weights are random
(the time does not depend on them).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from vi_flows.autoregressive import (
    MADE,
    Autoregressive,
    Bernoulli,
    Categorical,
    DiagonalPixelRNN,
    GatedPixelCNN,
    PixelCNN,
    RowPixelRNN,
    WaveNet,
)
from vi_flows.bench.measure import one_thread, seconds_in_turn
from vi_flows.cli.outcome import exit_with
from vi_flows.records import Record, provenance, row_key


@dataclass(frozen=True)
class Options:
    """Sizes and repetitions."""

    out: Path = Path("experiments/results/generation-time.json")
    """Record to write."""
    image_side: int = 28
    """Height and width of the binary images."""
    num_images: int = 16
    """Images a draw."""
    audio_steps: int = 16000
    """Samples of the WaveNet's event: 2 s at 8 kHz."""
    width: int = 64
    """Features of the image models; the WaveNet has half of it."""
    num_layers: int = 7
    """Blocks or layers of the image models."""
    made_width: int = 8000
    """Hidden units of the MADE, of one layer."""
    repetitions: int = 3
    """Timed draws of each model."""
    seed: int = 0
    """Of weights and draws."""


def models(options: Options) -> dict[str, tuple[Autoregressive, int]]:
    """Models by name, with the events that are drawn at once."""
    torch.manual_seed(options.seed)
    image, n = (1, options.image_side, options.image_side), options.num_images
    families: dict[str, Callable[..., Autoregressive]] = {
        "pixel_cnn": PixelCNN,
        "gated_pixel_cnn": GatedPixelCNN,
        "diagonal_bilstm": DiagonalPixelRNN,
        "row_lstm": RowPixelRNN,
    }
    made = {
        name: (family(image, Bernoulli(), options.width, options.num_layers), n) for name, family in families.items()
    }
    made["made"] = MADE(image, Bernoulli(), (options.made_width,)), n
    return {**made, "wavenet": (WaveNet(options.audio_steps, Categorical(256), options.width // 2, options.width), 1)}


@torch.no_grad()
def measure(model: Autoregressive, rows: int, repetitions: int) -> dict[str, float | int | list[float]]:
    """Seconds of a draw that remembers, of one pass, and the ratio."""
    model.eval()
    context = torch.zeros(rows, 0)
    x = torch.zeros(rows, *model.event_shape)
    ways: dict[str, Callable[[], object]] = {
        "draw": lambda: model.generate(context),
        "pass": lambda: model.params(x, context),
    }
    times = seconds_in_turn(ways, repetitions)
    entries = model.event_shape.numel()
    ratios = [entries * one / draw for one, draw in zip(times["pass"], times["draw"], strict=True)]
    return {
        "events": rows,
        "entries": entries,
        "draw_seconds": round(statistics.median(times["draw"]), 4),
        "pass_seconds": round(statistics.median(times["pass"]), 4),
        "ratio": round(statistics.median(ratios), 1),
        "ratio_range": [round(min(ratios), 1), round(max(ratios), 1)],
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def main(options: Options) -> None:
    """Time and write the record."""
    rows = [{"model": name, **measure(*pair, options.repetitions)} for name, pair in models(options).items()]
    settings = {name: value for name, value in asdict(options).items() if name != "out"}
    with one_thread():
        made = provenance()
    Record(
        kind="generation_time",
        key=row_key("generation_time", settings),
        label="naive against remembering generation",
        settings=settings,
        figures={"rows": rows},
        provenance=made,
    ).write(options.out, overwrite=True)
    for row in rows:
        print(f"{row['model']:16s} {row['draw_seconds']:8.3f} s a draw of {row['events']}, naive {row['ratio']} ×")
    print(options.out)


if __name__ == "__main__":
    exit_with("generation_time", lambda words: main(tyro.cli(Options, args=words)))
