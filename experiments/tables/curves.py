"""How many steps the rows of the VAE tables take."""

from __future__ import annotations

from typing import Any

from experiments.learning_curves import RECORD, read

__all__ = ["render_curves", "steps_to"]

NEAR = (1.0, 0.5, 0.1)
"""Nats above the best validation bound."""


def steps_to(row: dict[str, Any], level: float) -> float | None:
    """The step at which the validation bound came to a level first; ``None`` where it never did.

    Args:
        row: a learning curve, ``steps`` and ``valid``.
        level: in nats, lower is better.
    """
    return next((step for step, valid in zip(row["steps"], row["valid"], strict=True) if valid <= level), None)


def render_curves() -> str:
    """Steps to near the best validation bound, and to the plain VAE's best."""
    rows = read(RECORD)
    plain = {(row["dataset"], row["architecture"]): min(row["valid"]) for row in rows.values() if row["label"] == "VAE"}
    near = " | ".join(f"to within {nats} of it" for nats in NEAR)
    lines = [
        f"| data set | model | best validation bound, nats | at step | {near} | to the plain VAE's best | of steps |",
        "|---|---|---|---|" + "---|" * (len(NEAR) + 2),
    ]
    for row in sorted(rows.values(), key=lambda row: (row["dataset"], row["architecture"], row["objective"])):
        best, place = min(row["valid"]), (row["dataset"], row["architecture"])
        steps = [steps_to(row, best + nats) for nats in NEAR]
        # Bounds of other objectives have other numbers of draws: they are no measure of each other.
        same = row["objective"] == "elbo" and row["label"] != "VAE" and place in plain
        steps += [steps_to(row, best), steps_to(row, plain[place]) if same else None]
        cells = ["–" if step is None else f"{step:,.0f}" for step in steps]
        at, beyond = cells[-2], cells[-1]
        lines.append(
            f"| {place[0]}, {place[1].upper()} | {row['label']} | {best:.2f} | {at} | {' | '.join(cells[:-2])} "
            f"| {beyond} | {row['steps'][-1]:,.0f} |"
        )
    return "\n".join(lines)
