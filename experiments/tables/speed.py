"""What things cost: ratios beside their goals, cached generation."""

from __future__ import annotations

from pathlib import Path

from vi_flows.records import Record

__all__ = ["render_bench", "render_generation"]

RESULTS = Path(__file__).parents[1] / "results"


def render_bench() -> str:
    """Ratios of the latest measurement, floors and goals."""
    latest = max((RESULTS / "bench").glob("*.json"))
    lines = ["| ratio of CPU times, one thread | measured | floor | goal |", "|---|---|---|---|"]
    for row in Record.read(latest).figures["rows"]:
        if row.get("goal_number") and row.get("ratio") is not None:
            sign = "≤" if row["goal"] < row["floor"] else "≥"
            missed = ", **missed**" if row["verdict"] == "below" else ""
            lines.append(
                f"| {row['title']} | {row['ratio']:.2f}{missed} | {sign} {row['floor']} | {sign} {row['goal']} |"
            )
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
