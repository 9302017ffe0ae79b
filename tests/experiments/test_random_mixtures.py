"""Modes that draws miss, counted by hand, and the record of a short run."""

from __future__ import annotations

import json

import torch

from experiments.random_mixtures import Options, main, missed_share, mixture


def test_mixtures_are_normalised_and_within_their_sizes():
    for seed in range(20):
        target = mixture(seed)
        weights = target.mixture_distribution.probs
        assert 2 <= len(weights) <= 8
        assert 1 <= target.event_shape[0] <= 8
        sds = torch.linalg.eigvalsh(target.component_distribution.covariance_matrix).sqrt()
        assert 0.099 < float(sds.min()) <= float(sds.max()) < 1.001


def test_modes_without_draws_are_missed():
    target = mixture(1)  # two modes far apart
    assert target.mixture_distribution.logits.shape[-1] == 2
    torch.manual_seed(0)
    weights = target.mixture_distribution.probs
    first, second = (target.component_distribution.sample((1000,))[:, k] for k in (0, 1))
    assert missed_share(target, target.sample((1000,))) == (0, 0.0)
    number, share = missed_share(target, first)
    assert (number, round(share, 6)) == (1, round(float(weights[1]), 6))
    assert missed_share(target, torch.cat([first[:900], second[:30]]))[0] == 1
    assert missed_share(target, torch.cat([first[:500], second[:500]]))[0] == 0


def test_a_run_writes_what_it_counted(tmp_path):
    main(Options(number=1, seed=1, num_draws=500, record=tmp_path / "r.json"))
    figures = json.loads((tmp_path / "r.json").read_text())["figures"]
    (row,) = figures["rows"]
    assert figures["mixtures"] == 1
    assert figures["short"] == int(row["missed"] > 0)
    assert figures["short_and_ok"] + figures["whole_and_ok"] == int(row["verdict"] == "ok")
