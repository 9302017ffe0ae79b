"""What a flow gains over the plain VAE, image by image."""

from __future__ import annotations

from pathlib import Path

from experiments.tables.vae import label_of, sort_key
from vi_flows.records import Record

__all__ = ["render_gains"]

RESULTS = Path(__file__).parents[1] / "results"


def render_gains() -> str:
    """What a flow gains over the plain VAE of the same data, architecture, objective, protocol and seed, by images."""
    records = [Record.read(path) for path in sorted((RESULTS / "vae").glob("*.json"))]
    records = [record for record in records if "ais" in record.figures and record.settings["seed"] == 0]

    def group(record: Record) -> tuple[str, ...]:
        settings = record.settings
        return settings["dataset"], settings["vae"]["architecture"], settings["objective"], settings["protocol"]

    def is_plain(record: Record) -> bool:
        vae = record.settings["vae"]
        beyond = {"prior", "encoder_dims", "dropout"} & set(vae)  # left out of records at their defaults
        return vae["flow"] is None and not vae["num_extra_layers"] and not beyond

    plain = {group(record): record for record in records if is_plain(record)}
    lines = ["| data set, protocol | model | gain, nats an image | ± 1.96 standard errors |", "|---|---|---|---|"]
    for record in sorted(records, key=lambda record: (*group(record), sort_key(record))):
        if record.settings["vae"]["flow"] is None or group(record) not in plain:
            continue
        gains = plain[group(record)].scores["nll"].astype(float) - record.scores["nll"]
        mean, error = float(gains.mean()), 1.96 * float(gains.std(ddof=1)) / len(gains) ** 0.5
        dataset, architecture, _, protocol = group(record)
        lines.append(
            f"| {dataset}, {architecture.upper()}, {protocol} | {label_of(record)} | {mean:.2f} "
            f"| {mean - error:.2f} – {mean + error:.2f} |"
        )
    return "\n".join(lines)
