"""VAEs: likelihoods beside the papers', changes of the recipe, what the encoder's guesses cost."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vi_flows.records import Record

__all__ = ["render_refined", "render_vae"]

RESULTS = Path(__file__).parents[1] / "results"
PUBLISHED = RESULTS.with_name("published.json")
DATASETS = {"binarized_mnist": "mnist", "omniglot28": "omniglot", "chardata": "omniglot"}
"""And what the papers' numbers are under."""
ABLATION = re.compile(r"ablation-binarized_mnist-g1-(?P<model>plain|amortized-k4-tanh)-(?P<change>.+)-e[0-9+]+-s[0-9]+")
STARTS = {"dreg": "from DReG", "iwae": "from IWAE-5"}
"""What a label says of a row that goes on from a run of such an objective, by its name in the run's."""


def sort_key(record: Record) -> tuple:
    """Plain models, then ConvFlow, then other flows."""
    vae, settings = record.settings["vae"], record.settings
    flow = vae["flow"] or {"type": ""}
    family = {"": "0", "ConvFlow": "1"}.get(flow["type"], flow["type"])
    length = next((value for value in flow.values() if isinstance(value, int)), 0)
    return settings["objective"], vae["num_extra_layers"], family, vae["amortized"], length, settings["epochs"]


def stages(record: Record) -> list[tuple[int, int]]:
    """Epochs and steps of each run on the way to a record's weights, first to last."""
    found = [(record.settings["epochs"], record.figures["steps"])]
    source = record.provenance.get("started_from")
    while source is not None:
        found.insert(0, (source["epoch"], source["steps"]))
        source = source["started_from"]
    return found


def label_of(record: Record) -> str:
    """The record's label, and what it went on from where that was trained by IWAE already."""
    source = record.provenance.get("started_from")
    begun = [text for objective, text in STARTS.items() if source is not None and objective in source["model"]]
    return ", ".join([record.label, *begun])


def mean_of(records: list[Record], value: Callable[[Record], float]) -> float:
    return statistics.fmean(map(value, records))


def annealed(records: list[Record]) -> str:
    """NLL minus what annealing finds beyond the importance samples of the same images, and how many images."""
    with_ais = [record for record in records if "ais" in record.figures]
    if not with_ais:
        return "–"
    nll = mean_of(with_ais, lambda record: record.figures["nll"] - record.figures["ais"]["gap"])
    return f"{nll:.2f} ({with_ais[0].figures['ais']['num_rows']})"


def vae_table(records: list[Record], published: dict[str, Any], dataset: str, architecture: str) -> list[str]:
    """A line a row; seeds are averaged, and the interval over images is that of the first."""
    paper = DATASETS[dataset]
    lines = [
        f"**{dataset}, {architecture.upper()}** (test NLL in nats, lower is better)",
        "",
        "| model | paper (2000 epochs) | ours | 95 % interval | by AIS (images) | −ELBO | k̂ > 0.7 "
        "| protocol, epochs, steps, seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows: dict[Any, list[Record]] = {}
    for record in sorted(records, key=lambda record: (*sort_key(record), record.settings["seed"])):
        key = (label_of(record), record.settings["protocol"], *(epochs for epochs, _ in stages(record)))
        rows.setdefault(key, []).append(record)
    for seeds in rows.values():
        first = seeds[0]
        theirs = "–" if first.paper_row is None else f"{published['rows'][first.paper_row][paper][architecture]:.2f}"
        nll = mean_of(seeds, lambda record: record.figures["nll"])
        spread = f" ± {statistics.stdev(r.figures['nll'] for r in seeds):.2f}" if len(seeds) > 1 else ""
        low, high = first.figures["interval"]
        epochs, steps = (" + ".join(map(str, numbers)) for numbers in zip(*stages(first), strict=True))
        lines.append(
            f"| {label_of(first)} | {theirs} | {nll:.2f}{spread} | {low:.2f} – {high:.2f} | {annealed(seeds)} "
            f"| {mean_of(seeds, lambda record: -record.figures['elbo']):.2f} "
            f"| {100 * mean_of(seeds, lambda record: record.figures['share_k_hat_above_0.7']):.0f} % "
            f"| {first.settings['protocol']}, {epochs}, {steps}, {len(seeds)} |"
        )
    return lines


def ablation_table(records: list[tuple[Path, Record]]) -> str:
    """Changes of the recipe by their NLL on the validation images, best first for each model."""
    lines = [
        "**Changes of the recipe** (binarized_mnist, G1; NLL of the validation images in nats)",
        "",
        "| model | recipe | NLL | epochs | steps | training seconds, device |",
        "|---|---|---|---|---|---|",
    ]
    rows = [(record, ABLATION.fullmatch(path.stem)) for path, record in records]
    for record, named in sorted(
        rows, key=lambda row: (row[0].settings["vae"]["flow"] is not None, row[0].figures["nll"])
    ):
        epochs, steps = (" + ".join(map(str, numbers)) for numbers in zip(*stages(record), strict=True))
        seconds = record.provenance["training_seconds"]
        lines.append(
            f"| {named['model']} | {named['change']}, seed {record.settings['seed']} | {record.figures['nll']:.2f} "
            f"| {epochs} | {steps} | {seconds:.0f}, {record.provenance['device']} |"
        )
    return "\n".join(lines)


def render_vae() -> str:
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    records = [Record.read(path) for path in sorted((RESULTS / "vae").glob("*.json"))]
    blocks: list[str] = []
    for dataset in DATASETS:
        for architecture in ("g1", "g2"):
            asked = (dataset, architecture)
            mine = [r for r in records if (r.settings["dataset"], r.settings["vae"]["architecture"]) == asked]
            if mine:
                blocks.append("\n".join(vae_table(mine, published, dataset, architecture)))
    ablations = [(path, Record.read(path)) for path in sorted((RESULTS / "vae" / "ablation").glob("*.json"))]
    if ablations:
        blocks.append(ablation_table(ablations))
    return "\n\n".join(blocks) if blocks else "No records yet."


def render_refined() -> str:
    """What the encoder's guesses cost: the bound before and after the guide was fitted to each image."""
    folders = (RESULTS / name for name in ("vae", "refined"))
    records = [Record.read(path) for folder in folders for path in sorted(folder.glob("*.json"))]
    lines = [
        "| data set | model | −ELBO | refined | amortisation gap | NLL | refined | steps, samples, images |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        if "refined" not in record.figures:
            continue
        figures, refined, settings = record.figures, record.figures["refined"], record.settings
        low, high = refined["elbo_gain_interval"]
        lines.append(
            f"| {settings['dataset']}, {settings['vae']['architecture'].upper()} | {label_of(record)} "
            f"| {-figures['elbo']:.2f} | {-refined['elbo']:.2f} | {refined['elbo_gain']:.2f} ({low:.2f} – {high:.2f}) "
            f"| {figures['nll']:.2f} | {refined['nll']:.2f} "
            f"| {refined['steps']}, {figures['num_samples']}, {figures['num_rows']} |"
        )
    return "\n".join(lines)
