"""vi-flows compare, and vi-flows evaluate --pretrained."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vi_flows.cli import main, runs
from vi_flows.records import Record
from vi_flows.training.judged import judged
from vi_flows.training.kinds import KINDS

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
        (
            replace(
                BETTER, settings={"dataset": "mnist", "evaluation": {"split": "test"}}, provenance={"data_sha256": "y"}
            ),
            (),
            2,
            "data set is digits",
        ),
        (
            replace(BETTER, kind="pixel", settings={**BASE.settings, "pixel": {"output": "categorical"}}),
            (),
            2,
            "nll is that of binary pixels in .* and of pixels as they are in .*; compare runs that score the same",
        ),
        (
            replace(BETTER, kind="pixel", settings={**BASE.settings, "labels": True}),
            (),
            2,
            "of binary pixels in .* and of binary pixels given the class in",
        ),
        (BETTER, ("--resamples", "0"), 2, "resamples must be at least 1"),
    ],
)
def test_what_can_not_be_compared_is_refused(other, words, code, error, plain, tmp_path, capsys):
    other.write(tmp_path / "other.json")
    assert run("compare", plain, tmp_path / "other.json", *words) == code
    found = " ".join(capsys.readouterr().err.split())
    assert found.startswith("vi-flows: ")
    assert re.search(error, found)


def test_the_same_data_may_lie_in_several_places(plain, tmp_path, capsys):
    replace(BETTER, settings={**BASE.settings, "dataset": "./digits"}).write(tmp_path / "other.json")
    assert run("compare", plain, tmp_path / "other.json") == 0
    replace(BASE, provenance={}).write(tmp_path / "old.json")
    replace(BETTER, settings={**BASE.settings, "dataset": "./digits"}, provenance={}).write(tmp_path / "other_old.json")
    assert run("compare", tmp_path / "old.json", tmp_path / "other_old.json") == 2
    assert "the data set is digits in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("score", "first", "second", "said"),
    [
        (
            "nll",
            {"num_samples": 1},
            {"num_samples": 2000},
            "nll is a bound, and --num-samples is 1 for A and 2000 for B",
        ),
        ("nll", {}, {"num_samples": 2000}, "--num-samples is 5000 for A and 2000 for B: with fewer it is looser"),
        ("nll", {"num_samples": 9}, {"num_samples": 9, "seed": 2}, None),
        ("elbo", {"num_samples": 1}, {"num_samples": 2000}, None),
        ("ais_nll", {"ais": {"chains": 4}}, {"ais": {"chains": 16}}, "--ais-chains is 4 for A and 16 for B"),
        (
            "ais_nll",
            {"ais": {"start": "prior"}},
            {"ais": {}},
            "--ais-start is prior for A and gaussian for B: they",
        ),
        ("ais_nll", {"ais": {"leapfrog": 4}}, {"ais": {}}, "--ais-leapfrog is 4 for A and 8 for B: with fewer"),
        ("refined_nll", {"refine": {"steps": 3}}, {"refine": {"steps": 9}}, "--refine is 3 for A and 9 for B"),
    ],
)
def test_bounds_of_unequal_effort_are_said_to_be(score, first, second, said, tmp_path, capsys):
    for name, evaluation in (("first", first), ("second", second)):
        settings = {"dataset": "digits", "evaluation": {"split": "test", "weights": "best", **evaluation}}
        replace(BASE, settings=settings, scores={score: BASE.scores["nll"]}).write(tmp_path / f"{name}.json")
    assert run("compare", tmp_path / "first.json", tmp_path / "second.json") == 0
    found = " ".join(capsys.readouterr().out.split())
    assert said in found if said else "looser" not in found


def test_a_bound_beside_an_exact_score_is_said_to_be_one(plain, tmp_path, capsys):
    settings = {"dataset": "digits", "evaluation": {"split": "test", "weights": "best", "num_samples": 50}}
    replace(BASE, settings=settings).write(tmp_path / "vae.json")
    exact = {"dataset": "digits", "evaluation": {"split": "test", "weights": "best"}}
    replace(BETTER, kind="pixel", settings=exact).write(tmp_path / "made.json")
    for words, letters in ((("vae.json", "made.json"), "AB"), (("made.json", "vae.json"), "BA")):
        assert run("compare", *(tmp_path / word for word in words)) == 0
        found = " ".join(capsys.readouterr().out.split())
        assert f"nll of {letters[0]} is a bound, with --num-samples 50, and that of {letters[1]} is exact" in found


def test_committed_records_of_runs_say_what_they_score():
    """Those of every version so far are read."""
    folder = Path(__file__).parents[1] / "experiments" / "results"
    records = [Record.read(path) for path in folder.rglob("*.json") if '"evaluation"' in path.read_text()]
    found = {(record.kind, of.scored) for record in records if (of := judged(record)) is not None}
    unread = [record.key for record in records if record.kind in KINDS and judged(record) is None]
    assert not unread
    assert {("vae", "binary pixels"), ("image", "pixels as they are"), ("wave", "sound given the digit")} <= found


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


def test_scores_of_other_images_are_not_compared(plain, tmp_path, capsys):
    """As many, and not the same: the first ones, and some that are spread over all."""
    spread = {**BASE.scores, "ais_image": np.arange(2, 40, 4, dtype=np.float32)}
    replace(BASE, scores=spread).write(tmp_path / "spread.json")
    assert run("compare", plain, tmp_path / "spread.json", "--score", "ais_nll") == 2
    assert "not the same images: ais_nll is of others of them" in capsys.readouterr().err
    assert run("compare", plain, tmp_path / "spread.json") == 0
    assert run("compare", tmp_path / "spread.json", tmp_path / "spread.json", "--score", "ais_nll") == 0
    assert run("compare", tmp_path / "spread.json", tmp_path / "spread.json", "--score", "ais_image") == 2
    some = {
        "image": np.arange(5, 5 + 3 * len(BASE.scores["nll"]), 3, dtype=np.float32),
        "ais_image": [2.0],
        "ais_nll": [1.0],
    }
    limited = replace(BASE, scores=BASE.scores | {name: np.asarray(of, np.float32) for name, of in some.items()})
    assert limited.images("nll")[:3].tolist() == [5, 8, 11]
    assert limited.images("ais_nll").tolist() == [11]  # the third of those that were scored
    limited.write(tmp_path / "limited.json")
    assert run("compare", plain, tmp_path / "limited.json") == 2
    assert "not the same images: nll is of others of them" in capsys.readouterr().err
    assert run("compare", tmp_path / "limited.json", tmp_path / "limited.json", "--score", "image") == 2
