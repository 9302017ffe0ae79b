"""The command ``vi-flows compare``: two models on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from tabulate import tabulate

from vi_flows.evaluation import paired_bootstrap
from vi_flows.records import Record, RecordError
from vi_flows.settings import Positive, Seed, check_settings
from vi_flows.training.errors import in_shell
from vi_flows.training.judged import judged
from vi_flows.training.kinds import KINDS

__all__ = ["Compare", "find_record"]

HASH = "the hash of the data"
RunOrRecord = Annotated[Path, tyro.conf.arg(metavar="RUN_OR_RECORD")]


@dataclass(frozen=True)
class Compare:
    """Say how much two evaluated models differ on the same images, by a paired bootstrap of their scores."""

    first: tyro.conf.Positional[RunOrRecord]
    """A record (.json), or the folder of a run with one record in its `results`."""
    second: tyro.conf.Positional[RunOrRecord]
    """Another one, of the same images."""
    score: str | None = None
    """Score to compare, such as nll, elbo or ais_nll; default: the first that both have."""
    resamples: Positive = 2000
    """Bootstrap samples."""
    seed: Seed = 0
    """Of the resampling."""

    def run(self) -> int:
        """Print both means, and their difference with its 95 % interval; exit code 0.

        Raises:
            RecordError: a record is missing or damaged, or has no scores of single images.
            ValueError: the records are not of the same images, or lack the score, or an option is out of its bounds.
        """
        check_settings(self)
        paths = find_record(self.first), find_record(self.second)
        records = Record.read(paths[0]), Record.read(paths[1])
        name = common_score(paths, records, self.score)
        first, second = (torch.from_numpy(record.scores[name]) for record in records)
        found = paired_bootstrap(first, second, resamples=self.resamples, seed=self.seed)
        rows = [
            (letter, record.label, f"{scores.double().mean():.4f}", path)
            for letter, record, scores, path in zip("AB", records, (first, second), paths, strict=True)
        ]
        print(tabulate(rows, ("", "model", f"mean {name}", "record"), disable_numparse=True))
        low, high = found.interval
        verdict = "the interval leaves 0 out" if found.distinct else "the interval holds 0"
        counted = KINDS[records[0].kind].rows if records[0].kind in KINDS else "rows"
        print(
            f"\nA − B: {found.difference:+.4f}, 95 % interval [{low:+.4f}, {high:+.4f}] over {found.num_rows} "
            f"{counted}: {verdict}"
        )
        for option, theirs in unequal_bounds(records, name).items():
            print(_said_of_bounds(name, option, theirs))
        return 0


def find_record(path: Path) -> Path:
    """The record that a path means: itself, or the one in the ``results`` of a run's folder.

    Raises:
        RecordError: there is none.
        ValueError: there are several.
    """
    if not path.is_dir():
        return path
    found = sorted((path / "results").glob("*.json"))
    if not found:
        raise RecordError(f"{path} has no record in its results: make one by vi-flows evaluate {in_shell(path)}")
    if len(found) > 1:
        raise ValueError(f"{path} has {len(found)} records, name one: {', '.join(map(str, found))}")
    return found[0]


def common_score(paths: tuple[Path, Path], records: tuple[Record, Record], asked: str | None) -> str:
    """The score that two records are compared by.

    Args:
        paths: of the records, to name them.
        records: both.
        asked: its name; ``None`` for the first that both have.

    Raises:
        RecordError: a record has no scores of single images.
        ValueError: there is no such score, or the records are not of the same images, or not of the same of them.
    """
    for path, record in zip(paths, records, strict=True):
        if not record.scores:
            raise RecordError(f"{path} has no scores of single images; evaluate the run again")
    first, second = records
    both = [name for name in first.scores if name in second.scores and not name.endswith("image")]
    if not both or (asked is not None and asked not in both):
        wanted = "a score" if asked is None else asked
        raise ValueError(f"the records don't both have {wanted}; both have: {', '.join(both) or 'none'}")
    name = both[0] if asked is None else asked
    of = [judged(record) for record in records]
    if of[0] is not None and of[1] is not None and of[0].scored != of[1].scored:
        raise ValueError(
            f"{name} is that of {of[0].scored} in {paths[0]} and of {of[1].scored} in {paths[1]}: "
            "likelihoods of different things have no difference; compare runs that score the same"
        )
    images = [_images(record, name) for record in records]
    for what, mine in images[0].items():
        # The same data may lie in several places.
        if what == "the data set" and images[0][HASH] == images[1][HASH] is not None:
            continue
        if mine != images[1][what]:
            raise ValueError(
                f"not the same images: {what} is {mine} in {paths[0]} and {images[1][what]} in {paths[1]}; evaluate "
                "both runs alike"
            )
    if not np.array_equal(first.images(name), second.images(name)):
        raise ValueError(
            f"not the same images: {name} is of others of them in {paths[0]} than in {paths[1]}; evaluate both runs "
            "alike"
        )
    return name


def unequal_bounds(records: tuple[Record, Record], score: str) -> dict[str, tuple[object, object]]:
    """The options of the evaluations in which two bounds differ in how close they come, with both values.

    Args:
        records: both.
        score: what is compared.
    """
    of = [judged(record) for record in records]
    if of[0] is None or of[1] is None:
        return {}
    first, second = of[0].evaluation.tightness(score), of[1].evaluation.tightness(score)
    both = ((option, (first.get(option), second.get(option))) for option in first | second)
    return {option: values for option, values in both if values[0] != values[1]}


def _said_of_bounds(score: str, option: str, theirs: tuple[object, object]) -> str:
    if None in theirs:
        letter, other, value = ("A", "B", theirs[0]) if theirs[1] is None else ("B", "A", theirs[1])
        return (
            f"{score} of {letter} is a bound, with {option} {value}, and that of {other} is exact or another bound, so "
            f"that the difference is not the models' alone; with a larger {option}, that of {letter} is tighter"
        )
    looser = "with fewer it is looser" if isinstance(theirs[0], int) else "they are not equally tight"
    return (
        f"{score} is a bound, and {option} is {theirs[0]} for A and {theirs[1]} for B: {looser}, so that the "
        f"difference is not the models' alone; evaluate both with the same {option}"
    )


def _images(record: Record, score: str) -> dict[str, object]:
    """What says which images were scored."""
    return {
        "the data set": record.settings.get("dataset"),
        HASH: record.provenance.get("data_sha256"),
        "the split": record.settings.get("evaluation", {}).get("split"),
        "the number of images": len(record.scores[score]),
    }
