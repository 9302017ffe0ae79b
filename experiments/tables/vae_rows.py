"""What stands in a line of the VAEs' tables: records of one model and several seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from experiments.tables.stages import stages
from vi_flows.records import Record

__all__ = ["RESULTS", "RowKey", "is_plain", "label_of", "mean_of", "rows_of", "sort_key", "vae_records"]

RESULTS = Path(__file__).parents[1] / "results"
RowKey = tuple[str | int, ...]
"""Data set, architecture, label, protocol, and the epochs of each run on the way to the weights."""
STARTS = {"dreg": "from DReG", "iwae": "from IWAE-5"}
"""What a label says of a row that goes on from a run of such an objective, by its name in the run's."""


def sort_key(record: Record) -> tuple:
    """Plain models, then ConvFlow, then other flows."""
    vae, settings = record.settings["vae"], record.settings
    flow = vae["flow"] or {"type": ""}
    family = {"": "0", "ConvFlow": "1"}.get(flow["type"], flow["type"])
    length = next((value for value in flow.values() if isinstance(value, int)), 0)
    return settings["objective"], vae["num_extra_layers"], family, vae["amortized"], length, settings["epochs"]


def label_of(record: Record) -> str:
    """The record's label, and what it went on from where that was trained by IWAE already."""
    source = record.provenance.get("started_from")
    begun = [text for objective, text in STARTS.items() if source is not None and objective in source["model"]]
    return ", ".join([record.label, *begun])


def mean_of(records: list[Record], value: Callable[[Record], float]) -> float:
    return statistics.fmean(map(value, records))


def is_plain(record: Record) -> bool:
    """Whether the model is the VAE that all others are measured by: the papers' sizes, no flow."""
    vae = record.settings["vae"]
    beyond = {"prior", "encoder_dims", "dropout"} & set(vae)  # left out of records at their defaults
    return vae["flow"] is None and not vae["num_extra_layers"] and not beyond


def rows_of(records: Iterable[Record]) -> dict[RowKey, list[Record]]:
    """Records of one line each, by seed, in the order of the tables."""
    rows: dict[RowKey, list[Record]] = {}
    for record in sorted(records, key=lambda record: (*sort_key(record), record.settings["seed"])):
        settings = record.settings
        place = settings["dataset"], settings["vae"]["architecture"], label_of(record), settings["protocol"]
        rows.setdefault((*place, *(epochs for epochs, _ in stages(record))), []).append(record)
    return rows


def vae_records() -> list[Record]:
    """Every row of the tables; the ablations are another folder's."""
    return [Record.read(path) for path in sorted((RESULTS / "vae").glob("*.json"))]
