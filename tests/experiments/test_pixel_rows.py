"""The autoregressive models' rows go through the runner of tables, and the records are of these rows."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.pixel_rows import PLACE, Selection
from experiments.pixel_rows_job import ROWS, PixelJob
from experiments.tables.densities import epochs_of, trained_on
from vi_flows.records import Record
from vi_flows.table import Workplace, status_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / PLACE.results
DIGITS = "digits-gated-w32-l4-labels-clean"


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments.pixel_rows", *words], cwd=ROOT, capture_output=True, text=True
    )


def test_every_record_is_of_a_row_with_its_settings():
    jobs = {job.name: job for job in Selection().jobs()}
    place = Workplace(ROOT / "runs" / "none", RESULTS)
    found = sorted(path.stem for path in RESULTS.glob("*.json"))
    assert len(found) >= 6
    assert set(found) <= set(jobs)
    assert [jobs[name].record_differs(place) for name in found] == [""] * len(found)


def test_the_recipes_are_as_the_page_says():
    gated, recurrent = (
        ROWS["binarized_mnist-gated-w96-l10-clean"],
        ROWS["binarized_mnist-diagonal_bilstm-w128-l5-clean"],
    )
    assert (gated.epochs, gated.batch_size, gated.learning_rate, gated.ema_decay) == (32, 100, 1e-3, 0.999)
    assert (recurrent.epochs, recurrent.batch_size, recurrent.learning_rate, recurrent.clip_norm) == (6, 200, 2e-3, 500)
    assert recurrent.pixel.name == "diagonal_bilstm-w128-l5-dropout0.1"
    finish = ROWS["binarized_mnist-diagonal_bilstm-w128-l5-finish-clean"]
    assert (finish.epochs, finish.batch_size, finish.learning_rate, finish.clip_norm) == (1, 50, 1e-3, 500)
    assert (finish.ema_decay, finish.lr_warmup_steps, finish.pixel) == (0.99, 50, recurrent.pixel)
    networks = ROWS["binarized_mnist-made4000-direct-networks4-clean"]
    assert networks.pixel.name == "made-h4000-dropout0.4-direct-num_networks4"
    assert (networks.epochs, networks.batch_size, networks.learning_rate) == (96, 100, 1e-3)
    assert {config.protocol for config in ROWS.values()} == {"clean"}


def test_a_row_that_goes_on_comes_after_its_start_and_from_its_weights(tmp_path: Path):
    first, finish = Selection(rows=("*bilstm*finish*",)).jobs()
    assert (first.name, finish.name) == (
        "binarized_mnist-diagonal_bilstm-w128-l5-clean-e6-s0",
        "binarized_mnist-diagonal_bilstm-w128-l5-finish-clean-e6+1-s0",
    )
    place = Workplace(tmp_path / "runs", tmp_path / "results")
    assert finish.settings(place).start_from == tmp_path / "runs" / first.name
    assert first.settings(place).start_from is None
    assert [job.name for job in Selection(rows=("*bilstm*",), epochs=2).jobs()] == [
        "binarized_mnist-diagonal_bilstm-w128-l5-clean-e2-s0",
        "binarized_mnist-diagonal_bilstm-w128-l5-finish-clean-e2+1-s0",
    ]


def test_the_table_says_what_a_run_started_from():
    record = Record.read(RESULTS / "binarized_mnist-gated-w96-l10-clean-e32-s0.json")
    source = {"epoch": 5, "steps": 1250, "seconds": 504.1, "started_from": None}
    provenance = {"training_seconds": 4200.0, "started_from": {**source, "epoch": 2, "started_from": source}}
    settings, figures = record.settings | {"epochs": 4, "device": "cpu"}, record.figures | {"epoch_of_weights": 3}
    found = replace(record, settings=settings, figures=figures, provenance=record.provenance | provenance)
    assert epochs_of(found) == "5 + 2 + 3, 5 + 2 + 4"
    assert trained_on(found) == "70 min, one core, from weights of 17 min"
    alone = replace(found, provenance=provenance | {"started_from": None})
    assert (epochs_of(alone), trained_on(alone)) == ("3, 4", "70 min, one core")


def test_a_record_of_another_recipe_is_named(tmp_path: Path):
    record = json.loads((RESULTS / f"{DIGITS}-e60-s0.json").read_text(encoding="utf-8"))
    record["settings"]["learning_rate"] = 0.5
    (tmp_path / f"{DIGITS}-e60-s0.json").write_text(json.dumps(record), encoding="utf-8")
    assert (
        PixelJob(DIGITS, 0, 60).record_differs(Workplace(tmp_path, tmp_path)).startswith("learning_rate=0.5, and the")
    )


def test_a_record_without_its_run_does_not_say_how_long_it_was_trained(tmp_path: Path):
    lines = status_table([PixelJob(DIGITS, 0, 60)], Workplace(tmp_path, RESULTS)).splitlines()
    assert lines[1].split() == [f"{DIGITS}-e60-s0", "done", "–/60", "–", "20.36", "0:00:00"]


def test_a_row_is_trained_scored_and_left_alone(tmp_path: Path):
    places = ("--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results"))
    chosen = ("--rows", "digits-*", "--epochs", "1", *places)
    first = command("run", *chosen)
    assert first.returncode == 0, first.stderr
    assert "1 of 1 runs are done" in first.stdout
    record = tmp_path / "results" / f"{DIGITS}-e1-s0.json"
    figures = json.loads(record.read_text(encoding="utf-8"))["figures"]
    assert (figures["exact"], figures["num_rows"], figures["epoch_of_weights"]) == (True, 300, 1)
    assert f"{figures['nll']:.3f}" in first.stdout
    written = record.stat().st_mtime_ns
    assert command("run", *chosen).stdout.endswith("\n1 of 1 runs are done\n")
    assert record.stat().st_mtime_ns == written
    assert command("status", *chosen).stdout.splitlines()[1].split()[1:3] == ["done", "1/1"]


@pytest.mark.parametrize(
    ("words", "says"), [(("--rows", "nix"), "no row matches 'nix'"), (("--seeds",), "seeds must name at least one")]
)
def test_what_names_no_run_is_refused(words: tuple[str, ...], says: str):
    found = command("status", *words)
    assert found.returncode == 2
    assert says in found.stderr
    assert "Traceback" not in found.stderr
