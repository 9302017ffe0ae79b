"""The record of the mutation runs: each fresh draw of ``tests/mutation.py``, what was killed, the survivors by name.

    python tests/mutation.py --sample 90 --seed 90117 --spend 40 --json first.json
    python tests/mutation.py --sample 85 --seed 41 --spend 45 --json second.json
    python -m experiments.mutation_record first.json second.json

Every draw is over all five rooms, with a seed that was not used before, and counts as it came out: tests that were
written after its survivors were seen help the next draw alone. ``EQUIVALENT`` says which survivors change no result.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from vi_flows.records import Record, provenance, row_key

RESULT = Path(__file__).parent / "results" / "mutation.json"
EARLIER = {
    "seed": 2, "revision": "2b32bc2d6dfa00ee5d603b4c96d35a50c2f52b51", "drawn": 143, "killed": 107,
    "share_killed": 0.7483, "note": "three draws by rooms; with the tests written for its survivors 116, 81.1 %",
}  # fmt: skip
EQUIVALENT: dict[tuple[str, int, str], str] = {}
"""Survivors that change no result, by file, line of the revision that was mutated, and change."""


@dataclass(frozen=True)
class Options:
    """What to put together."""

    reports: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Of fresh draws, in the order in which they were made."""


def survived(entry: dict[str, Any]) -> bool:
    """Whether no test noticed the mutant."""
    return entry["verdict"].startswith("survived")


def sample(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of a draw."""
    drawn = report["mutants"]
    alive = [entry for entry in drawn if survived(entry)]
    named = [
        {
            **{key: entry[key] for key in ("file", "line", "kind", "change")},
            "equivalent": EQUIVALENT.get((entry["file"].removeprefix("vi_flows/"), entry["line"], entry["change"])),
        }
        for entry in alive
    ]
    equivalent = sum(entry["equivalent"] is not None for entry in named)
    killed = len(drawn) - len(alive)
    rooms = Counter(entry["file"].split("/")[1] for entry in drawn)
    left = Counter(entry["file"].split("/")[1] for entry in alive)
    return {
        "seed": report["seed"],
        "of": report["of"],
        "revision": report["revision"],
        "drawn": len(drawn),
        "killed": killed,
        "share_killed": round(killed / len(drawn), 4),
        "equivalent": equivalent,
        "share_killed_of_those_that_change_a_result": round(killed / (len(drawn) - equivalent), 4),
        "by_room": {room: {"drawn": n, "killed": n - left[room]} for room, n in sorted(rooms.items())},
        "survivors": named,
    }


def main(options: Options) -> None:
    """Count, name, write."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in options.reports]
    samples = [EARLIER, *map(sample, reports)]
    last = samples[-1]
    figures = {key: last[key] for key in ("seed", "drawn", "killed", "share_killed")} | {"samples": samples}
    settings = {"reports": [{key: report[key] for key in ("seed", "of", "spend")} for report in reports]}
    Record(
        "mutation", row_key("mutation", settings), "small wrong changes that the tests notice", settings, figures,
        provenance(),
    ).write(RESULT, True)  # fmt: skip
    for each in samples:
        print(f"seed {each['seed']}: killed {each['killed']} of {each['drawn']} ({each['share_killed']:.1%})")
        for entry in each.get("survivors", ()):
            words = entry["equivalent"] or "not noticed"
            print(f"  {entry['file']}:{entry['line']} {entry['kind']}: {entry['change']} ({words})")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
