"""A run whose guide is refined for each image before it is sampled, from the command line to the record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.test_cli import run
from vi_flows.records import Record
from vi_flows.training import Run
from vi_flows.training.evaluate import evaluate_run
from vi_flows.training.kinds import KINDS
from vi_flows.training.tasks.vae import VAEEvaluationSettings
from vi_flows.vae import RefinementSettings

SMALL = ("--epochs", 1, "--batch-size", 300, "--quiet", "--threads", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert run("train", "vae", "--out", folder, *SMALL, "--latent-dims", 4) == 0
    return folder


def test_evaluate_refines_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--num-samples", 60, "--limit", 30, "--quiet", "--device", "cpu")
    assert run("evaluate", folder, *options) == 0
    assert "refined for" not in capsys.readouterr().out
    assert run("evaluate", folder, *options, "--refine", 25) == 0
    assert "refined for each image (25 steps): ELBO" in capsys.readouterr().out
    plain, refined = (
        Record.read(next((folder / "results").glob(f"*-spread30{suffix}.json"))) for suffix in ("", "-refined25")
    )
    assert (plain.key, plain.label) == (refined.key, refined.label)
    # What there was without it stays as it is, and what it adds stands beside it.
    assert {name: refined.figures[name] for name in plain.figures} == plain.figures
    assert refined.figures["refined"]["steps"] == refined.settings["evaluation"]["refine"]["steps"] == 25
    assert refined.figures["refined"]["num_samples"] == 60
    gain = refined.scores["refined_elbo"] - refined.scores["elbo"]
    assert refined.figures["refined"]["elbo_gain"] == pytest.approx(gain.mean(), abs=1e-4)


def test_a_refined_evaluation_that_is_stopped_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vi_flows.records.git_revision", lambda: "a" * 40)
    settings = VAEEvaluationSettings(num_samples=20, limit=25, refine=RefinementSettings(5))
    trained = Run.open(folder)
    whole, _ = evaluate_run(trained, settings, record=tmp_path / "whole.json", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("vi_flows.vae.evidence.RefinedGuide", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate_run(trained, settings, record=tmp_path / "r.json", progress=False)
    kept = sorted(path.name for path in (tmp_path / ".r.parts").iterdir())
    assert kept == ["importance-0.safetensors", "importance-20.safetensors", "offsets-0.safetensors"]
    monkeypatch.setattr("vi_flows.vae.refinement._refined", lambda *args: 1 / 0)  # it is not done again
    found, _ = evaluate_run(trained, settings, record=tmp_path / "r.json", progress=False)
    for name, values in whole.scores.items():
        assert np.array_equal(found.scores[name], values, equal_nan=True), name


def test_a_count_that_is_none_and_kinds_without_a_guide_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", folder, "--refine", 0, "--quiet") == 2
    assert "refine must be at least 1" in capsys.readouterr().err
    for name in set(KINDS) - {"vae", "pixel_vae"}:
        with pytest.raises(ValueError, match=f"kind {name} has no refine"):
            KINDS[name].evaluation_settings({"refine": RefinementSettings()})
