"""Annealed importance sampling of a run, from the command line to the record."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_cli import run
from vi_flows.records import Record
from vi_flows.training.kinds import KINDS
from vi_flows.vae import AISSettings

SMALL = ("--epochs", 1, "--batch-size", 300, "--quiet", "--threads", 1)
AIS = ("--ais", "--ais-chains", 3, "--ais-temperatures", 30, "--ais-leapfrog", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annealing") / "run"
    assert run("train", "vae", "--out", folder, *SMALL, "--latent-dims", 4) == 0
    return folder


def test_evaluate_anneals_and_says_so(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "record.json"
    options = ("--num-samples", 200, "--limit", 30, "--record", path, "--quiet", "--device", "cpu")
    assert run("evaluate", folder, *options, *AIS, "--ais-images", 12, "--ais-model-images", 5) == 0
    shown = capsys.readouterr().out
    assert "on 12 images spread over all" in shown
    assert "  30 alone, spread evenly over all of the split" in shown
    assert "3 chains of 30 temperatures from the gaussian" in shown
    assert "BDMC on 5 images" in shown
    written = Record.read(path)
    record = written.figures
    assert written.scores["ais_nll"].shape == (12,)
    assert written.images("ais_nll").tolist() == [15, 35, 65, 85, 115, 135, 165, 185, 215, 235, 265, 285]
    assert written.images("nll").tolist() == list(range(5, 300, 10))
    assert written.settings["evaluation"]["ais"]["chains"] == 3
    ais = record["ais"]
    assert (record["num_rows"], ais["num_rows"], ais["bdmc"]["num_rows"], ais["leapfrog"]) == (30, 12, 5, 2)
    # A posterior of 4 numbers after one epoch is almost the encoder's Gaussian: both estimates are near the truth.
    assert abs(ais["gap"]) < 0.1
    assert ais["nll"] + ais["gap"] == pytest.approx(ais["nll_importance"])
    assert abs(ais["bdmc"]["gap"]) < 0.3


def test_options_that_would_be_ignored_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", folder, "--ais-chains", 4, "--quiet") == 2
    assert "--ais-chains needs --ais" in capsys.readouterr().err
    assert run("evaluate", folder, "--ais", "--ais-temperatures", 1, "--quiet") == 2
    assert "temperatures must be at least 2" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"vae", "pixel_vae"}))
def test_other_kinds_have_nothing_to_anneal(name: str) -> None:
    with pytest.raises(ValueError, match=f"kind {name} has no ais; it takes split, limit, seed"):
        KINDS[name].evaluation_settings({"limit": 3, "ais": AISSettings()})
