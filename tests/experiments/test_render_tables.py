"""The README's VAE tables from records made up for it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from vi_flows.records import Record

FOLDER = Path(__file__).parents[2] / "experiments"
PUBLISHED = {"rows": {"iwae50": {"mnist": {"g1": 86.10}}}}


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("render_tables", FOLDER / "render_tables.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["render_tables"] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def record(nll, seed, ais=None, **settings):
    source = {"model": "g1", "epoch": 770, "steps": 154000, "started_from": None}
    figures = {"nll": nll, "interval": [nll - 0.4, nll + 0.4], "elbo": -nll - 3, "share_k_hat_above_0.7": 0.5}
    return Record(
        kind="vae", key=f"a{seed}", label="VAE, IW = 50", paper_row="iwae50",
        settings={
            "vae": {"flow": None, "num_extra_layers": 0, "amortized": True, "architecture": "g1"}, "objective": "iwae",
            "protocol": "clean", "epochs": 100, "seed": seed, "dataset": "binarized_mnist", **settings,
        },
        figures=figures | {"steps": 20000} | ({} if ais is None else {"ais": ais}),
        provenance={"started_from": source, "training_seconds": 12.0, "device": "cpu"},
    )  # fmt: skip


def test_seeds_are_averaged_and_annealing_stands_beside_the_samples(script):
    records = [record(87.0, 1), record(86.0, 0, ais={"gap": 0.4, "num_rows": 1000, "nll": 90.0})]
    lines = script.vae_table(records, PUBLISHED, "binarized_mnist", "g1")
    assert lines[4:] == [
        "| VAE, IW = 50 | 86.10 | 86.50 ± 0.71 | 85.60 – 86.40 | 85.60 (1000) | 89.50 | 50 % "
        "| clean, 770 + 100, 154000 + 20000, 2 |"
    ]
    apart = [record(87.0, 1), record(86.0, 0, protocol="paper"), record(86.0, 0, epochs=30)]
    assert len(script.vae_table(apart, PUBLISHED, "binarized_mnist", "g1")) == 4 + 3


def test_changes_of_the_recipe_stand_in_the_order_of_their_figures(script):
    names = [
        "ablation-binarized_mnist-g1-plain-finish-rate-3e-4-e800+100-s0",
        "ablation-binarized_mnist-g1-plain-ema-e800-s3",
    ]
    rows = [(Path(f"{names[0]}.json"), record(88.0, 0)), (Path(f"{names[1]}.json"), record(87.0, 3))]
    assert script.ablation_table(rows).splitlines()[4:] == [
        "| plain | ema, seed 3 | 87.00 | 770 + 100 | 154000 + 20000 | 12, cpu |",
        "| plain | finish-rate-3e-4, seed 0 | 88.00 | 770 + 100 | 154000 + 20000 | 12, cpu |",
    ]


def test_a_finish_after_dreg_has_a_label_of_its_own(script):
    """Its settings are those of a finish after the ELBO."""
    mine, other = record(85.1, 0), record(85.5, 0)
    mine.provenance["started_from"]["model"] = "g1-conv_flow-amortized-k8-tanh-dreg5"
    assert [script.label_of(mine), script.label_of(other)] == ["VAE, IW = 50, from DReG", "VAE, IW = 50"]


def test_what_the_encoders_guesses_cost(script, tmp_path, monkeypatch):
    """Records without a refined guide have no line."""
    monkeypatch.setattr(script, "HERE", tmp_path)
    for folder in ("vae", "refined"):
        (tmp_path / "results" / folder).mkdir(parents=True)
    record(86.0, 0).write(tmp_path / "results" / "vae" / "a.json")
    found = record(86.0, 1)
    found.figures.update(
        num_samples=50, num_rows=7,
        refined={"elbo": -87.5, "elbo_gain": 1.5, "elbo_gain_interval": [1.25, 1.75], "nll": 85.75, "steps": 30},
    )  # fmt: skip
    found.write(tmp_path / "results" / "refined" / "b.json")
    assert script.render_refined().splitlines()[2:] == [
        "| binarized_mnist, G1 | VAE, IW = 50 | 89.00 | 87.50 | 1.50 (1.25 – 1.75) | 86.00 | 85.75 | 30, 50, 7 |"
    ]
