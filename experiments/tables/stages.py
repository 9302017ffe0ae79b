"""The runs on the way to a record's weights, where it started from another run's."""

from __future__ import annotations

from typing import Any

from vi_flows.records import Record

__all__ = ["stages", "starts"]


def starts(record: Record) -> list[dict[str, Any]]:
    """What a record says of each run that it went on from, first to last."""
    found: list[dict[str, Any]] = []
    source = record.provenance.get("started_from")
    while source is not None:
        found.insert(0, source)
        source = source["started_from"]
    return found


def stages(record: Record) -> list[tuple[int, int]]:
    """Epochs and steps of each run on the way to a record's weights, first to last."""
    earlier = [(source["epoch"], source["steps"]) for source in starts(record)]
    return [*earlier, (record.settings["epochs"], record.figures["steps"])]
