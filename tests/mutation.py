"""Systematic small wrong changes, one at a time: which of them do the tests of a room notice?

Works on a copy of the package in a temporary folder; the sources are never touched. First every test of the rooms runs
once under coverage.py, which says which test runs which line; a mutant then meets only the tests of its room that run
its line, the quick ones first, in a process forked after PyTorch's import. For example::

    python tests/mutation.py --sample 10 --seed 0 --json mutants.json
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import importlib
import itertools
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = "tests/test_defaults.py"
"""Runs no line of a function, and looks at what is written at its head."""
USERS = [
    DEFAULTS,
    "tests/training",
    "tests/table",
    "tests/test_cli.py",
    "tests/test_compare.py",
    "tests/test_listing.py",
]
"""Tests of what is built on the rooms, which run them, too."""
TESTS = {
    "training": [*USERS, "tests/image/test_benchmark.py"],
    "vae": [
        "tests/vae",
        "tests/objectives",
        "tests/flows/test_vector_flows.py",
        "tests/evaluation",
        *USERS,
    ],
    "objectives": ["tests/objectives", "tests/vae", *USERS],
    "diagnostics": [
        DEFAULTS,
        "tests/diagnostics",
        "tests/evaluation",
        "tests/image/test_attributes.py",
        "tests/guides/test_fit_amortized.py",
        "tests/guides/test_mixture.py",
    ],
    "evaluation": ["tests/evaluation", "tests/diagnostics", "tests/vae", "tests/guides/test_datatree.py", *USERS],
}
"""Room of the package to the tests that are to notice; those of the whole suite that run its lines, as far as they are
quick."""
PRELOADED = [
    "torch",
    "pyro",
    "pyro.infer",
    "pyro.distributions.transforms",
    "scipy.stats",
    "cattrs",
    "tyro",
    "hypothesis",
]
"""Imported before the fork, so that a mutant costs its tests alone; nothing of ours."""
OUTPUT = "output.txt"
MEMORY = 8 << 30
"""Bytes that a mutant may ask for."""
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
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in ARITHMETIC:
            found.append(("arithmetic", lambda n: setattr(n, "op", ARITHMETIC[type(n.op)]())))
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand) if not isinstance(operand, ast.Constant):
            twice = isinstance(node.op, ast.Not)
            found.append(
                ("sign", lambda n: setattr(n, "operand", ast.UnaryOp(ast.Not() if twice else ast.USub(), n.operand)))
            )
        case ast.If(test=test) | ast.IfExp(test=test) if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp):
            found.append(("condition", lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))))
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


def no_behaviour(tree: ast.AST) -> set[int]:
    """Nodes that no test could notice, by ``id``: annotations and the arguments of decorators (``frozen=True``)."""
    roots: list[ast.AST] = []
    for node in ast.walk(tree):
        roots += [n for n in (getattr(node, "annotation", None), getattr(node, "returns", None)) if n is not None]
        roots += getattr(node, "decorator_list", [])
    return {id(inner) for root in roots for inner in ast.walk(root)}


def spans(tree: ast.AST) -> dict[int, tuple[int, int]]:
    """For each node, by ``id``, first and last line of the innermost statement around it; of a block, its head's."""
    found: dict[int, tuple[int, int]] = {}

    def walk(node: ast.AST, span: tuple[int, int]) -> None:
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            span = (node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno)
        found[id(node)] = span
        for child in ast.iter_child_nodes(node):
            walk(child, span)

    walk(tree, (1, 1))
    return found


class Mutant(NamedTuple):
    """One change: where it is, what it is, and the lines of its statement."""

    path: Path
    line: int
    span: tuple[int, int]
    kind: str
    index: int


