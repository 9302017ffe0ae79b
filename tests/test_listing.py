"""`vi-flows runs`, `results` and `info`: what there is."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vi_flows.cli import main
from vi_flows.records import Record
from vi_flows.training import Run, Trainer, VAETrainConfig
from vi_flows.training.status import find_runs, status_of_run
from vi_flows.vae import VAEConfig

SMALL = VAETrainConfig(vae=VAEConfig(latent_dims=(3,), hidden_dims=((8,),)), epochs=2, batch_size=400, threads=1)


def run(*args):
    with pytest.raises(SystemExit) as stopped:
        main([str(arg) for arg in args])
    return stopped.value.code


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One finished, one stopped within its second epoch, one without a step, one whose settings are damaged."""
    folder = tmp_path_factory.mktemp("runs")
    for name, until in (("deep/finished", None), ("stopped", 6)):
        trainer = Trainer(Run.create(folder / name, SMALL), progress=False)
        trainer.start()
        trainer.fit(until)
    Run.create(folder / "new", SMALL)
    Run.create(folder / "damaged", SMALL)
    (folder / "damaged" / "config.json").write_text("{")
    return folder


def test_states(runs):
    found = {str(path.relative_to(runs)): status_of_run(path) for path in find_runs(runs)}
    assert {name: (status.state, status.epoch) for name, status in found.items()} == {
        "damaged": ("damaged", 0), "deep/finished": ("finished", 2), "new": ("new", 0), "stopped": ("interrupted", 1),
    }  # fmt: skip
    done = found["deep/finished"]
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    assert done.best == min(line["valid_loss"] for line in lines)
    assert (done.kind, done.label, done.dataset, done.epochs) == ("vae", "VAE", "digits", 2)
    with Run.open(runs / "stopped").locked():
        assert status_of_run(runs / "stopped").state == "running"
    assert status_of_run(runs / "stopped").state == "interrupted"


def test_states_within_the_first_epoch(runs, tmp_path):
    """A run that has taken steps was interrupted, though no epoch is over; one with its first weights alone is new."""
    trainer = Trainer(Run.create(tmp_path / "run", SMALL), progress=False)
    trainer.start()
    assert status_of_run(trainer.run.folder).state == "new"
    trainer.fit(until=2)
    stopped = status_of_run(trainer.run.folder)
    assert (stopped.state, stopped.epoch, stopped.epochs, stopped.records) == ("interrupted", 0, 2, 0)
    assert math.isnan(stopped.best)
    unreadable = status_of_run(runs / "damaged")
    assert (unreadable.seed, unreadable.epoch, unreadable.epochs, unreadable.records) == (0, 0, 0, 0)


def test_the_age_is_that_of_the_last_file_written(runs):
    for path in [runs / "new", *(runs / "new").iterdir()]:
        os.utime(path, (0, time.time() - 5000))
    (runs / "new" / "metrics.jsonl").touch()
    os.utime(runs / "new" / "metrics.jsonl", (0, time.time() - 100))
    os.utime(runs / "new", (0, time.time() - 5000))
    assert status_of_run(runs / "new").age == pytest.approx(100, abs=30)


def test_a_file_that_vanishes_meanwhile_is_no_obstacle(runs):
    (runs / "new" / "checkpoint.safetensors.tmp").symlink_to(runs / "nowhere")
    assert status_of_run(runs / "new").state == "new"
    (runs / "new" / "checkpoint.safetensors.tmp").unlink()
    assert math.isnan(status_of_run(runs / "gone").age)


def test_offered_commands_can_be_copied_and_a_run_that_is_not_finished_says_so(tmp_path, capsys):
    folder = tmp_path / "my run"
    words = ["--epochs", 1, "--latent-dims", 3, "--hidden-dims", 8, "--batch-size", 400, "--quiet"]
    assert run("train", "vae", "--out", folder, *words) == 0
    assert f"next: vi-flows evaluate '{folder}'" in capsys.readouterr().out
    assert run("evaluate", folder, "--limit", 2, "--num-samples", 2, "--quiet") == 0
    assert "not finished" not in capsys.readouterr().out
    trainer = Trainer(Run.create(tmp_path / "cut off", SMALL), progress=False)
    trainer.start()
    trainer.fit(until=5)
    assert run("evaluate", tmp_path / "cut off", "--limit", 2, "--num-samples", 2, "--quiet") == 0
    said = f"weights of epoch 1 of 2; vi-flows train --resume '{tmp_path / 'cut off'}' goes on"
    assert said in capsys.readouterr().out
    assert run("runs", tmp_path) == 0
    assert f"to go on: vi-flows train --resume '{tmp_path / 'cut off'}'" in capsys.readouterr().out


def test_a_limit_of_all_images_is_none(runs, capsys):
    folder = runs / "deep" / "finished"
    assert run("evaluate", folder, "--num-samples", 2, "--quiet", "--limit", 100_000) == 0
    assert run("evaluate", folder, "--num-samples", 2, "--quiet") == 2
    assert "exists; give --overwrite" in capsys.readouterr().err
    (found,) = (folder / "results").glob("*.json")
    assert Record.read(found).settings["evaluation"]["limit"] is None


def test_a_damaged_checkpoint_is_said(runs, tmp_path):
    Run.create(tmp_path / "run", SMALL)
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"nothing")
    assert status_of_run(tmp_path / "run").state == "damaged"


