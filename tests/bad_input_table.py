"""The wrong command lines of the tests with their exit codes and messages: ``python -m tests.bad_input_table``."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
from collections import Counter
from pathlib import Path

from tabulate import tabulate

from tests.test_bad_input_commands import COMMANDS, furnished, in_a_line
from vi_flows.cli import main as vi_flows
from vi_flows.data.sources import DATA_VARIABLE
from vi_flows.records import Clock, Record, provenance, row_key


def refused(line: str, place: Path) -> dict[str, str | int]:
    """What a command line ends in."""
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            vi_flows(line.split())
        except SystemExit as ended:
            code = int(ended.code or 0)
    message = " ".join(in_a_line(said.getvalue()).split()).replace(str(place), "PLACE")
    return {"command": line, "code": code, "message": message}


def main() -> int:
    """Print the table and, where asked for, write the record; exit code 1 where a line was not refused as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, help="where to write the record: experiments/results/bad-inputs.json")
    options = parser.parse_args()
    record, clock, here = options.record and options.record.absolute(), Clock(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        place = furnished(Path(folder))
        os.chdir(place)
        os.environ[DATA_VARIABLE] = str(place)
        rows = [refused(line, place) for line, _, _ in COMMANDS]
        os.chdir(here)
    wrong = [row["command"] for row, (_, code, _) in zip(rows, COMMANDS, strict=True) if row["code"] != code]
    tracebacks = sum("Traceback" in str(row["message"]) for row in rows)
    shown = [(row["command"], row["code"], str(row["message"])[:200]) for row in rows]
    print(tabulate(shown, ("vi-flows", "code", "message")))
    codes, label = dict(Counter(str(row["code"]) for row in rows)), f"{len(rows)} wrong command lines"
    print(f"{label}, by exit code {codes}; tracebacks: {tracebacks}; otherwise: {wrong or 'none'}")
    if record is not None:
        Record(
            kind="bad-inputs", key=row_key("bad-inputs", {"lines": len(rows)}), label=label,
            settings={"lines": len(rows)}, figures={"codes": codes, "tracebacks": tracebacks, "rows": rows},
            provenance=provenance(clock=clock),
        ).write(record, overwrite=True)  # fmt: skip
    return int(bool(wrong or tracebacks))


if __name__ == "__main__":
    raise SystemExit(main())
