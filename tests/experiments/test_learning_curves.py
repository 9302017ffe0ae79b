"""Learning curves: what is collected from runs, kept in the record, and read off them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.learning_curves import Options, main, read
from experiments.tables.curves import render_curves, steps_to
from vi_flows.training import Run, VAETrainConfig
from vi_flows.vae import VAEConfig

NAME = "digits-g1-{}-clean-e9-s0"


def make_run(folder: Path, valid: list[float], **settings: object) -> None:
    config = VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((3,),)), **settings)
    run = Run.create(folder, config)
    lines = [{"epoch": n + 1, "step": 10 * (n + 1), "train_bound": -80.0 - n, "seconds": 1.5 * n} for n in range(9)]
    for line, loss in zip(lines[2::3], valid, strict=True):
        line["valid_loss"] = loss
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_curves_outlive_their_runs(tmp_path, capsys):
    options = Options(tmp_path / "runs", tmp_path / "curves.json", tmp_path / "figure.png")
    with pytest.raises(ValueError, match="no run of the clean protocol"):
        main(options)
    make_run(tmp_path / "runs" / NAME.format("plain"), [95.0, 93.0, 92.5])
    make_run(tmp_path / "runs" / NAME.format("global-k8").replace("s0", "s1"), [95.0, 93.0, 92.5])  # another seed
    main(options)
    (row,) = read(options.record).values()
    assert (row["dataset"], row["architecture"], row["label"], row["objective"]) == ("digits", "g1", "VAE", "elbo")
    assert (row["steps"], row["valid"]) == ([30, 60, 90], [95.0, 93.0, 92.5])
    assert (row["train"], row["seconds"]) == ([82.0, 85.0, 88.0], [3.0, 7.5, 12.0])
    make_run(tmp_path / "more" / NAME.format("amortized-k8-tanh"), [94.0, 92.0, 91.0], objective="iwae")
    main(Options(tmp_path / "more", options.record, options.figure))
    assert list(read(options.record)) == [NAME.format("amortized-k8-tanh"), NAME.format("plain")]
    main(Options(None, options.record, options.figure))
    assert options.figure.stat().st_size > 5000
    make_run(tmp_path / "other" / NAME.format("planar"), [94.0, 92.0, 91.0])
    with pytest.raises(ValueError, match=r"none of the rows digits-g1-planar-clean-e9-s0 is .* shows plain,"):
        main(Options(tmp_path / "other", tmp_path / "other.json", options.figure))
    with pytest.raises(ValueError, match="--runs FOLDER"):
        main(Options(None, tmp_path / "none.json", options.figure))


def test_steps_to_a_level():
    row = {"steps": [10, 20, 30, 40], "valid": [95.0, 93.0, 93.5, 92.0]}
    assert [steps_to(row, level) for level in (93.0, 95.0, 92.9, 92.0, 91.9)] == [20, 10, 40, 40, None]


def test_only_bounds_of_one_objective_are_set_against_each_other(tmp_path, monkeypatch):
    make_run(tmp_path / "runs" / NAME.format("plain"), [95.0, 93.0, 92.5])
    make_run(tmp_path / "runs" / NAME.format("wide"), [94.0, 92.25, 92.0], num_particles=2)
    make_run(tmp_path / "runs" / NAME.format("iwae"), [94.0, 92.0, 91.9], objective="iwae", num_particles=5)
    options = Options(tmp_path / "runs", tmp_path / "curves.json", tmp_path / "figure.png")
    main(options)
    monkeypatch.setattr("experiments.tables.curves.RECORD", options.record)
    assert render_curves().splitlines()[2:] == [
        "| digits, G1 | VAE | 92.50 | 90 | 60 | 60 | 90 | – | 90 |",
        "| digits, G1 | VAE, draws = 2 | 92.00 | 90 | 60 | 60 | 90 | 60 | 90 |",
        "| digits, G1 | VAE, IW = 5 | 91.90 | 90 | 60 | 60 | 60 | – | 90 |",
    ]
