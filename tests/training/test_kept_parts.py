"""An evaluation that is stopped goes on: to the same figures, and only with what belongs to it."""

from __future__ import annotations

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from vi_flows.records import Record
from vi_flows.training import Run, VAETrainConfig
from vi_flows.training.captured import trainer_for
from vi_flows.training.checkpoint import load_tensors
from vi_flows.training.errors import RunUnusableError
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.kept import KeptParts
from vi_flows.training.tasks.vae import VAEEvaluationSettings
from vi_flows.vae import VAE, AISSettings, VAEConfig

ANNEALING = AISSettings(chains=2, temperatures=4, leapfrog=2, images=30, model_images=10)
SETTINGS = VAEEvaluationSettings(num_samples=40, limit=70, ais=ANNEALING)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = VAETrainConfig(vae=VAEConfig(latent_dims=(3,), hidden_dims=((8,),)), epochs=1, batch_size=500, threads=1)
    trainer = trainer_for(Run.create(tmp_path_factory.mktemp("kept") / "run", config), progress=False)
    trainer.start()
    trainer.fit()
    return Run.open(trainer.run.folder)


class Stopped(Exception):
    pass


def stopping_at(monkeypatch, call, name="log_weight_terms"):
    """Count the calls of a VAE's method, and stop at one of them."""
    calls, original = [], getattr(VAE, name)

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise Stopped
        return original(*args, **kwargs)

    monkeypatch.setattr(VAE, name, counted)
    return calls


@pytest.mark.parametrize(("call", "kept"), [(3, 2), (None, 4)])
def test_it_goes_on_to_the_same_figures(run, tmp_path, monkeypatch, call, kept):
    monkeypatch.setattr("vi_flows.records.git_revision", lambda: "a" * 40)
    whole, _ = evaluate_run(run, SETTINGS, record=tmp_path / "whole.json", progress=False)
    path = tmp_path / "stopped.json"
    with monkeypatch.context() as patch:
        if call is None:  # in the annealing, with all of the importance sampling done
            patch.setattr("vi_flows.vae.evidence.annealed_vae", lambda *args, **kwargs: (_ for _ in ()).throw(Stopped))
        else:
            stopping_at(patch, call)
        with pytest.raises(Stopped):
            evaluate_run(run, SETTINGS, record=path, progress=False)
    assert not path.exists()
    folder = tmp_path / ".stopped.parts"
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"importance-{20 * i}.safetensors" for i in range(kept))
    calls = stopping_at(monkeypatch, None)
    found, _ = evaluate_run(run, SETTINGS, record=path, progress=False)
    assert len(calls) == 4 - kept  # of twenty images each: those that were done are not done again
    assert not folder.exists()
    assert found.scores.keys() == whole.scores.keys()
    for name, values in whole.scores.items():
        assert np.array_equal(found.scores[name], values, equal_nan=True), name
    timed = {"annealing_seconds", "seconds"}

    def untimed(figures):
        return {k: untimed(v) if isinstance(v, dict) else v for k, v in figures.items() if k not in timed}

    assert json.dumps(untimed(found.figures)) == json.dumps(untimed(whole.figures))
    assert set(found.provenance) - set(whole.provenance) == {"seconds_before", "cpu_seconds_before"}
    assert Record.read(path).figures == json.loads(json.dumps(found.figures))


def test_parts_of_another_evaluation_are_not_taken(tmp_path):
    record, made = tmp_path / "r.json", []

    def make(value):
        made.append(value)
        return {"x": torch.tensor([value])}

    first = KeptParts(record, {"seed": 0})
    assert first.part("a", 0, lambda: make(1.0))["x"].item() == 1
    assert first.part("a", 20, lambda: make(2.0))["x"].item() == 2
    again = KeptParts(record, {"seed": 0})
    assert again.part("a", 20, lambda: make(3.0))["x"].item() == 2
    other = KeptParts(record, {"seed": 1})
    assert other.part("a", 20, lambda: make(4.0))["x"].item() == 4
    # All parts of the other evaluation are gone, not only the one that was met.
    assert other.part("a", 0, lambda: make(5.0))["x"].item() == 5
    assert made == [1, 2, 4, 5]
    file = tmp_path / ".r.parts" / "a-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert KeptParts(record, {"seed": 1}).part("a", 0, lambda: make(6.0))["x"].item() == 6
    assert load_tensors(file)[0]["x"].item() == 6


