"""The autoregressive models' rows go through the runner of tables, and the records are of these rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.pixel_rows import PLACE, Selection
from experiments.pixel_rows_job import ROWS, PixelJob
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
    networks = ROWS["binarized_mnist-made4000-direct-networks4-clean"]
    assert networks.pixel.name == "made-h4000-dropout0.4-direct-num_networks4"
    assert (networks.epochs, networks.batch_size, networks.learning_rate) == (96, 100, 1e-3)
    assert {config.protocol for config in ROWS.values()} == {"clean"}


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
    assert command("run", *chosen).stdout == "1 of 1 runs are done\n"
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
