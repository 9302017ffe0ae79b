"""Runs on data of one's own: trained, evaluated and drawn from by the commands; records stay in the run's folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vi_flows.cli import main
from vi_flows.data import folders
from vi_flows.records import Record
from vi_flows.training import Run, RunError, Trainer, VAETrainConfig
from vi_flows.training.checkpoint import load_tensors, save_tensors
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.tasks.vae import VAEEvaluationSettings
from vi_flows.vae import VAEConfig

RNG = np.random.default_rng(0)
BINARY = RNG.integers(0, 2, (60, 5, 4), dtype=np.uint8)
GREY = RNG.integers(0, 256, (60, 5, 4), dtype=np.uint8)
SMALL = ["--epochs", "2", "--batch-size", "20", "--latent-dims", "2", "--hidden-dims", "4", "--threads", "1", "--quiet"]


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ending:
        main(list(map(str, words)))
    return ending.value.code


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(("array", "name"), [(BINARY, "mine.npy"), (GREY / 255, "mine.npy"), (GREY, "mine.npz")])
def test_a_vae_on_an_array_of_ones_own(
    tmp_path: Path, array: np.ndarray, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_said", set())
    data = tmp_path / "data"
    data.mkdir()
    (np.save if name.endswith("npy") else np.savez)(data / name, array)
    before = everything(data)
    runs = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(runs):
        assert run("train", "vae", "--out", folder, "--dataset", data / name, "--seed", seed, *SMALL) == 0
        assert run("evaluate", folder, "--num-samples", 5, "--quiet") == 0
        assert run("sample", folder, "--rows", 2, "--columns", 2) == 0
    assert "has no splits: 6 images each are held out" in caplog.text
    assert everything(data) == before
    records = [list((folder / "results").glob("*.json")) for folder in runs]
    assert [len(found) for found in records] == [1, 1]
    assert records[0][0].name.startswith(f"{name}-g1-z2-h4-clean-e2-s0-")
    assert Record.read(records[0][0]).figures["num_rows"] == 6
    assert (runs[0] / "samples.png").exists()


def test_records_of_two_data_sets_of_one_name_in_one_folder(tmp_path: Path) -> None:
    keys = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        np.save(tmp_path / place / "mine.npy", BINARY)
        config = VAETrainConfig(dataset=str(tmp_path / place / "mine.npy"))
        assert "/" not in config.key
        keys.append(config.key)
    assert keys[0] != keys[1]
    assert VAETrainConfig(dataset="../my data/").slug.startswith("my_data-g1")
    assert VAETrainConfig(dataset="binarized_mnist").slug.startswith("binarized_mnist-g1")


def test_data_that_changed_are_neither_evaluated_nor_trained_on(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", BINARY)
    config = VAETrainConfig(
        vae=VAEConfig(latent_dims=(2,), hidden_dims=((4,),)), dataset=str(tmp_path / "mine.npy"), epochs=2,
        batch_size=20, threads=1, checkpoint_seconds=0.0,
    )  # fmt: skip
    trainer = Trainer(Run.create(tmp_path / "run", config), progress=False)
    trainer.start()
    trainer.fit(until=1)
    changed = BINARY.copy()
    changed[0, 0, 0] ^= 1
    np.save(tmp_path / "mine.npy", changed)
    other = Trainer(Run.open(tmp_path / "run"), progress=False)
    with pytest.raises(RunError, match=r"mine\.npy are not those that the run in .* was trained on"):
        other.resume()
    np.save(tmp_path / "mine.npy", BINARY)
    again = Trainer(Run.open(tmp_path / "run"), progress=False)
    again.resume()
    again.fit()
    np.save(tmp_path / "mine.npy", changed)
    with pytest.raises(RunError, match=r"mine\.npy are not those"):
        evaluate_run(Run.open(tmp_path / "run"), VAEEvaluationSettings(limit=2), progress=False)
    for name in ("checkpoint", "best"):  # of a version that didn't note the data
        tensors, state = load_tensors(tmp_path / "run" / f"{name}.safetensors")
        del state["data_sha256"]
        save_tensors(tmp_path / "run" / f"{name}.safetensors", tensors, state)
    Trainer(Run.open(tmp_path / "run"), progress=False).resume()
    evaluate_run(Run.open(tmp_path / "run"), VAEEvaluationSettings(limit=2), progress=False)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["epoch"] == 2


def test_weights_of_other_data_by_the_same_name_are_neither_started_from_nor_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, test = tmp_path / "mine.npz", BINARY[50:]
    np.savez(path, train=BINARY[:40], valid=BINARY[40:50], test=test)
    words = ["train", "vae", "--dataset", path, *SMALL]
    assert run(*words, "--out", tmp_path / "first") == 0
    assert run(*words, "--out", tmp_path / "second", "--from", tmp_path / "first") == 0
    second = Run.open(tmp_path / "second")
    assert second.started_from is not None
    assert second.started_from["data_sha256"] == second.data.sha256
    begun = Run.create(tmp_path / "begun", replace(second.config, start_from=tmp_path / "first", seed=1))
    capsys.readouterr()
    np.savez(path, train=BINARY[10:50], valid=BINARY[:10], test=test)  # the images of before are among the new ones
    assert run(*words, "--out", tmp_path / "third", "--from", tmp_path / "first") == 2
    assert "may have seen its validation images; put the old data back, or train from" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()
    with pytest.raises(ValueError, match=r"other data by the name of .*mine\.npz"):
        Trainer(Run.open(begun.folder), progress=False).start()
    assert run("sample", tmp_path / "first", "--out", tmp_path / "shown") == 1
    assert "are not those that the run in" in capsys.readouterr().err
    assert not (tmp_path / "shown").exists()