def mutants(path: Path) -> Iterator[Mutant]:
    """The changes of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    untold, lines = no_behaviour(tree), spans(tree)
    for index, node in enumerate(ast.walk(tree)):
        for kind, _ in changes(node) if id(node) not in untold else ():
            yield Mutant(path, node.lineno, lines[id(node)], kind, index)


def applied(mutant: Mutant) -> tuple[str, str]:
    """What changes into what, and the whole changed source."""
    tree = ast.parse(mutant.path.read_text(encoding="utf-8"))
    node = next(n for i, n in enumerate(ast.walk(tree)) if i == mutant.index)
    shown = node.test if isinstance(node, ast.If) else node
    before = ast.unparse(shown)
    dict(changes(node))[mutant.kind](node)
    return f"{before} -> {ast.unparse(node.test if isinstance(node, ast.If) else node)}", ast.unparse(tree)


class Timed:
    """Pytest plugin: says coverage which test runs, and remembers how long each took and which of them failed."""

    def __init__(self, cover: object) -> None:
        self.cover, self.seconds, self.failed = cover, {}, set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: object) -> Iterator[None]:
        begun = time.monotonic()
        self.cover.switch_context(item.nodeid)
        result = yield
        self.seconds[item.nodeid] = time.monotonic() - begun
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef, request: pytest.FixtureRequest) -> Iterator[None]:
        # What a fixture of a whole file makes is read by all of the file's tests.
        if fixturedef.scope == "function":
            return (yield)
        self.cover.switch_context(request.node.nodeid.split("::")[0] + "::")
        result = yield
        self.cover.switch_context(request._pyfuncitem.nodeid)
        return result


def in_child(work: Path, limit: float, task: Callable[[], int]) -> str:
    """Run the task in a forked process group of its own; a run past the limit counts as killed, by name."""

    def run() -> None:
        os.setsid()
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # shells have background jobs ignore it, and theirs too
        os.chdir(work)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        shown = os.open(work / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(shown, 1)
        os.dup2(shown, 2)
        sys.path[:] = [str(work)] + [p for p in sys.path if p not in ("", str(ROOT), str(ROOT / "tests"))]
        os._exit(task())

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(limit)
    late = child.is_alive()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.join()
    if late:
        return "killed (time)"
    return {0: "survived", 1: "killed", 2: "killed", 3: "killed"}.get(child.exitcode, f"killed (exit {child.exitcode})")


def tests_of_lines(work: Path, folders: list[str], limit: float) -> tuple[dict, dict[str, float]]:
    """Which tests run which lines, ``{file: {line: [test]}}``, and the seconds of each test."""
    out = work / "lines.json"

    def task() -> int:
        import coverage

        cover = coverage.Coverage(data_file=None, include=[f"{work}/vi_flows/{room}/*" for room in TESTS])
        timed = Timed(cover)
        with cover.collect():
            code = int(pytest.main(["-q", "-p", "no:cacheprovider", *folders], plugins=[timed]))
        data = cover.get_data()
        lines = {str(Path(f).relative_to(work)): data.contexts_by_lineno(f) for f in data.measured_files()}
        out.write_text(json.dumps([lines, timed.seconds, sorted(timed.failed)]), encoding="utf-8")
        return code if code != 1 else 0

    if (found := in_child(work, limit, task)) != "survived":
        print((work / OUTPUT).read_text(encoding="utf-8")[-3000:])
        sys.exit(f"without any change the tests end as {found!r}: mend them (or raise --limit) first")
    lines, seconds, failed = json.loads(out.read_text(encoding="utf-8"))
    for name in failed:  # it would count every mutant as killed
        print(f"fails without any change and is left out: {name}")
        seconds.pop(name, None)
    return {f: {int(n): tests for n, tests in of.items()} for f, of in lines.items()}, seconds


def chosen(lines: dict[int, list[str]], seconds: dict[str, float], mutant: Mutant, where: list[str]) -> list[str]:
    """Tests of ``where`` that run the lines of the mutant's statement, the quick ones first.

    What runs at the import has no test; then it is the table of defaults, and the whole files of tests that run any
    line of the file. Where none
    is seen to run it, processes that tests start may: then it is all that have the module's name in their file's.
    """
    span = mutant.span
    named = {name for n in range(span[0], span[1] + 1) for name in lines.get(n, [])}
    if "" in named:
        named = {name.split("::")[0] + "::" for names in lines.values() for name in names if name}
        named.add(f"{DEFAULTS}::")
    whole = tuple(name for name in named if name.endswith("::"))
    tests = [t for t in seconds if t in named or (whole and t.startswith(whole))]
    tests = tests or [t for t in seconds if mutant.path.stem in t.split("::")[0].rpartition("/")[2]]
    return sorted((t for t in tests if t.startswith(tuple(where))), key=seconds.__getitem__)


def survived(entry: dict[str, object]) -> bool:
    """Whether no test noticed the mutant."""
    return str(entry["verdict"]).startswith("survived")


def revision() -> str:
    """Of the sources that are mutated."""
    told = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True
    )
    return told.stdout.strip()


def read_records(paths: Iterable[Path]) -> list[dict]:
    """Mutants of earlier reports, which are to be run again."""
    return [entry for path in paths for entry in json.loads(path.read_text(encoding="utf-8"))["mutants"]]


def result_of(mutant: Mutant, work: Path, tests: list[str], limit: float) -> dict[str, object]:
    """Apply a mutant, run its tests, and put the file back."""
    begun, (text, source) = time.monotonic(), applied(mutant)
    original = mutant.path.read_text(encoding="utf-8")
    mutant.path.write_text(source, encoding="utf-8")
    # The bytecode of the file as it was would be taken where size and second agree.
    for old in (mutant.path.parent / "__pycache__").glob(f"{mutant.path.stem}.*.pyc"):
        old.unlink()
    arguments = ["-x", "-q", "-p", "no:cacheprovider", *tests]
    verdict = in_child(work, limit, lambda: int(pytest.main(arguments))) if tests else "survived (no test runs it)"
    mutant.path.write_text(original, encoding="utf-8")
    return {
        "file": str(mutant.path.relative_to(work)),
        "line": mutant.line,
        "kind": mutant.kind,
        "change": text,
        "verdict": verdict,
        "tests": len(tests),
        "seconds": round(time.monotonic() - begun, 1),
    }


def main() -> None:
    """Draw mutants, run them, print and write the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=10, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument(
        "--files", nargs="*", type=Path, help="files of the package, by path; default: all of the rooms"
    )
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a mutant")
    parser.add_argument("--spend", type=float, default=math.inf, help="seconds of tests a mutant, the quick ones first")
    parser.add_argument("--again", nargs="*", type=Path, help="reports whose survivors run again, instead of a draw")
    parser.add_argument("--tests", nargs="*", help="tests for every mutant, where coverage is not to choose them")
    parser.add_argument("--json", type=Path, default=Path("mutants.json"), help="where the verdicts go")
    options = parser.parse_args()
    files = [path.resolve() for path in options.files or ()] or [
        path for room in TESTS for path in sorted((ROOT / "vi_flows" / room).rglob("*.py"))
    ]
    for path in files:
        if not path.is_relative_to(ROOT / "vi_flows") or path.relative_to(ROOT).parts[1] not in TESTS:
            parser.error(f"{path} is in none of the rooms {', '.join(TESTS)}")
    mutated = revision()  # now: the checkout may move on while the copy is worked on
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for name in PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "copy"
        shutil.copytree(ROOT, work, ignore=shutil.ignore_patterns(".git", "__pycache__", "shared", "runs", "figures"))
        os.environ["PYTHONPATH"] = str(work)
        compileall.compile_dir(work / "vi_flows", quiet=2)
        drawn = [mutant for path in files for mutant in mutants(work / path.relative_to(ROOT))]
        total = len(drawn)
        if options.again:
            old = {(e["file"], e["line"], e["kind"], e["change"]) for e in read_records(options.again) if survived(e)}
            drawn = [m for m in drawn if (str(m.path.relative_to(work)), m.line, m.kind, applied(m)[0]) in old]
        else:
            drawn = random.Random(options.seed).sample(drawn, min(options.sample, total))
        rooms = sorted({m.path.relative_to(work).parts[1] for m in drawn})
        where = list(dict.fromkeys(f for room in rooms for f in TESTS[room]))
        lines, seconds = ({}, {}) if options.tests else tests_of_lines(work, where, 20 * options.limit)
        sys.dont_write_bytecode = True
        print(f"{len(seconds)} tests of {', '.join(rooms)}: {sum(seconds.values()):.0f} s", flush=True)
        head = {"seed": options.seed, "of": total, "revision": mutated, "spend": options.spend}
        report: list[dict[str, object]] = []
        for mutant in drawn:
            name = mutant.path.relative_to(work)
            tests = options.tests or chosen(lines.get(str(name), {}), seconds, mutant, TESTS[name.parts[1]])
            within = list(itertools.accumulate(seconds.get(test, 0.0) for test in tests))
            tests = [test for test, spent in zip(tests, within, strict=True) if spent <= max(options.spend, within[0])]
            report.append(result_of(mutant, work, tests, options.limit))
            print(
                "{verdict:13s} {file}:{line} {kind}: {change} ({tests} tests, {seconds} s)".format(**report[-1]),
                flush=True,
            )
            options.json.write_text(json.dumps({**head, "mutants": report}, indent=1))
    killed = sum(not survived(entry) for entry in report)
    print(f"killed {killed} of {len(report)} drawn from {total}")


if __name__ == "__main__":
    main()
