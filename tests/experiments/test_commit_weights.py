"""Putting a run among the committed ones."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from vi_flows.training import Run, Trainer, VAETrainConfig
from vi_flows.vae import VAEConfig

FILE = Path(__file__).parents[2] / "experiments" / "commit_weights.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("commit_weights", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["commit_weights"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((4,),)), epochs=1, batch_size=400, threads=1,
                            protocol="paper")  # fmt: skip
    trainer = Trainer(Run.create(tmp_path_factory.mktemp("commit") / "run", config), progress=False)
    trainer.start()
    trainer.fit()
    return trainer.run


def test_a_run_keeps_its_weights_and_loses_the_rest(script, run, tmp_path, capsys):
    script.main(script.Commit(run.folder, "small", tmp_path))
    folder = tmp_path / "small"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "last.safetensors.xz", "metrics.jsonl"]
    assert Run.open(folder).weights.sha256() == run.weights.sha256()
    assert Run.open(folder).key == run.key
    assert (folder / "metrics.jsonl").read_bytes() == (run.folder / "metrics.jsonl").read_bytes()
    size = (folder / "last.safetensors.xz").stat().st_size
    assert f"{size:,} bytes; {size:,} of 20,000,000 are used" in capsys.readouterr().out
    with pytest.raises(ValueError, match="take another name"):
        script.main(script.Commit(run.folder, "small", tmp_path))


def test_where_it_lay_and_what_computed_is_left_out(script, run, tmp_path):
    path = run.folder / "config.json"
    before = path.read_text()
    settings = json.loads(before)
    settings["settings"].update(data_root="/somewhere", start_from="/a/run", device="cuda", cuda_graph=True)
    path.write_text(json.dumps(settings))
    try:
        copy = tmp_path / "copy"
        script.put(Run.open(run.folder), copy)
    finally:
        path.write_text(before)
    found = json.loads((copy / "config.json").read_text())["settings"]
    assert [found[n] for n in ("data_root", "start_from", "device", "cuda_graph")] == [None, None, "cpu", False]


def test_too_much_is_taken_away_again(script, run, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "LIMIT", 1000)
    with pytest.raises(ValueError, match=r"more than 1,000$"):
        script.main(script.Commit(run.folder, "small", tmp_path))
    assert list(tmp_path.iterdir()) == []
