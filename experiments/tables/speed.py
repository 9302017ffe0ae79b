"""What things cost: ratios beside their goals, cached generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vi_flows.records import Record

__all__ = ["render_bench", "render_generation"]

RESULTS = Path(__file__).parents[1] / "results"


def render_bench() -> str:
    """The latest measurement of each ratio, floors and goals."""
    latest: dict[str, dict[str, Any]] = {}
    # A record may be of some goals alone (`--goals 4`), and must not hide the others' last measurements.
    for path in sorted((RESULTS / "bench").glob("*.json")):  # by time, which is their name
        measured = [row for row in Record.read(path).figures["rows"] if row.get("ratio") is not None]
        latest |= {row["name"]: row for row in measured if row.get("goal_number")}
    lines = ["| ratio of CPU times, one thread | measured | floor | goal |", "|---|---|---|---|"]
    for _, row in sorted(latest.items()):
        sign = "≤" if row["goal"] < row["floor"] else "≥"
        missed = ", **missed**" if row["verdict"] == "below" else ""
        lines.append(f"| {row['title']} | {row['ratio']:.2f}{missed} | {sign} {row['floor']} | {sign} {row['goal']} |")
    return "\n".join(lines)


def render_generation() -> str:
    """Cached against naive generation, a line a model."""
    lines = ["| model | drawn at once | entries | seconds | naive / cached | parameters |", "|---|---|---|---|---|---|"]
    for row in Record.read(RESULTS / "generation-time.json").figures["rows"]:
        low, high = row["ratio_range"]
        lines.append(
            f"| {row['model']} | {row['events']} | {row['entries']} | {row['draw_seconds']:.2f} "
            f"| {row['ratio']:.0f} ({low:.0f} – {high:.0f}) | {row['parameters']:,} |"
        )
    return "\n".join(lines)
