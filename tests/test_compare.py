"""vi-flows compare, and vi-flows evaluate --pretrained."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from vi_flows.cli import main, runs
from vi_flows.records import Record

BASE = Record(
    kind="vae",
    key="a",
    label="plain",
    settings={"dataset": "digits", "evaluation": {"split": "test"}},
    figures={},
    provenance={"data_sha256": "x"},
    scores={"nll": np.arange(40, dtype=np.float32), "ais_nll": np.zeros(10, np.float32)},
)
# 0.5 lower on three images in four, 0.5 higher on the fourth: −0.25 on average.
CHANGE = np.where(np.arange(40) % 4 == 3, 0.5, -0.5).astype(np.float32)
BETTER = replace(BASE, label="with flow", scores={"elbo": np.zeros(40, np.float32), "nll": BASE.scores["nll"] + CHANGE})


def run(*words):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return stopped.value.code


@pytest.fixture
def plain(tmp_path):
    BASE.write(tmp_path / "run" / "results" / "record.json")
    return tmp_path / "run"


def test_a_run_and_a_record_are_compared_image_by_image(plain, tmp_path, capsys):
    BETTER.write(tmp_path / "better.json")
    assert run("compare", plain, tmp_path / "better.json") == 0
    out = capsys.readouterr().out
    assert "plain" in out
    assert "19.5000" in out
    assert "19.2500" in out
    assert "A − B: +0.2500, 95 % interval [+0." in out  # 1.96 · 0.439/√40 = 0.136
    assert "over 40 images: the interval leaves 0 out" in out
    assert run("compare", plain, plain) == 0
    assert "the interval holds 0" in capsys.readouterr().out
    assert run("compare", plain, plain, "--score", "ais_nll") == 0
    assert "over 10 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "words", "code", "error"),
    [
        (replace(BETTER, scores={}), (), 1, "no scores of single images; evaluate the run again"),
        (BETTER, ("--score", "ais_nll"), 2, "don't both have ais_nll; both have: nll"),
        (replace(BETTER, scores={"bits_per_dim": np.zeros(40, np.float32)}), (), 2, "don't both have a score"),
        (replace(BETTER, scores={"nll": np.zeros(39, np.float32)}), (), 2, "number of images is 40 in .* and 39 in"),
        (replace(BETTER, provenance={"data_sha256": "y"}), (), 2, "hash of the data"),
        (replace(BETTER, settings={"dataset": "digits", "evaluation": {"split": "valid"}}), (), 2, "split is test"),
        (replace(BETTER, settings={"dataset": "mnist", "evaluation": {"split": "test"}}), (), 2, "data set is digits"),
        (BETTER, ("--resamples", "0"), 2, "resamples must be at least 1"),
    ],
)
def test_what_can_not_be_compared_is_refused(other, words, code, error, plain, tmp_path, capsys):
    other.write(tmp_path / "other.json")
    assert run("compare", plain, tmp_path / "other.json", *words) == code
    found = " ".join(capsys.readouterr().err.split())
    assert found.startswith("vi-flows: ")
    assert re.search(error, found)


def test_a_folder_with_no_record_or_several_is_refused(plain, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run("compare", plain, tmp_path / "empty") == 1
    assert "vi-flows evaluate" in capsys.readouterr().err
    BETTER.write(plain / "results" / "second.json")
    assert run("compare", plain, plain) == 2
    assert "2 records, name one" in capsys.readouterr().err
    assert run("compare", tmp_path / "nowhere.json", plain / "results" / "record.json") == 1
    assert "there is no record" in capsys.readouterr().err


def test_pretrained_runs_are_found_by_name(tmp_path, monkeypatch, capsys):
    assert runs.pretrained_run("binarized_mnist-g2-amortized-k8-tanh-iwae5").is_dir()
    assert run("evaluate", "--pretrained", "nobody") == 2
    assert "binarized_mnist-g2-amortized-k8-tanh-iwae5" in capsys.readouterr().err
    assert run("evaluate") == 2
    assert run("evaluate", tmp_path, "--pretrained", "binarized_mnist-g2-amortized-k8-tanh-iwae5") == 2
    assert "--pretrained NAME" in capsys.readouterr().err
    monkeypatch.setattr(runs, "PRETRAINED", tmp_path / "site-packages")
    assert run("evaluate", "--pretrained", "binarized_mnist-g2-amortized-k8-tanh-iwae5") == 1
    assert "source repository; clone it" in capsys.readouterr().err
