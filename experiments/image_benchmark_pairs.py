"""Rows of a benchmark of image flows beside one of them, seed by seed; see ``image_benchmark.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from vi_flows.evaluation.nll import student_half_width
from vi_flows.records import Record

__all__ = ["paired_table"]


def paired_table(records: Sequence[Record], reference: str, steps: Mapping[str, int]) -> str:
    """Each row's bits/dim less those of ``reference``, paired by seed; best row first.

    Runs of one seed see the same images in the same order, so that what an order does to all rows cancels.

    Args:
        records: of one benchmark.
        reference: a row's name.
        steps: a row's by name; runs that had others are left out, and those that have not scored all test images.

    Raises:
        ValueError: the row has no record, or two records were scored on different data.
    """
    rows: dict[str, dict[int, float]] = {}
    whole = [record for record in records if record.figures["num_images"] == record.figures["num_test_images"]]
    records = [record for record in whole if record.figures["steps"] == steps[record.figures["row"]]]
    data = {record.provenance["data_sha256"] for record in records}
    if len(data) > 1:
        raise ValueError(f"the records were scored on different data: {', '.join(sorted(map(str, data)))}")
    for record in records:
        rows.setdefault(record.figures["row"], {})[record.figures["seed"]] = record.figures["bits_per_dim"]
    if reference not in rows:
        raise ValueError(f"there is no record of {reference!r}; choose among {', '.join(sorted(rows)) or 'none'}")
    base = rows.pop(reference)
    found = {
        row: [bits[seed] - base[seed] for seed in sorted(bits.keys() & base.keys())]
        for row, bits in rows.items()
        if bits.keys() & base.keys()
    }
    lines = [
        f"| row | bits/dim less {reference}'s, seed by seed | mean | 95 % interval | settled |", "|---|---|---|---|---|"
    ]  # fmt: skip
    for row, values in sorted(found.items(), key=lambda item: fmean(item[1])):
        center = fmean(values)
        interval, settled = "–", "one seed"
        if len(values) > 1:
            half = student_half_width(values)
            interval = f"{center - half:.3f} … {center + half:.3f}"
            settled = "yes" if abs(center) > half else "no"
        each = ", ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {row} | {each} | {center:.3f} | {interval} | {settled} |".replace("-0.", "−0."))
    return "\n".join(lines)
