"""The README's examples run as written, and its tables say what the records say."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pyro

from experiments.verdicts.table import false_ok, false_warning, right, wrong
from vi_flows.records import Record

ROOT = Path(__file__).parent.parent


def test_examples_run_as_written():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted > 8
    assert result.failed == 0


def test_counts_of_verdicts_equal_the_records():
    records = [Record.read(path) for path in sorted((ROOT / "experiments" / "results" / "verdicts").glob("*.json"))]
    rows = [row for record in records for row in record.figures["rows"] if "failed" not in row]
    default = [row for row in rows if row["way"] == "default"]
    bad, good, ok = ([row for row in rows if each(row)] for each in (wrong, right, lambda row: row["verdict"] == "ok"))
    missed, warned = (len([row for row in rows if each(row)]) for each in (false_ok, false_warning))
    said = (
        f"Over {len(rows)} guides, good and bad, of {len(records)} posteriors with known truth, three seeds each "
        f"(`python -m experiments.verdicts`), {missed} of the {len(bad)} wrong ones is called ok, of {len(ok)} that "
        f"are, and {warned} of the {len(good)} right ones are warned of, "
        f"{sum(map(false_warning, default))} of {sum(map(right, default))} by default settings."
    )
    assert said in " ".join((ROOT / "README.md").read_text().split())


def test_tables_equal_the_records():
    command = [sys.executable, str(ROOT / "experiments" / "render_tables.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0
