"""Modes that draws miss, counted by hand, and the record of a short run."""

from __future__ import annotations

import json

import pyro
import pytest
import torch

from experiments.random_mixtures import Options, PyroMixture, main, missed_share, mixture
from vi_flows import AutoConvFlow


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


@pytest.mark.parametrize("seed", [102, 110, 114, 125, 145, 153])
def test_starts_have_all_modes_of_mixtures_that_a_hundred_paths_missed(seed):
    target = mixture(seed)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = AutoConvFlow(lambda: pyro.sample("x", PyroMixture(target)), prototype_args=())
    with torch.no_grad():
        assert missed_share(target, guide.sample_posterior(5000)["x"].double()) == (0, 0.0)
