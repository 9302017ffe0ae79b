"""VAEs: likelihoods beside the papers', changes of the recipe, what the encoder's guesses cost."""

from __future__ import annotations

import json
import statistics
from typing import Any

from experiments.tables.ablations import ablation_table, ablations_in
from experiments.tables.gains import Gain, gains
from experiments.tables.stages import stages
from experiments.tables.vae_rows import RESULTS, RowKey, label_of, mean_of, rows_of, vae_records
from vi_flows.records import Record

__all__ = ["render_refined", "render_vae"]

PUBLISHED = RESULTS.with_name("published.json")
DATASETS = {"binarized_mnist": "mnist", "omniglot28": "omniglot", "chardata": "omniglot"}
"""And what the papers' numbers are under."""


def annealed(records: list[Record]) -> tuple[str, str]:
    """NLL less what annealing finds beyond the samples of the same images; and that gap, with how many images.

    Data may be sorted (static MNIST's test images begin with a thousand zeros): the gap of the first images is theirs
    alone, and says nothing of the NLL of all.
    """
    with_ais = [record for record in records if "ais" in record.figures]
    if not with_ais:
        return "–", "–"
    gap = mean_of(with_ais, lambda record: record.figures["ais"]["gap"])
    nll = mean_of(with_ais, lambda record: record.figures["nll"])
    first = with_ais[0].figures["ais"]
    low, high = first["gap_interval"]
    spread = all(of_all(record) for record in with_ais)
    images = f"{'' if spread else 'first '}{first['num_rows']}"
    return f"{nll - gap:.2f}" if spread else "–", f"{gap:.2f}, {low:.2f} – {high:.2f} ({images})"


def of_all(record: Record) -> bool:
    """Whether the annealed images are all, or spread over all."""
    return "ais_image" in record.scores or record.figures["ais"]["num_rows"] == record.figures["num_rows"]


def vae_table(
    rows: dict[RowKey, list[Record]], published: dict[str, Any], gained: dict[RowKey, Gain], place: tuple[str, str]
) -> list[str]:
    """A line a row; seeds are averaged, and the intervals over images of figures are those of the first."""
    dataset, architecture = place
    paper = DATASETS[dataset]
    lines = [
        f"**{dataset}, {architecture.upper()}** (test NLL in nats, lower is better)",
        "",
        "| model | paper (2000 epochs) | ours, 5000 samples | 95 % interval | by AIS | samples − AIS (images) "
        "| below the plain VAE | −ELBO | k̂ > 0.7 | protocol, epochs, steps, seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, seeds in rows.items():
        if key[:2] != place:
            continue
        first = seeds[0]
        theirs = "–" if first.paper_row is None else f"{published['rows'][first.paper_row][paper][architecture]:.2f}"
        nll = mean_of(seeds, lambda record: record.figures["nll"])
        spread = f" ± {statistics.stdev(r.figures['nll'] for r in seeds):.2f}" if len(seeds) > 1 else ""
        low, high = first.figures["interval"]
        by_ais, gap = annealed(seeds)
        epochs, steps = (" + ".join(map(str, numbers)) for numbers in zip(*stages(first), strict=True))
        lines.append(
            f"| {label_of(first)} | {theirs} | {nll:.2f}{spread} | {low:.2f} – {high:.2f} | {by_ais} | {gap} "
            f"| {gained.get(key, '–')} "
            f"| {mean_of(seeds, lambda record: -record.figures['elbo']):.2f} "
            f"| {100 * mean_of(seeds, lambda record: record.figures['share_k_hat_above_0.7']):.0f} % "
            f"| {first.settings['protocol']}, {epochs}, {steps}, {len(seeds)} |"
        )
    return lines


def render_vae() -> str:
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    records = vae_records()
    rows, gained = rows_of(records), gains(records, "nll")
    blocks: list[str] = []
    for dataset in DATASETS:
        for architecture in ("g1", "g2"):
            place = dataset, architecture
            if any(key[:2] == place for key in rows):
                blocks.append("\n".join(vae_table(rows, published, gained, place)))
    if changes := ablations_in():
        blocks.append(ablation_table(changes))
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
