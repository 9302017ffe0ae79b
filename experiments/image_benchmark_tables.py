"""Tables of the benchmarks of image flows, from the figures of their records; see ``image_benchmark.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from vi_flows.evaluation.nll import student_half_width
from vi_flows.records import Record

__all__ = ["Figures", "by_row", "markdown_table", "mean_of", "paired_table", "published_bits", "read_figures"]

PUBLISHED = Path(__file__).with_name("published.json")

Figures = dict[str, Any]


def read_figures(folder: Path) -> list[Figures]:
    """Those of all records of a benchmark.

    Args:
        folder: of the records, a file a row and seed.

    Raises:
        ValueError: there is no record, or two were scored on different data: such numbers make no table.
    """
    records = {path: Record.read(path) for path in sorted(folder.glob("*.json"))}
    if not records:
        raise ValueError(f"no record in {folder}; see `run` and `render`")
    data = {record.provenance["data_sha256"]: path.stem for path, record in records.items()}
    if len(data) > 1:
        raise ValueError(
            f"records in {folder} were scored on different data, for example {' and '.join(sorted(data.values()))}; "
            "delete those of the data that you don't mean"
        )
    return [record.figures for record in records.values()]


def by_row(figures: Sequence[Figures]) -> dict[str, list[Figures]]:
    """Those of each row, one a seed, by seed."""
    rows: dict[str, list[Figures]] = {}
    for record in sorted(figures, key=lambda r: r["seed"]):
        rows.setdefault(record["row"], []).append(record)
    return rows


def mean_of(name: str, group: Sequence[Figures]) -> float:
    """Of one figure, over seeds."""
    return fmean(record[name] for record in group)


def published_bits(dataset: str, row: str) -> float | None:
    """The papers' bits/dim of a row's family, such as ``mconv`` of ``mconv-cepstrum``; ``None`` where there is none."""
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))["image"]["rows"]
    return published.get(f"{dataset}-{row.partition('-')[0]}")


def markdown_table(figures: Sequence[Figures], steps: Mapping[str, int]) -> str:
    """The table, best row first; intervals are over seeds (Student's t), or over test images for one seed.

    Args:
        figures: of a benchmark's records.
        steps: a row's by name; a run that had others says so.
    """
    lines = [
        "| row | bits/dim | ± 95 % | paper | seeds | parameters | CPU s | images seen | sampling, ms an image "
        "| finite | out of range | 0 or 255, beyond the data | round trip |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = by_row(figures)
    for row, group in sorted(rows.items(), key=lambda item: mean_of("bits_per_dim", item[1])):
        count, samples = len(group), [r["samples"] for r in group]
        half, note = student_half_width([r["bits_per_dim"] for r in group]), ""
        if count == 1:
            half, note = group[0]["half_width"], "†"
        least = min(r["num_images"] for r in group)
        partial = "" if all(map(_is_whole, group)) else f" ({least} images)"
        dataset = group[0]["benchmark"].partition("-")[0]
        trained = mean_of("steps", group) / steps[row]
        short = "" if abs(trained - 1) < 0.005 else f" ({100 * trained:.0f} % of the steps)"
        lines.append(
            f"| {row}{short} | {mean_of('bits_per_dim', group):.4f}{partial} | {half:.4f}{note} "
            f"| {published_bits(dataset, row) or '–'} | {count} | {group[0]['parameters']:,} "
            f"| {mean_of('cpu_seconds', group):.0f} | {mean_of('images_seen', group) / 1000:.0f} k "
            f"| {1000 * mean_of('cpu_seconds', samples):.1f} | {100 * mean_of('finite_images', samples):.1f} % "
            f"| {100 * mean_of('saturated_pixels', samples):.2f} % | {_beyond_the_data(group)} "
            f"| {max(r['round_trip_error'] for r in group):.0e} |"
        )
    if any(len(group) == 1 for group in rows.values()):
        lines += ["", "† one seed: the interval is over test images."]
    return "\n".join(lines)


def paired_table(figures: Sequence[Figures], reference: str, steps: Mapping[str, int]) -> str:
    """Each row's bits/dim less those of ``reference``, paired by seed; best row first.

    Runs of one seed see the same images in the same order, so that what an order does to all rows cancels.

    Args:
        figures: of a benchmark's records.
        reference: a row's name.
        steps: a row's by name; runs that had others are left out, and those that have not scored all test images.

    Raises:
        ValueError: the row has no such record.
    """
    whole = [record for record in figures if _is_whole(record) and record["steps"] == steps[record["row"]]]
    rows = {row: {r["seed"]: r["bits_per_dim"] for r in group} for row, group in by_row(whole).items()}
    if reference not in rows:
        raise ValueError(f"there is no record of {reference!r}; choose among {', '.join(sorted(rows)) or 'none'}")
    base = rows.pop(reference)
    pairs = {row: [bits[seed] - base[seed] for seed in bits if seed in base] for row, bits in rows.items()}
    lines = [
        f"| row | bits/dim less {reference}'s, seed by seed | mean | 95 % interval | settled |", "|---|---|---|---|---|"
    ]  # fmt: skip
    for row, values in sorted(((row, v) for row, v in pairs.items() if v), key=lambda item: fmean(item[1])):
        center = fmean(values)
        interval, settled = "–", "one seed"
        if len(values) > 1:
            half = student_half_width(values)
            interval = f"{center - half:.3f} … {center + half:.3f}"
            settled = "yes" if abs(center) > half else "no"
        each = ", ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {row} | {each} | {center:.3f} | {interval} | {settled} |".replace("-0.", "−0."))
    return "\n".join(lines)


def _is_whole(figures: Figures) -> bool:
    """Whether all test images are scored."""
    return bool(figures["num_images"] == figures["num_test_images"])


def _beyond_the_data(group: Sequence[Figures]) -> str:
    """By how much more of the samples' pixels than of the test images' are black or white; older records don't know."""
    counted = [r for r in group if "test_extreme_pixels" in r]
    if not counted:
        return "–"
    samples = mean_of("extreme_pixels", [r["samples"] for r in counted])
    return f"{100 * (samples - mean_of('test_extreme_pixels', counted)):+.2f} %"
