"""The README's VAE tables from records made up for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.tables import speed, vae
from experiments.tables.gains import Gain, gains
from experiments.tables.vae_rows import rows_of
from vi_flows.evaluation import paired_bootstrap
from vi_flows.records import Record

PUBLISHED = {"rows": {"iwae50": {"mnist": {"g1": 86.10}}}}


def record(nll, seed, ais=None, **settings):
    source = {"model": "g1", "epoch": 770, "steps": 154000, "started_from": None}
    figures = {"nll": nll, "interval": [nll - 0.4, nll + 0.4], "elbo": -nll - 3, "share_k_hat_above_0.7": 0.5}
    figures["num_rows"] = 10_000
    return Record(
        kind="vae", key=f"a{seed}", label="VAE, IW = 50", paper_row="iwae50",
        settings={
            "vae": {"flow": None, "num_extra_layers": 0, "amortized": True, "architecture": "g1"}, "objective": "iwae",
            "protocol": "clean", "epochs": 100, "seed": seed, "dataset": "binarized_mnist", **settings,
        },
        figures=figures | {"steps": 20000} | ({} if ais is None else {"ais": ais}),
        provenance={"started_from": source, "training_seconds": 12.0, "device": "cpu"},
    )  # fmt: skip


PLACE = "binarized_mnist", "g1"


def test_seeds_are_averaged_and_annealing_stands_beside_the_samples():
    ais = {"gap": 0.4, "num_rows": 1000, "nll": 90.0, "gap_interval": [0.25, 0.75]}
    records = [record(87.0, 1), record(86.0, 0, ais=ais)]
    spread = replace(records[1], scores={"ais_image": np.arange(5, 10_000, 10, dtype=np.float32)})
    whole = record(86.0, 0, ais=ais | {"num_rows": 10_000})
    # What annealing finds on the first images, which may be of one class, says nothing of the likelihood of all.
    for annealed, cells in (
        (records[1], "– | 0.40, 0.25 – 0.75 (first 1000)"),
        (spread, "85.60 | 0.40, 0.25 – 0.75 (1000)"),
        (whole, "85.60 | 0.40, 0.25 – 0.75 (10000)"),
    ):
        lines = vae.vae_table(rows_of([records[0], annealed]), PUBLISHED, {}, PLACE)
        assert lines[4:] == [
            f"| VAE, IW = 50 | 86.10 | 86.50 ± 0.71 | 85.60 – 86.40 | {cells} | – | 89.50 | 50 % "
            "| clean, 770 + 100, 154000 + 20000, 2 |"
        ]
    apart = [record(87.0, 1), record(86.0, 0, protocol="paper"), record(86.0, 0, epochs=30)]
    assert len(vae.vae_table(rows_of(apart), PUBLISHED, {}, PLACE)) == 4 + 3
    assert len(vae.vae_table(rows_of(apart), PUBLISHED, {}, ("binarized_mnist", "g2"))) == 4


def scored(seed, scores, flow=None, **settings):
    """A record with scores of single images; of a flow where that is named."""
    made = record(86.0, seed, num_particles=50, **settings)
    made.settings["vae"]["flow"] = flow
    values = {name: np.asarray(each, np.float32) for name, each in scores.items()}
    return replace(made, label="VAE" if flow is None else flow["type"], scores=values)


def test_gains_are_of_the_images_that_both_were_scored_on():
    plain = scored(0, {"nll": [1.0, 2.0, 3.0, 4.0], "ais_nll": [9.0, 8.0, 7.0], "ais_image": [0, 2, 3]})
    other = scored(0, {"nll": [1.0, 1.0, 1.0], "ais_nll": [5.0, 5.0, 5.0]}, flow={"type": "conv_flow"})
    (by_samples,) = gains([plain, other], "nll").values()
    assert (by_samples.mean, by_samples.num_images) == (1.0, 3)  # 0, 1 and 2
    (by_annealing,) = gains([plain, other], "ais_nll").values()
    assert (by_annealing.mean, by_annealing.num_images) == (3.5, 2)  # 9 − 5 and 8 − 5, of images 0 and 2


def test_gains_are_those_of_compare():
    """Seeds are averaged before images are drawn; a seed that one side lacks is left out."""
    rng = np.random.default_rng(0)
    plain = [scored(seed, {"nll": rng.normal(90, 9, 300), "ais_nll": rng.normal(90, 9, 40)}) for seed in (0, 1)]
    noise = [rng.normal(1, 2, 300).astype(np.float32) for _ in range(3)]
    flow = [
        scored(seed, {"nll": plain[min(seed, 1)].scores["nll"] - noise[seed], "ais_nll": np.full(30, 88.0)},
               flow={"type": "ConvFlow"}) for seed in (0, 1, 2)
    ]  # fmt: skip
    (found,) = gains([*plain, *flow], "nll").values()
    difference = [
        torch.from_numpy(p.scores["nll"].astype(float) - f.scores["nll"]) for p, f in zip(plain, flow[:2], strict=True)
    ]
    expected = paired_bootstrap(sum(difference) / 2, torch.zeros(300))
    assert found.mean == pytest.approx(expected.difference)
    assert found.interval == pytest.approx(expected.interval)
    assert (found.num_images, found.num_seeds) == (300, 2)
    (annealed,) = gains([*plain, *flow], "ais_nll").values()
    assert annealed.num_images == 30
    both = np.mean([p.scores["ais_nll"][:30] for p in plain])
    assert annealed.mean == pytest.approx(both - 88.0, abs=1e-5)


def test_only_the_plain_vae_of_the_same_settings_is_a_measure():
    flow = scored(0, {"nll": [1.0, 2.0]}, flow={"type": "ConvFlow"})
    for other in ({"protocol": "paper"}, {"objective": "elbo"}, {"dataset": "omniglot28"}, {"epochs": 2000}):
        assert gains([scored(0, {"nll": [3.0, 3.0]}, **other), flow], "nll") == {}
    few = scored(0, {"nll": [3.0, 3.0]})
    few.settings["num_particles"] = 5
    assert gains([few, flow], "nll") == {}
    for beyond in ({"prior": {"type": "MAF"}}, {"encoder_dims": [[500]]}, {"num_extra_layers": 4}):
        larger = scored(0, {"nll": [3.0, 3.0]})
        larger.settings["vae"].update(beyond)
        assert gains([larger, flow], "nll") == {}
    assert len(gains([scored(0, {"nll": [3.0, 3.0]}), flow], "nll")) == 1
    longer = scored(0, {"nll": [2.0, 2.0]}, epochs=2000)
    ways = [scored(0, {"nll": [4.0, 4.0]}), scored(0, {"nll": [3.0, 3.0]})]
    ways[0].provenance["started_from"]["epoch"] = 1990  # of a longer run before the last one
    for records in ([longer, ways[1]], [*ways, longer], [*ways[::-1], longer]):
        (found,) = gains([*records, flow], "nll").values()
        assert found.mean == 1.5
    assert gains([scored(1, {"nll": [3.0, 3.0]}), flow], "nll") == {}
    assert gains([scored(0, {"elbo": [3.0, 3.0]}), flow], "nll") == {}


def test_scores_of_different_data_are_not_compared():
    pair = scored(0, {"nll": [3.0, 3.0]}), scored(0, {"nll": [1.0, 2.0]}, flow={"type": "ConvFlow"})
    for number, each in enumerate(pair):
        each.provenance["data_sha256"] = str(number)
    with pytest.raises(ValueError, match="scored on different data: 0 and 1"):
        gains(pair, "nll")


def test_a_gain_in_words():
    assert str(Gain(-0.251, (-0.5, 0.125), 10, 1)) == "−0.25, −0.50 – 0.12"


def test_a_finish_after_dreg_has_a_label_of_its_own():
    """Its settings are those of a finish after the ELBO."""
    mine, other = record(85.1, 0), record(85.5, 0)
    mine.provenance["started_from"]["model"] = "g1-conv_flow-amortized-k8-tanh-dreg5"
    assert [vae.label_of(mine), vae.label_of(other)] == ["VAE, IW = 50, from DReG", "VAE, IW = 50"]


def test_what_the_encoders_guesses_cost(tmp_path, monkeypatch):
    """Records without a refined guide have no line."""
    monkeypatch.setattr(vae, "RESULTS", tmp_path)
    for folder in ("vae", "refined"):
        (tmp_path / folder).mkdir(parents=True)
    record(86.0, 0).write(tmp_path / "vae" / "a.json")
    found = record(86.0, 1)
    found.figures.update(
        num_samples=50, num_rows=7,
        refined={"elbo": -87.5, "elbo_gain": 1.5, "elbo_gain_interval": [1.25, 1.75], "nll": 85.75, "steps": 30},
    )  # fmt: skip
    found.write(tmp_path / "refined" / "b.json")
    assert vae.render_refined().splitlines()[2:] == [
        "| binarized_mnist, G1 | VAE, IW = 50 | 89.00 | 87.50 | 1.50 (1.25 – 1.75) | 86.00 | 85.75 | 30, 50, 7 |"
    ]


def test_each_ratio_is_that_of_its_last_measurement(tmp_path, monkeypatch):
    """A record of one goal alone hides none of the others; what was not measured, or has no goal, doesn't count."""
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    (tmp_path / "bench").mkdir()
    goal = {"goal_number": 1, "floor": 1.05, "goal": 1.02, "verdict": "goal"}
    records = {
        "2026-01-01": [
            {"name": "2", "title": "B", "ratio": 1.0, **goal}, {"name": "1", "title": "A", "ratio": 1.01, **goal},
        ],
        "2026-01-02": [
            {"name": "2", "title": "B", "ratio": 1.1, **goal, "verdict": "below"},
            {"name": "x", "title": "X", "ratio": 3.0}, {"name": "1", "title": "A", **goal, "verdict": "-"},
        ],
    }  # fmt: skip
    for name, rows in records.items():
        made = replace(record(86.0, 0), kind="bench", figures={"rows": rows})
        made.write(tmp_path / "bench" / f"{name}.json")
    assert speed.render_bench().splitlines()[2:] == [
        "| A | 1.01 | ≤ 1.05 | ≤ 1.02 |",
        "| B | 1.10, **missed** | ≤ 1.05 | ≤ 1.02 |",
    ]
