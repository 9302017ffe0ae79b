"""Adds a fresh draw of ``tests/mutation.py`` to the record: what was killed, the survivors by name.

    python tests/mutation.py --sample 90 --seed 90117 --spend 40 --json drawn.json
    python -m experiments.mutation_record drawn.json

So were made those of the seeds 41 and 7310 (85 mutants, ``--spend 45``) and 55021 (85, ``--spend 30``); that of seed 41
was stopped after 52, which are a draw, too: mutants come in random order. That of seed 2 was made by rooms, by an
earlier script.

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

from vi_flows.cli.outcome import exit_with
from vi_flows.records import Record, provenance, row_key

RESULT = Path(__file__).parent / "results" / "mutation.json"
EQUIVALENT = {
    ("evaluation/psis.py", 84, "-p -> --p"): "the branch of a shape within 1e-12 of zero, which no sample has",
    ("evaluation/psis.py", 84, "-torch.log1p(-p) -> --torch.log1p(-p)"): "the same branch",
    ("objectives/direct.py", 27, "1 -> 2"): "a protocol's default, which nobody calls",
    ("training/stacked.py", 165, "True -> False"): "strict, over lists that are made of one length",
    ("training/stacked_layers.py", 61, "0 -> 1"): "another member of the same architecture",
    ("training/stacked_layers.py", 180, "0 -> 1"): "another member of the same architecture",
    ("training/stacked_layers.py", 191, "0 -> 1"): "another member of the same architecture",
    ("training/stacked_layers.py", 190, "0 -> 1"): "another member of the same architecture",
    ("diagnostics/chains.py", 135, "1e-280 -> 9.999999999999999e-280"): "keeps a threshold above zero",
    ("vae/refinement.py", 108, "2 -> 3"): "the modulus of seeds that are below 2⁶³",
    ("vae/evidence.py", 181, "2 -> 3"): "the modulus of seeds that are below 2⁶³",
    ("vae/model.py", 259, "False -> True"): "validate_args: the same value, checked",
}
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
    new = [sample(json.loads(path.read_text(encoding="utf-8"))) for path in options.reports]
    seeds = {each["seed"] for each in new}
    samples = [each for each in Record.read(RESULT).figures["samples"] if each["seed"] not in seeds] + new
    figures = {key: samples[-1][key] for key in ("seed", "drawn", "killed", "share_killed")} | {"samples": samples}
    settings = {"seeds": [each["seed"] for each in samples]}
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
    exit_with("mutation_record", lambda words: main(tyro.cli(Options, description=__doc__, args=words)))
