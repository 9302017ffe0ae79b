"""The records of ``experiments/results/posteriordb`` as a table."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from vi_flows.records import Record

METHODS = ("AutoConvFlow", "AutoMultivariateNormal", "AutoIAFNormal", "NUTS")

Row = dict[str, Any]


def cells(row: Row | None) -> str:
    """Largest error of a mean, sd ratios and seconds of one method."""
    if row is None:
        return "–"
    if "failed" in row:
        return row["failed"].split(":")[0]
    ratios = f"{row['least_sd_ratio']:.2f} – {row['largest_sd_ratio']:.2f}"
    return f"{row['largest_mean_error']:.2f}; {ratios}; {row['cpu_seconds']:.1f} s"


def table(results: Path) -> str:
    """Markdown: a line a posterior, and the medians over the posteriors.

    Args:
        results: the folder of the records.
    """
    records = [Record.read(path) for path in sorted(results.glob("*.json"))]
    found = [(record, {row["method"]: row for row in record.figures["rows"]}) for record in records]
    lines = [
        "| posterior | scalars | AutoConvFlow | steps | quantiles | k̂ | verdict "
        "| AutoMultivariateNormal | AutoIAFNormal | NUTS 1000 + 1000 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record, rows in found:
        ours = rows.get("AutoConvFlow", {"failed": "–"})
        more = (
            "– | – | – | –" if "failed" in ours else
            f"{ours['steps']} | {ours['largest_quantile_error']:.2f} | {ours['k_hat']:.2f} | {ours['verdict']}"
        )  # fmt: skip
        theirs = " | ".join(cells(rows.get(name)) for name in METHODS[1:])
        lines.append(f"| {record.label} | {record.figures['scalars']} | {cells(ours)} | {more} | {theirs} |")
    totals = [summary([rows[name] for _, rows in found if name in rows]) for name in METHODS]
    lines.append(f"| **median** | | {totals[0]} | | | | | {' | '.join(totals[1:])} |")
    return "\n".join(lines)


def summary(rows: list[Row]) -> str:
    """Medians over the posteriors that a method has an answer for; how many it has none for."""
    good = [row for row in rows if "failed" not in row]
    if not good:
        return f"all {len(rows)} failed" if rows else "–"
    text = f"{median(r['largest_mean_error'] for r in good):.3f}; {median(r['cpu_seconds'] for r in good):.1f} s"
    return text + (f"; {len(rows) - len(good)} of {len(rows)} failed" if len(good) < len(rows) else "")
