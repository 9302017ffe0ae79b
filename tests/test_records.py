"""Records: written once, read as written, and named by all that distinguishes them."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from vi_flows import records
from vi_flows.records import (
    Clock,
    Record,
    RecordError,
    RecordExistsError,
    from_json,
    git_revision,
    provenance,
    row_key,
    to_json,
)
from vi_flows.training import ImageTrainConfig, Run, RunError, Trainer, VAETrainConfig
from vi_flows.training.checkpoint import load_tensors, save_tensors
from vi_flows.training.status import status_of_run
from vi_flows.vae import VAEConfig

RECORD = Record(
    kind="toy",
    key="toy-1",
    label="a toy",
    settings={"seed": 3},
    figures={"nll": 2.5, "interval": [2.0, 3.0]},
    provenance={"revision": None},
    paper_row="k4",
    scores={"nll": np.array([1.5, 3.5], np.float32), "ais": np.array([1.0], np.float32)},
    note="nothing to add",
)


def test_what_is_read_is_what_was_written(tmp_path):
    path = tmp_path / "new" / "record.json"
    RECORD.write(path)
    found = Record.read(path)
    assert {n: v for n, v in vars(found).items() if n != "scores"} == {
        n: v for n, v in vars(RECORD).items() if n != "scores"
    }
    assert {name: values.tolist() for name, values in found.scores.items()} == {"nll": [1.5, 3.5], "ais": [1.0]}
    assert found.scores["nll"].dtype == np.float32
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    assert content["scores"]["file"] == "record.npz"
    assert set(content) == {item.name for item in fields(Record)} | {"schema"}


def test_a_record_is_replaced_only_if_asked_for(tmp_path):
    path = tmp_path / "record.json"
    RECORD.write(path)
    with pytest.raises(RecordExistsError, match="--overwrite"):
        RECORD.write(path)
    replace(RECORD, scores={}, label="another").write(path, overwrite=True)
    assert Record.read(path).label == "another"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("content", ["{}", "[1]", "a list of mine", '{"kind": "vae", "settings": {}}'])
def test_only_a_record_is_replaced(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(RecordExistsError, match="is no record, and stays as it is; name another place"):
        Record.refuse_to_replace(path, overwrite=True)
    with pytest.raises(RecordExistsError, match="give --overwrite"):
        Record.refuse_to_replace(path)
    assert path.read_text() == content
    path.write_text('{"schema": 0}')  # of another version
    Record.refuse_to_replace(path, overwrite=True)


@pytest.mark.parametrize("scores", [RECORD.scores, {}])
@pytest.mark.parametrize("old", [False, True])
def test_scores_replace_those_of_the_record_alone(tmp_path, old, scores):
    path, beside = tmp_path / "run.json", tmp_path / "run.npz"
    if old:
        replace(RECORD, scores={}).write(path)
    beside.write_bytes(b"mine")
    with pytest.raises(RecordExistsError, match=r"run\.npz, where the scores go, is of no record, and stays as it is"):
        replace(RECORD, scores=scores).write(path, overwrite=True)
    assert beside.read_bytes() == b"mine"
    beside.unlink()
    RECORD.write(path, overwrite=True)
    replace(RECORD, scores=scores).write(path, overwrite=True)
    assert beside.exists() == bool(scores)


def test_scores_are_float32_vectors(tmp_path):
    for wrong in (np.zeros(3), np.zeros((3, 1), np.float32)):
        with pytest.raises(ValueError, match="nll is float"):
            replace(RECORD, scores={"nll": wrong}).write(tmp_path / "record.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "there is no record"),
        (lambda path: path.write_text("{"), "is no record"),
        (lambda path: path.write_text("[]"), "names no schema"),
        (lambda path: path.write_text('{"nll": 3}'), "names no schema"),
        (lambda path: path.write_text('{"schema": 1}'), "missing"),
        (lambda path: path.write_text(path.read_text().replace('"schema": 1', '"schema": 2')), "another schema"),
        (lambda path: path.write_text(path.read_text().replace('"label"', '"lable"')), "lable"),
        (lambda path: path.write_text(path.read_text().replace('"a toy"', "3")), "label is 3"),
        (lambda path: path.with_suffix(".npz").unlink(), "scores .* are missing"),
        (lambda path: path.with_suffix(".npz").write_bytes(b"PK"), "not those"),
    ],
)
def test_damaged_records_are_refused(damage, words, tmp_path):
    path = tmp_path / "record.json"
    RECORD.write(path)
    damage(path)
    with pytest.raises(RecordError, match=words):
        Record.read(path)


PLAIN = VAETrainConfig()
DIFFERENT = {
    "latent sizes": replace(PLAIN, vae=VAEConfig(latent_dims=(4,))),
    "batch norm": replace(PLAIN, vae=VAEConfig(batch_norm=True)),
    "hidden layers": replace(PLAIN, vae=VAEConfig(hidden_dims=((10,),))),
    "batch size": replace(PLAIN, batch_size=250),
    "rate": replace(PLAIN, learning_rate=2e-3),
    "seed": replace(PLAIN, seed=1),
    "objective": replace(PLAIN, objective="iwae"),
    "particles": replace(PLAIN, num_particles=2),
    "data": replace(PLAIN, dataset="mnist"),
    "kind": ImageTrainConfig(),
}


def test_runs_share_a_key_only_if_all_their_settings_are_equal(tmp_path):
    keys = {name: config.key for name, config in DIFFERENT.items()} | {"plain": PLAIN.key}
    assert len(set(keys.values())) == len(keys)
    elsewhere = replace(PLAIN, data_root=tmp_path, device="cuda", threads=2, checkpoint_seconds=1.0, cuda_graph=True)
    assert elsewhere.key == PLAIN.key
    assert PLAIN.key.startswith("digits-g1-clean-e100-s0-")
    vae = VAEConfig(latent_dims=(4,), hidden_dims=((10, 20),), batch_norm=True, activation="relu")
    assert replace(PLAIN, vae=vae).slug == "digits-g1-z4-h10x20-relu-bn-clean-e100-s0"


def test_the_key_is_a_digest_of_the_settings():
    # printf '{"a": 1, "b": [2, null]}' | sha256sum
    assert row_key("toy", {"b": [2, None], "a": 1}) == "toy-c8caf5ad"


def test_a_run_goes_on_only_with_its_own_settings(tmp_path):
    folder = tmp_path / "run"
    assert Run.open_or_create(folder, PLAIN).config == PLAIN
    assert Run.open_or_create(folder, replace(PLAIN, threads=3)).config == replace(PLAIN, threads=3)
    with pytest.raises(RunError, match="begun with batch_size=100, not 7"):
        Run.open_or_create(folder, replace(PLAIN, batch_size=7))
    with pytest.raises(RunError, match=r"begun with vae.batch_norm=False, not True"):
        Run.open_or_create(folder, replace(PLAIN, vae=replace(PLAIN.vae, batch_norm=True)))


def test_the_revision_is_gits_or_the_environments(tmp_path, monkeypatch):
    package = tmp_path / "vi_flows"
    package.mkdir()
    file = package / "records.py"
    file.touch()
    monkeypatch.setenv("VI_FLOWS_REVISION", "abc")
    monkeypatch.setattr(records, "__file__", str(file))
    assert git_revision() == "abc"

    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)

    git("init")
    (tmp_path / "other").touch()
    git("add", "other")
    git("commit", "-m", "of another project")
    assert git_revision() == "abc"  # a repository around an installed copy is not its own
    git("add", "vi_flows")
    git("commit", "-m", "ours")
    head = git("rev-parse", "HEAD").stdout.strip()
    assert git_revision() == head
    (tmp_path / "other").write_text("a record, or a page")
    assert git_revision() == head
    file.write_text("changed")
    assert git_revision() == head + "-dirty"
    monkeypatch.delenv("VI_FLOWS_REVISION")
    monkeypatch.setattr(records, "__file__", str(tmp_path / "nowhere" / "records.py"))
    assert git_revision() is None


def test_provenance_says_what_made_it():
    found = provenance(clock=Clock(), data_sha256="x")
    assert {"revision", "torch", "vi_flows", "device", "threads", "date", "seconds", "cpu_seconds"} <= set(found)
    assert found["data_sha256"] == "x"
    assert Path(records.__file__).exists()


def strictly(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_json_does_not_know_come_back_from_strict_json():
    value = {"a": [math.nan, (math.inf, {"b": -math.inf})], "c": 1.5, "d": "nan", "e": None, "f": True, "g": 3}
    text = to_json(value)
    assert strictly(text) == {"a": ["NaN", ["Infinity", {"b": "-Infinity"}]], **{n: value[n] for n in "cdefg"}}
    (first, (second, inner)) = from_json(text)["a"]
    assert math.isnan(first)
    assert (second, inner["b"]) == (math.inf, -math.inf)
    assert {name: from_json(text)[name] for name in "cdefg"} == {name: value[name] for name in "cdefg"}
    assert to_json(np.float64(math.nan)) == '"NaN"'


def test_older_files_with_bare_names_are_read():
    found = from_json('{"a": NaN, "b": [Infinity, -Infinity]}')
    assert math.isnan(found["a"])
    assert found["b"] == [math.inf, -math.inf]


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_a_text_that_would_come_back_as_a_number_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match=f"the text '{text}' can't be written"):
        replace(RECORD, settings={"names": [text]}).write(tmp_path / "record.json")
    assert list(tmp_path.glob("*.json*")) == []


def test_a_record_with_a_figure_that_is_not_finite(tmp_path):
    path = tmp_path / "record.json"
    replace(RECORD, figures={"nll": math.inf, "k_hat": [math.nan, 0.5]}).write(path)
    assert strictly(path.read_text())["figures"] == {"nll": "Infinity", "k_hat": ["NaN", 0.5]}
    figures = Record.read(path).figures
    assert figures["nll"] == math.inf
    assert math.isnan(figures["k_hat"][0])


def test_metrics_and_checkpoints_of_a_run_whose_validation_is_not_finite(tmp_path, monkeypatch):
    small = VAEConfig(latent_dims=(2,), hidden_dims=((4,),))
    trainer = Trainer(
        Run.create(tmp_path / "run", VAETrainConfig(vae=small, epochs=2, batch_size=400, threads=1)), progress=False
    )
    trainer.start()
    losses = iter([math.inf, math.nan])
    monkeypatch.setattr(trainer.task, "validate", lambda: next(losses))
    trainer.fit()
    lines = [strictly(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["valid_loss"] for line in lines] == ["Infinity", "NaN"]
    status = status_of_run(tmp_path / "run")
    assert (status.state, status.epoch) == ("finished", 2)
    assert math.isnan(status.best)
    save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, {"loss": math.inf})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert strictly(file.metadata()["state"]) == {"loss": "Infinity"}
    assert load_tensors(tmp_path / "a.safetensors")[1] == {"loss": math.inf}


def test_all_json_in_the_repository_is_strict():
    root = Path(__file__).parents[1]
    files = [path for folder in ("experiments", "tests", "vi_flows") for path in (root / folder).rglob("*.json*")]
    for path in files:
        content = path.read_text(encoding="utf-8")
        for part in content.splitlines() if path.suffix == ".jsonl" else [content]:
            strictly(part)
    assert len(files) > 100


@pytest.mark.parametrize("ended", [1, 2, 3])
@pytest.mark.parametrize("old", [False, True])
def test_a_record_whose_writing_is_ended_leaves_one_whole(tmp_path, monkeypatch, ended, old):
    """By a kill before the first, the second (the record's own file) or the third step."""
    path = tmp_path / "run.json"
    new = replace(RECORD, label="new", scores={"nll": np.zeros(5, np.float32)})
    if old:
        RECORD.write(path)
    steps = []

    def step(*args, do):
        steps.append(args)
        if len(steps) == ended:
            raise KeyboardInterrupt
        return do(*args)

    write, move = records.write_atomic, Path.replace
    with monkeypatch.context() as patched:
        patched.setattr(records, "write_atomic", partial(step, do=write))
        patched.setattr(
            Path, "replace", lambda self, to: step(self, to, do=move) if self.suffix == ".ready" else move(self, to)
        )
        with pytest.raises(KeyboardInterrupt):
            new.write(path, overwrite=True)
    if ended == 3:
        assert Record.read(path).label == "new"
        assert Record.read(path).scores["nll"].tolist() == [0.0] * 5
    elif old:
        assert Record.read(path).scores["nll"].tolist() == RECORD.scores["nll"].tolist()
    else:
        assert not path.exists()
    new.write(path, overwrite=True)  # nothing of it is in the way
    assert Record.read(path).label == "new"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.json", "run.npz"]
