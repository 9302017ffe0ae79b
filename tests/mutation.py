"""Systematic small wrong changes, one at a time: which of them does a room's test folder notice?

Works on a copy of the package in a temporary folder; the sources are never touched. For example::

    python tests/mutation.py --sample 10 --seed 0 --json mutants.json
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "training": ["tests/training"],
    "vae": ["tests/vae"],
    "objectives": ["tests/objectives"],
    "diagnostics": ["tests/diagnostics", "tests/evaluation"],
    "evaluation": ["tests/evaluation", "tests/diagnostics"],
}
"""Room of the package to the folders that are to notice."""
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip


def changes(node: ast.AST) -> list[tuple[str, Callable[[ast.AST], None]]]:
    """The wrong changes of one node, each with its name."""
    found: list[tuple[str, Callable[[ast.AST], None]]] = []
    match node:
        case ast.Compare(ops=[op, *_]) if type(op) in COMPARISONS:
            found.append(("comparison", lambda n: n.ops.__setitem__(0, COMPARISONS[type(n.ops[0])]())))
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            found.append(("arithmetic", lambda n: setattr(n, "op", ARITHMETIC[type(n.op)]())))
        case ast.BoolOp():
            found.append(("boolean", lambda n: setattr(n, "op", ast.Or() if isinstance(n.op, ast.And) else ast.And())))
        case ast.Constant(value=bool()):
            found.append(("boolean", lambda n: setattr(n, "value", not n.value)))
        case ast.Constant(value=int() | float()):
            found.append(("constant + 1", lambda n: setattr(n, "value", n.value + 1)))
            if node.value:
                found.append(("constant × 10", lambda n: setattr(n, "value", n.value * 10)))
        case ast.Call(func=ast.Name(id="min" | "max")):
            found.append(("min and max", lambda n: setattr(n.func, "id", "max" if n.func.id == "min" else "min")))
    return found


def mutants(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Line, kind, the changed statement's expression, and the whole changed source, for each change of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for index, node in enumerate(ast.walk(tree)):
        for kind, change in changes(node):
            changed = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(changed)) if i == index)
            change(target)
            yield node.lineno, kind, f"{ast.unparse(node)} -> {ast.unparse(target)}", ast.unparse(changed)


def verdict(work: Path, folders: list[str], limit: float) -> str:
    """Run the folders' tests in the copy; a run past the limit counts as killed, by name."""
    environment = {**os.environ, "PYTHONPATH": str(work), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *folders]
    try:
        code = subprocess.run(command, cwd=work, env=environment, capture_output=True, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return "killed (time)"
    return {0: "survived", 1: "killed", 2: "killed"}.get(code, f"error {code}")


def main() -> None:
    """Draw mutants, run them, print and write the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=10, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--files", nargs="*", help="files of the package, by path; default: all of the rooms")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a mutant")
    parser.add_argument("--json", type=Path, default=Path("mutants.json"), help="where the verdicts go")
    options = parser.parse_args()
    files = [Path(f).resolve() for f in options.files or ()] or [
        path for room in TESTS for path in sorted((ROOT / "vi_flows" / room).rglob("*.py"))
    ]
    for path in files:
        if not path.is_relative_to(ROOT / "vi_flows") or path.relative_to(ROOT).parts[1] not in TESTS:
            parser.error(f"{path} is in none of the rooms {', '.join(TESTS)}")
    drawn = [(path, *mutant) for path in files for mutant in mutants(path)]
    total = len(drawn)
    drawn = random.Random(options.seed).sample(drawn, min(options.sample, total))
    report = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".git", "__pycache__", "shared")
        shutil.copytree(ROOT, work, ignore=ignored)
        # Tests that fail anyway would count every mutant as killed.
        for room in sorted({path.relative_to(ROOT).parts[1] for path, *_ in drawn}):
            if (found := verdict(work, TESTS[room], options.limit)) != "survived":
                sys.exit(f"without any change the tests of {room} end as {found!r}: mend them (or raise --limit) first")
        for path, line, kind, text, source in drawn:
            name = path.relative_to(ROOT)
            target, begun = work / name, time.monotonic()
            original = target.read_text(encoding="utf-8")
            target.write_text(source, encoding="utf-8")
            found = verdict(work, TESTS[name.parts[1]], options.limit)
            target.write_text(original, encoding="utf-8")
            seconds = round(time.monotonic() - begun, 1)
            report.append(dict(file=str(name), line=line, kind=kind, change=text, verdict=found, seconds=seconds))
            print(f"{found:13s} {name}:{line} {kind}: {text} ({seconds} s)", flush=True)
            options.json.write_text(json.dumps({"seed": options.seed, "of": total, "mutants": report}, indent=1))
    killed = sum(entry["verdict"].startswith("killed") for entry in report)
    print(f"killed {killed} of {len(report)} drawn from {total}")


if __name__ == "__main__":
    main()
