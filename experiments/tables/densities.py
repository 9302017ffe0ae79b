"""Densities of images and of recorded speech: flows, autoregressive models, VAEs with autoregressive decoders."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.image_benchmark_rows import BENCHMARKS
from experiments.image_benchmark_tables import markdown_table as benchmark_table
from experiments.image_benchmark_tables import paired_table, read_figures
from experiments.image_rows import markdown_table
from experiments.image_stability import stability_table
from experiments.tables.stages import starts
from vi_flows.records import Record
from vi_flows.training.tasks.classes import in_short

__all__ = ["render_image_pairs", "render_images", "render_pixel", "render_pixel_vae", "render_stability", "render_wave"]

RESULTS = Path(__file__).parents[1] / "results"
PUBLISHED = RESULTS.with_name("published.json")
BENCHMARK_RECORDS = RESULTS / "image_benchmark"
IMAGE_SETS = {
    "mnist": "MNIST, 28×28×1, uniform dequantisation",
    "digits": "scikit-learn's digits, 8×8×1, 17 levels",
    "cifar": "16 000 CIFAR-10 images after a JPEG round trip: a comparison side by side, not the published benchmark",
}


def render_images() -> str:
    """Image flows: the benchmarks that have records, and a table a data set of rows without a budget of time."""
    blocks = []
    for benchmark in BENCHMARKS.values():
        folder = BENCHMARK_RECORDS / benchmark.name
        if any(folder.glob("*.json")):
            blocks.append(
                f"**Benchmark {benchmark.title}**\n\n{benchmark_table(read_figures(folder), benchmark.steps)}"
            )
    blocks += [f"**{title}**\n\n{markdown_table(RESULTS, name)}" for name, title in IMAGE_SETS.items()]
    return "\n\n".join(blocks)


def render_image_pairs() -> str:
    """The rows of CIFAR's benchmark beside Glow, and beside 3×3 blocks with a spline of the pixels, seed by seed."""
    table = BENCHMARKS["cifar"]
    figures = read_figures(BENCHMARK_RECORDS / table.name)
    return "\n\n".join(paired_table(figures, row, table.steps) for row in ("glow", "inv3x3-block-pixel_spline"))


def render_stability() -> str:
    """Samples and inverses of image flows, with the bounds of before and with today's."""
    return stability_table(RESULTS / "image_stability")


def published_pixel_row(record: Record) -> str:
    """The name of the papers' row that belongs beside a model of pixels, whether or not there is a number for it."""
    model = record.settings["pixel"]["model"]
    family = record.label.partition("-")[0]
    return f"{family}-ensemble" if max(model.get("num_masks", 1), model.get("num_networks", 1)) > 1 else family


def trained_on(record: Record) -> str:
    """Minutes of training and the kind of device, which are read with the figure; and of what it started from."""
    minutes = record.provenance["training_seconds"] / 60
    device = "GPU" if record.settings["device"].startswith("cuda") else "one core"
    earlier = sum(source["seconds"] for source in starts(record)) / 60
    return f"{minutes:.0f} min, {device}{f', from weights of {earlier:.0f} min' if earlier else ''}"


def epochs_of(record: Record) -> str:
    """Epochs of the weights and of the run, each after those of the runs that it started from."""
    earlier = [source["epoch"] for source in starts(record)]
    return ", ".join(
        " + ".join(map(str, [*earlier, last]))
        for last in (record.figures["epoch_of_weights"], record.settings["epochs"])
    )


def render_pixel() -> str:
    """Autoregressive models of images: exact negative log-likelihoods."""
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))["pixel"]["rows"]
    lines = [
        "| data set | model | paper | ours: NLL, nats | 95 % interval | parameters | epochs: of weights, of the run "
        "| trained |",
        "|---|---|---|---|---|---|---|---|",
    ]
    records = [Record.read(path) for path in sorted((RESULTS / "pixel").glob("*.json"))]
    for record in sorted(records, key=lambda record: (record.settings["dataset"], record.figures["nll"])):
        figures, settings = record.figures, record.settings
        low, high = figures["interval"]
        known = settings["dataset"] == "binarized_mnist" and "num_classes" not in figures
        paper = published.get(published_pixel_row(record)) if known else None
        lines.append(
            f"| {settings['dataset']} | {record.label}{in_short(figures)} "
            f"| {'–' if paper is None else f'{paper:.2f}'} | {figures['nll']:.2f} "
            f"| {low:.2f} – {high:.2f} | {figures['parameters']:,} | {epochs_of(record)} | {trained_on(record)} |"
        )
    return "\n".join(lines)


def render_wave() -> str:
    """WaveNets: bits a sample of recorded speech, beside a trigram model's."""
    lines = [
        "| data set | model | bits/sample | 95 % interval | trigram model | samples seen | parameters | epochs "
        "| trained |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in (Record.read(path) for path in sorted((RESULTS / "wave").glob("*.json"))):
        figures, settings = record.figures, record.settings
        low, high = figures["interval"]
        lines.append(
            f"| {settings['dataset']} | {record.label} | {figures['bits_per_sample']:.3f} | {low:.3f} – {high:.3f} "
            f"| {figures['trigram_bits_per_sample']:.3f} | {figures['receptive_field']} "
            f"| {figures['parameters']:,} | {settings['epochs']} | {trained_on(record)} |"
        )
    return "\n".join(lines)


def render_pixel_vae() -> str:
    """VAEs with autoregressive decoders: the bound, its parts, and what the latent tells."""
    lines = [
        "| data set | model | NLL, nats (samples) | 95 % interval | −ELBO | KL | latent's worth | protocol, steps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in (Record.read(path) for path in sorted((RESULTS / "pixel_vae").glob("*.json"))):
        figures, settings = record.figures, record.settings
        low, high = figures["interval"]
        worth = figures["reconstruction_of_others"] - figures["reconstruction"]
        lines.append(
            f"| {settings['dataset']} | {record.label} | {figures['nll']:.2f} ({figures['num_samples']}) "
            f"| {low:.2f} – {high:.2f} | {-figures['elbo']:.2f} | {figures['kl']:.2f} | {worth:.2f} "
            f"| {settings['protocol']}, {figures['steps']} |"
        )
    return "\n".join(lines)
