"""What the scores of a record are of, from the settings that are written in it."""

from __future__ import annotations

from typing import NamedTuple

from vi_flows.records import Record
from vi_flows.training.config import config_from_dict
from vi_flows.training.kinds import KINDS
from vi_flows.training.tasks.base import EvaluationSettings

__all__ = ["Judged", "judged"]


class Judged(NamedTuple):
    """What a model is a density of (:meth:`TrainConfig.scored`), and how it was evaluated."""

    scored: str
    evaluation: EvaluationSettings


def judged(record: Record) -> Judged | None:
    """What a record says of its scores; ``None`` where it is of no run, or its settings can't be read here."""
    if record.kind not in KINDS:
        return None
    kind = KINDS[record.kind]
    try:
        how = {name: value for name, value in record.settings.get("evaluation", {}).items() if name != "weights"}
        return Judged(kind.config.scored(record.settings), config_from_dict(kind.evaluation, how))
    except (ValueError, AttributeError, TypeError):  # of another version, or written by hand
        return None