def test_the_table_of_runs(runs, capsys):
    assert run("runs", runs) == 0
    out, err = capsys.readouterr()
    assert "1 damaged, 1 finished, 1 interrupted, 1 new" in out
    assert f"vi-flows train --resume {runs / 'stopped'}" in out
    assert "config.json can't be read" in err
    assert run("runs", runs, "--json") == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["state"] for entry in entries] == ["damaged", "finished", "new", "interrupted"]
    assert entries[2]["best"] is None
    assert run("runs", runs / "nowhere") == 2
    assert "no folder" in capsys.readouterr().err


def record(kind, figures, seed=0, label="some, model"):
    settings = {"dataset": "digits", "seed": seed, "evaluation": {"split": "test"}}
    return Record(kind, f"key{seed}", label, settings, figures, {}, scores={"nll": np.zeros(2, np.float32)})


def test_results_as_table_and_picture(tmp_path, capsys):
    record("vae", {"nll": 12.5, "interval": [12.0, 13.0], "num_rows": 9}).write(tmp_path / "a" / "worse.json")
    record("vae", {"nll": 11.5, "interval": [11.0, 12.0], "num_rows": 9}, 1).write(tmp_path / "a" / "better.json")
    record("image", {"nll": 1.0, "bits_per_dim": 3.25, "interval": [3.2, 3.3]}).write(tmp_path / "b" / "image.json")
    record("bench", {"nll": 1.0}).write(tmp_path / "b" / "bench.json")
    (tmp_path / "b" / "other.json").write_text("[]")
    picture = tmp_path / "pictures" / "all.png"
    words = (tmp_path / "a", tmp_path / "b", tmp_path / "a" / "worse.json", "--format", "csv", "--picture", picture)
    assert run("results", *words) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert [row[1:6] for row in rows[1:]] == [
        ["some, model", "0", "bits/dim", "3.2500", "3.2000 – 3.3000"],
        ["some, model", "1", "NLL, nats", "11.5000", "11.0000 – 12.0000"],
        ["some, model", "0", "NLL, nats", "12.5000", "12.0000 – 13.0000"],
    ]
    with Image.open(picture) as drawn:
        assert len(set(drawn.convert("RGB").getcolors(1 << 20))) > 10
    for words, message in (
        ((tmp_path / "b" / "bench.json",), "no record of an evaluated run"),
        ((tmp_path / "pictures",), "vi-flows evaluate RUN"),
        ((tmp_path / "nowhere",), "there is no record or folder"),
        ((tmp_path / "a", "--picture", tmp_path / "a.txt"), "--picture must end in"),
    ):
        assert run("results", *words) in (1, 2)
        assert message in capsys.readouterr().err


def test_a_damaged_record_is_not_left_out_silently(tmp_path, capsys):
    for number in range(3):
        made = record("vae", {"nll": 12.5, "interval": [12.0, 13.0], "num_rows": 9}, number)
        replace(made, scores={"nll": np.zeros(9, np.float32)}).write(tmp_path / f"{number}.json")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "0.json").write_text((tmp_path / "0.json").read_text()[:40])
    (tmp_path / "1.npz").unlink()
    assert run("results", tmp_path, "--format", "csv") == 0
    found = capsys.readouterr()
    assert found.out.count("\n") == 2  # a head and a row
    assert [line.split(": ")[1] for line in found.err.splitlines()] == ["left out"] * 2
    assert all(name in found.err for name in ("0.json", "1.npz"))
    assert "config.json" not in found.err


@pytest.mark.parametrize("low", [math.nan, 12.5])
def test_a_single_image_has_no_interval(low, tmp_path, capsys):
    record("vae", {"nll": 12.5, "interval": [low, low], "num_rows": 1}).write(tmp_path / "one.json")
    assert run("results", tmp_path, "--format", "csv", "--picture", tmp_path / "one.png") == 0
    (_, row) = csv.reader(io.StringIO(capsys.readouterr().out))
    assert row[5] == "–"


def test_likelihoods_of_different_things_are_not_ranked_together(tmp_path, capsys):
    for name, value, settings in (
        ("binary", 20.0, {}), ("grey", 90.0, {"pixel": {"output": "categorical"}}), ("other", 30.0, {}),
        ("told", 10.0, {"labels": True}),
    ):  # fmt: skip
        made = record("pixel", {"nll": value, "interval": [value - 1, value + 1]}, label=name)
        replace(made, settings={**made.settings, **settings}).write(tmp_path / f"{name}.json")
    assert run("results", tmp_path, "--format", "csv", "--picture", tmp_path / "all.svg") == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert [(row[1], row[3]) for row in rows[1:]] == [
        ("binary", "NLL, nats of binary pixels"), ("other", "NLL, nats of binary pixels"),
        ("told", "NLL, nats of binary pixels given the class"), ("grey", "NLL, nats of pixels as they are"),
    ]  # fmt: skip


def test_info_names_the_data_and_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VI_FLOWS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file").write_bytes(bytes(3 * 2**20))
    assert run("info", "--json", "--data-root", tmp_path) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data_found"] == ["digits"]
    assert "binarized_mnist" in found["data_missing"]
    assert found["cache"] == f"{tmp_path / 'cache'} (1 files, 3 MiB)"
    assert found["devices"][0] == "cpu"
    assert str(tmp_path) in found["data_root"]
