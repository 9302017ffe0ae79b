"""The record of a mutation run: what ``tests/mutation.py`` drew, what was killed, and the survivors by name.

    python tests/mutation.py --sample 60 --seed 2 --spend 40 --files vi_flows/diagnostics/*.py … --json a.json
    python tests/mutation.py --again a.json --tests tests/diagnostics/test_by_hand.py … --json a-again.json
    python -m experiments.mutation_record a.json b.json --again a-again.json

A mutant counts as killed where the first run or the second killed it: the first looks at the quickest tests of a line
for ``--spend`` seconds, the second at the tests that are named. ``EQUIVALENT`` says which survivors change no result.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vi_flows.records import Record, provenance, row_key

RESULT = Path(__file__).parent / "results" / "mutation.json"
EQUIVALENT = {
    ("diagnostics/diagnose.py", 299): "two draws in one pass or one after the other: the same weights",
    ("diagnostics/elsewhere.py", 154): "the first step's length, which the next steps correct",
    ("evaluation/psis.py", 112): "guards a division where a quartile is zero",
    ("evaluation/psis.py", 115): "a constant that the softmax takes out",
    ("training/loop.py", 241): "how often the progress bar shows the bound",
    ("training/tasks/pixel.py", 168): "a progress bar",
    ("vae/config.py", 31): "the subcommands have the same names",
    ("vae/model.py", 149): "validate_args: the same value, checked",
    ("vae/vae.py", 114): "two draws of which the first is used",
    ("vae/evidence.py", 160): "the modulus of seeds below 2⁶³",
    ("objectives/gradient_estimators.py", 93): "the score of sites that were refused before",
    ("objectives/gradient_estimators.py", 144): "a size that is set next",
    ("objectives/direct.py", 24): "a protocol's default",
}
"""Survivors that change no result, by file and line of the revision that was mutated."""


@dataclass(frozen=True)
class Options:
    """What to put together."""

    reports: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Of fresh draws."""
    again: tuple[Path, ...] = ()
    """Of their survivors, run again."""


def entries(paths: tuple[Path, ...]) -> list[dict]:
    """The mutants of several reports."""
    return [entry for path in paths for entry in json.loads(path.read_text(encoding="utf-8"))["mutants"]]


def identity(entry: dict) -> tuple[str, int, str, str]:
    """File, line, kind and change: what has moved in between still counts as alive."""
    return entry["file"], entry["line"], entry["kind"], entry["change"]


def main(options: Options) -> None:
    """Count, name, write."""
    drawn = entries(options.reports)
    later = {identity(e) for e in entries(options.again) if e["verdict"].startswith("killed")}
    # Of two changes that read the same on a line, one may be alive.
    later -= {identity(e) for e in entries(options.again) if e["verdict"].startswith("survived")}
    survivors = [e for e in drawn if e["verdict"].startswith("survived")]
    left = [e for e in survivors if identity(e) not in later]
    rooms = Counter(e["file"].split("/")[1] for e in drawn)
    alive = Counter(e["file"].split("/")[1] for e in left)
    named = [
        {
            **{key: e[key] for key in ("file", "line", "kind", "change")},
            "equivalent": EQUIVALENT.get((e["file"].removeprefix("vi_flows/"), e["line"])),
        }
        for e in left
    ]
    figures = {
        "drawn": len(drawn),
        "killed_by_the_first_run": len(drawn) - len(survivors),
        "killed": len(drawn) - len(left),
        "share_killed": round((len(drawn) - len(left)) / len(drawn), 4),
        "equivalent": (equivalent := sum(e["equivalent"] is not None for e in named)),
        "share_killed_of_those_that_change_a_result": round((len(drawn) - len(left)) / (len(drawn) - equivalent), 4),
        "by_room": {room: {"drawn": n, "killed": n - alive[room]} for room, n in sorted(rooms.items())},
        "survivors": named,
    }
    settings = {
        "reports": [{key: json.loads(p.read_text())[key] for key in ("seed", "of")} for p in options.reports],
        "spend": "40 s of tests a mutant (rooms diagnostics and evaluation) or 30 s (others) in the first run",
    }
    key = row_key("mutation", settings)
    Record("mutation", key, "small wrong changes that the tests notice", settings, figures, provenance()).write(
        RESULT, True
    )
    print(f"killed {figures['killed']} of {len(drawn)} ({figures['share_killed']:.1%})")
    for entry in named:
        words = entry["equivalent"] or "not noticed"
        print(f"{entry['file']}:{entry['line']} {entry['kind']}: {entry['change']} ({words})")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
