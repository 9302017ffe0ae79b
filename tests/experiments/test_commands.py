"""How the scripts end: as ``vi-flows`` does, by an exit code and a line under their own name."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vi_flows.cli.outcome import exit_with
from vi_flows.training import TrainingInterrupted

FOLDER = Path(__file__).parents[2] / "experiments"
SCRIPTS = sorted(path for path in FOLDER.rglob("*.py") if 'if __name__ == "__main__"' in path.read_text("utf-8"))


def name_of(path: Path) -> str:
    return path.parent.name if path.stem == "__main__" else path.stem


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_every_script_ends_by_the_one_mechanism_under_its_own_name(path):
    last = ast.parse(path.read_text(encoding="utf-8")).body[-1]
    assert isinstance(last, ast.If)
    (call,) = [
        node for node in ast.walk(last) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "exit_with"
    ]
    assert call.args[0].value == name_of(path)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            TrainingInterrupted(signal.SIGTERM),
            143,
            "name: stopped; the checkpoint is up to date: the same command goes on",
        ),
        (KeyboardInterrupt(), 130, "name: stopped"),
        (ValueError("no such row"), 2, "name: no such row"),
        (
            FileNotFoundError(2, "No such file or directory", "x.npz"),
            1,
            "name: x.npz: No such file or directory; what it",
        ),
        (KeyError("lost"), 1, "name: KeyError: 'lost' (--debug shows where)"),
    ],
)
def test_what_goes_wrong_is_a_line_under_the_commands_name(error, code, words, capsys):
    def run(given):
        assert given == ["row", "--seed", "3"]
        raise error

    with pytest.raises(SystemExit) as done:
        exit_with("name", run, ["row", "--debug", "--seed", "3"])
    assert done.value.code == code
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith(words)
    assert ("Traceback" in said) == (code in (1, 2))  # as --debug asks


@pytest.mark.parametrize(("given", "code"), [(None, None), (0, 0), (1, 1)])
def test_what_a_command_returns_is_its_code(given, code):
    with pytest.raises(SystemExit) as done:
        exit_with("name", lambda words: given, [])
    assert done.value.code == code


def test_a_script_names_what_is_missing(tmp_path):
    words = [sys.executable, str(FOLDER / "image_rows.py"), "score", "mnist-nice", "--runs", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"image_rows: {tmp_path / 'mnist-nice-small-seed0'} holds no run")
    assert len(done.stderr.splitlines()) == 1