def test_the_identity_holds_weights_code_and_settings(run, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("vi_flows.training.evaluate.KeptParts", lambda path, identity: seen.append(identity) or Kept())

    class Kept:
        cost_before: dict[str, float] = {}

        def part(self, name, first, make):
            return make()

        def alone(self):
            return nullcontext()

        def remove(self):
            pass

        seconds_before = 0.0

    settings = VAEEvaluationSettings(num_samples=2, limit=20)
    for revision in ("a" * 40, "b" * 40):
        monkeypatch.setattr("vi_flows.records.git_revision", lambda revision=revision: revision)
        evaluate_run(run, settings, record=tmp_path / f"{revision[0]}.json", progress=False)
    monkeypatch.setattr("vi_flows.records.git_revision", lambda: "a" * 40 + "-dirty")
    for name in ("c", "d"):  # changed code: two evaluations are never the same
        evaluate_run(run, settings, record=tmp_path / f"{name}.json", progress=False)
    assert seen[0] != seen[1]
    assert seen[2] != seen[3]
    assert seen[0]["weights"] == run.weights.sha256("best")
    assert seen[0]["settings"]["evaluation"]["num_samples"] == 2


def test_an_identity_has_no_order(tmp_path):
    one, other = {"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}
    assert KeptParts(tmp_path / "r.json", one).identity == KeptParts(tmp_path / "r.json", other).identity
    assert KeptParts(tmp_path / "r.json", one).identity != KeptParts(tmp_path / "r.json", {"a": 1}).identity


def test_what_parts_had_cost(tmp_path, monkeypatch):
    """Clocks that stand at 1, 3.26 and at 100, 101.51 before and after: 2.26 s and 1.51 s of the processor a part."""
    clocks = {"monotonic": [1.0, 3.26, 1.0, 3.26], "process_time": [100.0, 101.51, 100.0, 101.51]}
    for name, times in clocks.items():
        monkeypatch.setattr(f"vi_flows.training.kept.time.{name}", iter(times).__next__)
    parts = KeptParts(tmp_path / "record.json", {"seed": 1})
    assert parts.folder == tmp_path / ".record.parts"
    for first in (0, 5):
        parts.part("nll", first, lambda: {"x": torch.ones(2)})
    assert parts.cost_before == {}
    again = KeptParts(tmp_path / "record.json", {"seed": 1})
    for first in (0, 5):
        assert again.part("nll", first, None)["x"].tolist() == [1.0, 1.0]
    assert (again.seconds_before, again.cpu_seconds_before) == (pytest.approx(4.52), pytest.approx(3.02))
    assert again.cost_before == {"seconds_before": 4.5, "cpu_seconds_before": 3.0}
    again.remove()
    assert not again.folder.exists()


def test_a_second_evaluation_for_the_same_record_is_refused(run, tmp_path):
    path = tmp_path / "r.json"
    settings = VAEEvaluationSettings(num_samples=2, limit=20)
    with (
        KeptParts(path, {"seed": 0}).alone(),
        pytest.raises(RunUnusableError, match=r"another evaluation is writing .*r\.json; wait for it, or stop it"),
    ):
        evaluate_run(run, settings, record=path, progress=False)
    assert list(tmp_path.iterdir()) == []
    assert evaluate_run(run, settings, record=path, progress=False)[1] == path
    assert sorted(file.name for file in tmp_path.iterdir()) == ["r.json", "r.npz"]


def test_parts_of_another_evaluation_go_and_the_folder_that_is_held_stays(tmp_path):
    KeptParts(tmp_path / "r.json", {"seed": 0}).part("a", 0, lambda: {"x": torch.zeros(2)})
    parts = KeptParts(tmp_path / "r.json", {"seed": 1})
    with parts.alone():
        before = parts.folder.stat().st_ino
        parts.part("a", 0, lambda: {"x": torch.ones(2)})
        assert parts.folder.stat().st_ino == before
