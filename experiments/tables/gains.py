"""What a model gains over the plain VAE, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from experiments.tables.paired import paired_scores
from experiments.tables.stages import stages
from experiments.tables.vae_rows import RowKey, is_plain, rows_of, vae_records
from vi_flows.evaluation.nll import bootstrap_intervals
from vi_flows.records import Record

__all__ = ["Gain", "gains", "render_gains"]


@dataclass(frozen=True)
class Gain:
    """Nats an image below the plain VAE; printed with its interval, and with the seeds where there are several.

    Attributes:
        mean: over images and seeds.
        interval: 95 % percentile interval over images, of the paired bootstrap of ``vi-flows compare``.
        num_images: that both were scored on.
        num_seeds: that both were trained with; scores are averaged over them before images are drawn.
    """

    mean: float
    interval: tuple[float, float]
    num_images: int
    num_seeds: int

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.mean:.2f}, {low:.2f} – {high:.2f}".replace("-", "−")


def comparable(record: Record) -> tuple[str | int, ...]:
    """What two records have in common that are set against each other: also how long they were trained."""
    settings = record.settings
    particles, architecture = settings.get("num_particles", 1), settings["vae"]["architecture"]
    length = settings["epochs"], len(stages(record))
    return settings["dataset"], architecture, settings["objective"], particles, settings["protocol"], *length


def gains(records: Sequence[Record], score: str) -> dict[RowKey, Gain]:
    """By row: the plain VAE's score less the row's, for rows whose plain VAE has the same settings and seeds.

    Args:
        records: all, with the plain VAEs.
        score: of single images, such as ``nll``; where the two are of different images, those that both have count.

    Raises:
        ValueError: records of one data set were made with different data.
    """
    rows = rows_of(records)
    plain: dict[tuple[str | int, ...], list[list[Record]]] = {}
    for seeds in rows.values():
        if is_plain(seeds[0]):
            plain.setdefault(comparable(seeds[0]), []).append(seeds)
    paired: dict[RowKey, list[np.ndarray]] = {}
    for key, seeds in rows.items():
        # Runs before the last one differ in the epoch that validation chose; far apart, they had other lengths too.
        total = _epochs(seeds[0])
        measures = plain.get(comparable(seeds[0]), [])
        nearest = min(measures, key=lambda found: abs(_epochs(found[0]) - total), default=[])
        base = {record.settings["seed"]: record for record in nearest}
        pairs = [(base[record.settings["seed"]], record) for record in seeds if record.settings["seed"] in base]
        pairs = [pair for pair in pairs if all(record.scores and score in record.scores for record in pair)]
        if pairs and not is_plain(seeds[0]):
            paired[key] = [_difference(*pair, score) for pair in pairs]
    found: dict[RowKey, Gain] = {}
    # Rows of as many images share their resamples, which are most of the work.
    for size in {len(each[0]) for each in paired.values()}:
        keys = [key for key, each in paired.items() if len(each[0]) == size]
        means = torch.from_numpy(np.stack([np.mean(paired[key], axis=0) for key in keys]))
        for key, values, interval in zip(keys, means, bootstrap_intervals(means), strict=True):
            found[key] = Gain(values.mean().item(), interval, size, len(paired[key]))
    return found


def _epochs(record: Record) -> int:
    """Of all runs on the way to a record's weights."""
    return sum(epochs for epochs, _ in stages(record))


def _difference(plain: Record, other: Record, score: str) -> np.ndarray:
    ours, theirs = paired_scores(plain, other, score)
    return ours - theirs


def render_gains() -> str:
    """Every row beside the plain VAE of its group: by importance samples, and by annealing."""
    records = vae_records()
    rows, samples, annealed = rows_of(records), gains(records, "nll"), gains(records, "ais_nll")
    lines = [
        "| data set, protocol | model | by 5000 samples: nats, 95 % interval (images) "
        "| by AIS: nats, 95 % interval (images) | seeds |",
        "|---|---|---|---|---|",
    ]
    for key in sorted(samples, key=lambda key: (key[0], key[1], key[3], -samples[key].mean)):
        cells = [f"{each[key]} ({each[key].num_images})" if key in each else "–" for each in (samples, annealed)]
        dataset, architecture, label, protocol = key[:4]
        lines.append(
            f"| {dataset}, {str(architecture).upper()}, {protocol} | {label} | {' | '.join(cells)} "
            f"| {samples[key].num_seeds} of {len(rows[key])} |"
        )
    return "\n".join(lines)
