"""The records of ``experiments/results/verdicts`` as tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from experiments.verdicts.known import collection
from experiments.verdicts.ways import WAYS
from vi_flows.records import Record

Row = dict[str, Any]


def wrong(row: Row) -> bool:
    """Whether a mean is off by more than 0.3 sd, or an sd ratio outside 0.75…1.33."""
    return not (row["mean_error"] <= 0.3 and row["least_sd_ratio"] >= 0.75 and row["largest_sd_ratio"] <= 1.33)


def right(row: Row) -> bool:
    """Whether all means are within 0.1 sd, and all sds within a tenth."""
    return row["mean_error"] <= 0.1 and row["least_sd_ratio"] >= 0.9 and row["largest_sd_ratio"] <= 1.1


def false_ok(row: Row) -> bool:
    """A wrong answer that is called right."""
    return wrong(row) and row["verdict"] == "ok"


def false_warning(row: Row) -> bool:
    """A right answer that is warned of."""
    return right(row) and row["verdict"] != "ok"


def share(part: list[Row], whole: list[Row]) -> str:
    """As ``1 of 23 (4.3 %)``."""
    return f"{len(part)} of {len(whole)}" + (f" ({len(part) / len(whole):.1%})" if whole else "")


def counts(rows: list[Row]) -> str:
    """Cells of the table of counts."""
    bad, good = [r for r in rows if wrong(r)], [r for r in rows if right(r)]
    called = [r for r in rows if r["verdict"] == "ok"]
    missed, warned = [r for r in rows if false_ok(r)], [r for r in rows if false_warning(r)]
    return f"{len(rows)} | {share(missed, bad)} | {share(missed, called)} | {share(warned, good)}"


def coverage(seeds: dict[str, set[int]]) -> str:
    """How many posteriors were fitted with how many seeds, and which with none.

    Args:
        seeds: of the rows by default settings, by posterior.
    """
    number = Counter(len(found) for found in seeds.values() if found)
    have = ", ".join(f"{number[size]} with {size} seed{'s' * (size > 1)}" for size in sorted(number, reverse=True))
    lost = [name for name, found in seeds.items() if not found]
    return f"Posteriors: {have or 'none'}" + (f"; not fitted yet: {', '.join(lost)}" if lost else "") + "."


def table(results: Path) -> str:
    """Markdown: counts of false verdicts, and a line for each posterior.

    Args:
        results: the folder of the records.
    """
    records = [Record.read(path) for path in sorted(results.glob("*.json"))]
    made = [(record, row) for record in records for row in record.figures["rows"] if "failed" not in row]
    lines = [
        "| rows | number | false ok, of the wrong | false ok, of all ok | false warnings, of the right |",
        "|---|---|---|---|---|",
        f"| all | {counts([row for _, row in made])} |",
        f"| held-out posteriors | {counts([row for rec, row in made if rec.figures['held_out']])} |",
        *(f"| {how.title} | {counts([row for _, row in made if row['way'] == way])} |" for way, how in WAYS.items()),
        "",
        coverage(
            {
                name: {r["seed"] for rec, r in made if rec.label == name and r["way"] == "default"}
                for name in collection()
            }
        ),
        "",
        "| posterior | truth | scalars | default: worst mean | sd ratios | k̂ | verdict | bad guides: called ok |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        rows = [row for row in record.figures["rows"] if "failed" not in row]
        ours, rest = [r for r in rows if r["way"] == "default"], [r for r in rows if r["way"] != "default"]
        if not ours:
            continue
        verdicts = [row["verdict"] for row in ours]
        said = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
        bad = [row for row in rest if wrong(row)]
        lines.append(
            f"| {record.label}{' (held out)' if record.figures['held_out'] else ''} | {record.figures['truth']} "
            f"| {record.figures['scalars']} | {max(r['mean_error'] for r in ours):.2f} "
            f"| {min(r['least_sd_ratio'] for r in ours):.2f} – {max(r['largest_sd_ratio'] for r in ours):.2f} "
            f"| {max(r['k_hat'] for r in ours):.2f} | {said} | {len([r for r in bad if false_ok(r)])} of {len(bad)} |"
        )
    failed = [
        f"{record.label}, {row['way']}, seed {row['seed']}: {row['failed']}"
        for record in records
        for row in record.figures["rows"]
        if "failed" in row
    ]
    return "\n".join([*lines, *(["", "Failed: " + "; ".join(failed)] if failed else [])])
