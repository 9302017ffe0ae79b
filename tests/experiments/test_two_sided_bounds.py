"""The figure of the bounds takes its numbers from the record and its scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.two_sided_bounds import Options, Row, main
from vi_flows.records import Record

SETTINGS = {
    "vae": {"architecture": "g1", "flow": None, "num_extra_layers": 0, "amortized": False},
    "dataset": "digits", "objective": "elbo", "epochs": 3, "protocol": "clean", "seed": 0,
}  # fmt: skip
AIS = {"nll": 90.5, "interval": [89.0, 92.0], "num_rows": 2, "gap": 0.5}
BDMC = {"gap": 0.2, "gap_interval": [0.1, 0.3]}


def record(**ais: object) -> Record:
    scores = {"nll": [90.0, 92.0, 99.0], "nll_100": [91.0, 94.0, 99.0], "ais_nll": [89.5, 91.5]}
    figures = {
        "nll": 93.67, "interval": [90.0, 97.0], "elbo": -97.0, "share_k_hat_above_0.7": 0.5, "steps": 7,
        **({"ais": AIS | ais} if ais else {}),
    }  # fmt: skip
    vectors = {name: np.array(values, np.float32) for name, values in scores.items()}
    return Record("vae", "key", "VAE", dict(SETTINGS), figures, {}, scores=vectors)


def test_a_line_is_of_the_annealed_images_alone() -> None:
    row = Row.of(record(bdmc=BDMC), np.arange(2))
    assert (row.coarse, row.importance, row.annealed) == (92.5, 91.0, 90.5)
    assert row.interval == (89.5, 91.5)  # 2.5 % quantiles of means of two draws with replacement
    assert row.bdmc == (0.2, (0.1, 0.3))
    assert Row.of(record(start="prior"), np.arange(2)).bdmc is None
    assert Row.of(record(bdmc=BDMC | {"gap_interval": None}), np.arange(2)).bdmc is None
    one = Row.of(record(bdmc=BDMC), np.arange(1))
    assert (one.coarse, one.importance, one.annealed, one.images) == (91.0, 90.0, 89.5, "the first 1 test images")


def test_rows_of_a_panel_are_of_the_same_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Means over ten thousand and over the first thousand can't be set side by side: the latter are harder."""
    record(bdmc=BDMC).write(tmp_path / "two.json")
    shorter = record(start="prior")
    shorter.scores["ais_nll"] = shorter.scores["ais_nll"][:1]
    shorter.write(tmp_path / "one.json")
    main(Options(tmp_path, tmp_path / "figure.png"))
    assert capsys.readouterr().out.count("91.000 and 90.000 by samples, 89.500 by annealing") == 2


def test_a_panel_is_of_the_images_that_all_were_annealed_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second record's are the last two, of which the first has one."""
    record(bdmc=BDMC).write(tmp_path / "first.json")
    last = record(bdmc=BDMC)
    scores = {**last.scores, "ais_image": np.array([1, 2], np.float32)}
    replace(last, scores=scores).write(tmp_path / "last.json")
    main(Options(tmp_path, tmp_path / "figure.png"))
    shown = capsys.readouterr().out
    assert "94.000 and 92.000 by samples, 91.500 by annealing" in shown
    assert "94.000 and 92.000 by samples, 89.500 by annealing" in shown


def test_lines_that_differ_have_labels_that_differ() -> None:
    """By protocol, seed, and what a finish went on from."""
    plain = Row.of(record(bdmc=BDMC), np.arange(2))
    assert (plain.panel, plain.label) == ("digits, G1", "VAE")
    other = record(bdmc=BDMC)
    other.settings.update(protocol="paper", seed=2)
    other.provenance["started_from"] = {"model": "g1-dreg5"}
    assert Row.of(other, np.arange(2)).label == "VAE, from DReG, paper's protocol, seed 2"


def test_the_figure_is_drawn_or_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(tmp_path, tmp_path / "figure.png")
    record().write(tmp_path / "plain.json")
    with pytest.raises(ValueError, match="--ais"):
        main(options)
    record(bdmc=BDMC).write(tmp_path / "one.json")
    record(start="prior").write(tmp_path / "two.json")
    main(options)
    assert capsys.readouterr().out.count("92.500 and 91.000 by samples, 90.500 by annealing") == 2
    assert options.figure.stat().st_size > 5000
