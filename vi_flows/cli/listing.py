"""The commands ``vi-flows runs`` and ``vi-flows results``: what there is, in tables and in a picture."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tabulate import tabulate

from vi_flows.plotting import save_intervals
from vi_flows.records import NoRecordError, Record, RecordError, to_json
from vi_flows.training.errors import in_shell
from vi_flows.training.judged import judged
from vi_flows.training.kinds import KINDS
from vi_flows.training.status import RunStatus, find_runs, status_of_run

__all__ = ["Results", "Runs"]


@dataclass(frozen=True)
class Runs:
    """List the runs of a folder: model, epoch, best validation, whether they are finished, running or interrupted."""

    folder: tyro.conf.Positional[Path] = Path("runs")
    """Folder of runs; those in folders within it are found too."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """Print the table; exit code 0.

        Raises:
            ValueError: there is no such folder.
        """
        found = [status_of_run(path) for path in find_runs(self.folder)]
        if self.json:
            print(to_json([_ready(status) for status in found], 2))
            return 0
        if not found:
            print(f"no run in {self.folder}; vi-flows train vae --out {self.folder}/first makes one")
            return 0
        head = ("run", "kind", "model", "data", "seed", "state", "epoch", "best validation", "records", "last written")
        print(tabulate([_row(status, self.folder) for status in found], head, disable_numparse=True))
        for status in found:
            if status.problem:
                print(f"vi-flows: {status.problem}", file=sys.stderr)
        states = [status.state for status in found]
        print("\n" + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))))
        stopped = next((status for status in found if status.state == "interrupted"), None)
        if stopped is not None:
            print(f"to go on: vi-flows train --resume {in_shell(stopped.folder)}")
        return 0


def _ready(status: RunStatus) -> dict[str, Any]:
    """For JSON: what there is none of is null."""
    found = {**asdict(status), "folder": str(status.folder)}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()}


def _row(status: RunStatus, above: Path) -> tuple[str, ...]:
    best = "–" if math.isnan(status.best) else f"{status.best:.3f}"
    ago = "–" if math.isnan(status.age) else f"{timedelta(seconds=round(status.age))} ago"
    return (
        str(status.folder.relative_to(above)), status.kind, status.label, status.dataset, str(status.seed),
        status.state, f"{status.epoch}/{status.epochs}", best, str(status.records), ago,
    )  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A record's figure with its interval."""

    label: str
    dataset: str
    split: str
    seed: int
    figure: str
    scored: str
    value: float
    low: float
    high: float
    rows: int
    path: Path


@dataclass(frozen=True)
class Results:
    """Show the records of evaluated runs as a table, best first, and as a picture of their intervals."""

    paths: tyro.conf.Positional[tuple[Annotated[Path, tyro.conf.arg(metavar="PATH")], ...]] = (Path("runs"),)
    """Records, or folders with records in them: runs, or what --record was given."""
    format: Literal["plain", "github", "csv", "latex"] = "plain"
    """Of the table: plain text, Markdown, comma-separated values, LaTeX."""
    picture: Path | None = None
    """Draw the intervals into this file too: .png, .svg or .pdf."""
    overwrite: bool = False
    """Replace that file where it exists."""

    def run(self) -> int:
        """Print the table; exit code 0.

        Raises:
            ValueError: a path is not there, there is no record, or no such kind of picture.
            RecordError: a record that was named is damaged.
        """
        endings = (".png", ".svg", ".pdf")
        if self.picture is not None and self.picture.suffix not in endings:
            raise ValueError(f"--picture must end in {', '.join(endings)}, got {self.picture}")
        if self.picture is not None:
            Record.refuse_to_replace(self.picture, self.overwrite)
        once = {result.path.resolve(): result for path in self.paths for result in _results(path)}
        found = sorted(once.values(), key=lambda r: (r.dataset, r.figure, r.scored, r.split, r.value))
        if not found:
            raise ValueError(
                f"no record of an evaluated run in {', '.join(map(str, self.paths))}: vi-flows evaluate RUN makes one"
            )
        names = _names(found)
        print(self._table(found, names))
        if self.picture is not None:
            groups: dict[str, list[tuple[str, float, float, float]]] = {}
            for r in found:
                group = f"{r.dataset} ({r.split}), {names[r.figure, r.scored]}"
                groups.setdefault(group, []).append((f"{r.label}, seed {r.seed}", r.value, r.low, r.high))
            print(save_intervals(groups, self.picture), file=sys.stderr)
        return 0

    def _table(self, found: Sequence[Result], names: Mapping[tuple[str, str], str]) -> str:
        head = ("data", "model", "seed", "figure", "value", "95 % interval", "rows", "record")
        rows = [
            (r.dataset if r.split == "test" else f"{r.dataset} ({r.split})", r.label, r.seed, names[r.figure, r.scored],
             f"{r.value:.4f}", "–" if math.isnan(r.low) else f"{r.low:.4f} – {r.high:.4f}", r.rows, r.path)
            for r in found
        ]  # fmt: skip
        if self.format == "csv":
            lines = io.StringIO()
            csv.writer(lines, lineterminator="\n").writerows([head, *rows])
            return lines.getvalue().rstrip()
        styles = {"plain": "simple", "github": "github", "latex": "latex_booktabs"}
        return tabulate(rows, head, tablefmt=styles[self.format], disable_numparse=True)


def _names(found: Sequence[Result]) -> dict[tuple[str, str], str]:
    """Figures in words, and where the same one is of different things, of what: by both."""
    words = {"nll": "NLL, nats", "bits_per_dim": "bits/dim", "bits_per_sample": "bits/sample"}
    pairs = {(r.figure, r.scored) for r in found}
    figures = [figure for figure, _ in pairs]
    return {
        (figure, scored): words[figure] + (f" of {scored or 'unknown things'}" if figures.count(figure) > 1 else "")
        for figure, scored in pairs
    }


def _results(path: Path) -> Iterator[Result]:
    """The records of runs that a path means; of a folder, those in it that are records of runs.

    Raises:
        ValueError: it is not there.
        RecordError: the path is that of a damaged record.
    """
    if path.is_file():
        yield _result(Record.read(path), path)
        return
    if not path.is_dir():
        raise ValueError(
            f"there is no record or folder {path}; name a record, a run, or a folder with either: vi-flows runs "
            "lists runs"
        )
    for file in sorted(path.rglob("*.json")):
        try:
            record = Record.read(file)
        except NoRecordError:
            continue  # another file that ends in .json
        except RecordError as error:
            print(f"vi-flows: left out: {error}", file=sys.stderr)
            continue
        if record.kind in KINDS:
            yield _result(record, file)


def _result(record: Record, path: Path) -> Result:
    figure = KINDS[record.kind].figure if record.kind in KINDS else ""
    if figure not in record.figures or "interval" not in record.figures:
        raise RecordError(
            f"{path} is no record of an evaluated run (it is of kind {record.kind!r}); vi-flows evaluate RUN writes one"
        )
    rows = int(record.figures.get("num_rows", 0))
    # Older versions gave one row an interval of width 0.
    low, high = record.figures["interval"] if rows != 1 else (math.nan, math.nan)
    of = judged(record)
    evaluation = record.settings.get("evaluation", {})
    return Result(
        record.label, str(record.settings.get("dataset")), evaluation.get("split", "test"),
        int(record.settings.get("seed", 0)), figure, "" if of is None else of.scored, record.figures[figure],
        low, high, rows, path,
    )  # fmt: skip
