"""Guides on posteriors: the gallery, posteriordb, the verdicts, hundreds of dimensions."""

from __future__ import annotations

from pathlib import Path

from experiments import high_dimension
from experiments.posteriordb import table as posteriordb
from experiments.verdicts import table as verdicts
from vi_flows.records import Record

__all__ = ["render_gallery", "render_high_dimension", "render_posteriordb", "render_verdicts"]

RESULTS = Path(__file__).parents[1] / "results"


def render_gallery() -> str:
    """Guides of each posterior of the gallery under a line of its reference draws."""
    lines = [
        "| posterior | guide | largest error of a mean, sd | sd ratios | ELBO | k̂ | verdict | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = [
        "eight_schools_noncentred", "eight_schools_centred", "kidscore", "logistic", "nile", "rats", "bnn",
    ]  # fmt: skip
    paths = [RESULTS / f"gallery-{name}.json" for name in names]
    for record in (Record.read(path) for path in paths if path.exists()):
        truth = record.figures["reference"]
        seconds = "–" if truth["seconds"] is None else f"{truth['seconds']:.0f}"
        lines.append(
            f"| **{record.label}** | {truth['source']}: R̂ ≤ {truth['max_r_hat']:.3f}, ESS ≥ {truth['min_ess']:.0f} "
            f"| | | | | | {seconds} |"
        )
        for row in record.figures["rows"]:
            if row["verdict"] == "diverged":
                lines.append(f"| | {row['guide']} | – | – | – | – | diverged | – |")
                continue
            lines.append(
                f"| | {row['guide']} | {row['max_mean_error_sd']:.2f} | {row['min_sd_ratio']:.2f} – "
                f"{row['max_sd_ratio']:.2f} | {row['elbo']:.2f} | {row['k_hat']:.2f} | {row['verdict']} "
                f"| {row['seconds']:.0f} |"
            )
    return "\n".join(lines)


def render_posteriordb() -> str:
    """Ours and Pyro's guides against reference draws."""
    return posteriordb.table(RESULTS / "posteriordb").rstrip()


def render_verdicts() -> str:
    """Counts of false verdicts, and a line for each posterior."""
    return verdicts.table(RESULTS / "verdicts").rstrip()


def render_high_dimension() -> str:
    """Hundreds of latents by default settings."""
    return high_dimension.table()
